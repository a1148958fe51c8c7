"""Every setting once: its variable, its default, one sentence. The README table is made from here.

Knows the environment and nothing else. Names that the reference deployment has keep their meaning; those of its names
that make no sense here are accepted, and `advice` says what replaces them.
"""

import difflib
import os
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, PlainValidator, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from engines.model import Kind

PREFIX = "MACHINE_LEARNING_"
# An empty value means "not set" (compose files pass unset variables on as empty ones), except where it says something.
_EMPTY_MEANS_EMPTY = {"face_alias"}

# Settings of the reference deployment that have no meaning here, as patterns of names.
REPLACED = {
    "MACHINE_LEARNING_WORKERS": "one process serves all requests, in batches: leave it out",
    "MACHINE_LEARNING_WORKER_TIMEOUT": "no worker is killed for being slow: leave it out",
    "MACHINE_LEARNING_MODEL_INTER_OP_THREADS": "batches take its place: see MACHINE_LEARNING_MODEL_INTRA_OP_THREADS",
    "MACHINE_LEARNING_MAX_BATCH_SIZE__*": "batches form by themselves: see MACHINE_LEARNING_QUEUE_ITEMS",
    "MACHINE_LEARNING_ANN*": "there is no ARM NN here: PyTorch runs on the processor",
    "MACHINE_LEARNING_RKNN*": "there is no RKNN here: PyTorch runs on the processor",
}


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, str):
        return tuple(value)
    return tuple(name.strip() for name in value.split(",") if name.strip())


def _ordinals(value: Any) -> tuple[int, ...]:
    try:
        numbers = tuple(int(number) for number in _names(str(value) if isinstance(value, int) else value))
    except ValueError as error:
        raise ValueError("must be a comma list of GPU numbers, for example 0 or 0,1") from error
    if any(number < 0 for number in numbers):
        raise ValueError("must be a comma list of GPU numbers from 0 on, for example 0 or 0,1")
    return numbers


Names = Annotated[tuple[str, ...], NoDecode, PlainValidator(_names)]
Ordinals = Annotated[tuple[int, ...], NoDecode, PlainValidator(_ordinals)]


def _preload(what: str, description: str) -> Any:
    name = f"{PREFIX}PRELOAD__{what}"
    return Field((), validation_alias=AliasChoices(name), description=description)


class Settings(BaseSettings):
    """The settings, read from the environment when made."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True, allow_inf_nan=False)

    host: str = Field(
        "[::]",
        validation_alias=AliasChoices("IMMICH_HOST"),
        description="Address to listen on; `[::]` is every address, IPv4 and IPv6.",
    )
    port: int = Field(
        3003, ge=0, le=65535, validation_alias=AliasChoices("IMMICH_PORT"), description="Port to listen on."
    )
    log_level: Literal["verbose", "debug", "log", "info", "warn", "warning", "error", "fatal", "critical"] = Field(
        "info", validation_alias=AliasChoices("IMMICH_LOG_LEVEL"), description="Least level that is logged."
    )
    log_format: Literal["auto", "human", "json"] = Field(
        "auto", description="`auto` logs for people on a terminal, and JSON lines everywhere else."
    )
    slow_request_s: float = Field(
        10, ge=0, description="Seconds after which an answer is logged as slow, with where the time went; 0 is never."
    )
    tracing: str = Field(
        "",
        description="Where traces of OpenTelemetry go by OTLP over HTTP, for example `http://localhost:4318`; "
        "empty is nowhere.",
    )
    proof_s: float = Field(
        60,
        ge=0,
        description="Seconds without work after which a model computes a small input, to see that it still can; "
        "0 is never.",
    )
    cache_folder: Path = Field(Path("~/.cache/facet"), description="Where weights and engines are kept.")
    model_ttl: float = Field(
        300,
        ge=0,
        description="Seconds without use after which a model leaves memory; 0 keeps all. Preloaded models stay.",
    )
    model_ttl_poll_s: float = Field(10, gt=0, description="Seconds between two looks for idle models.")
    memory_budget_mb: int = Field(
        0,
        ge=0,
        description="Megabytes of weights to hold at most: the model idle for longest leaves first; 0 is no limit.",
    )
    request_threads: int = Field(
        0,
        ge=0,
        description="Threads that decode and prepare pictures; 0 is one per core at hand.",
    )
    model_intra_op_threads: int = Field(
        0,
        ge=0,
        description="Threads of a network on the processor; 0 is all cores at hand, by a container's quota too.",
    )
    device: Literal["auto", "cpu", "cuda", "xpu"] = Field(
        "auto",
        description="What models run on: `auto` is a GPU that PyTorch can use, else the processor; "
        "`xpu` is an Intel GPU, by OpenVINO.",
    )
    device_ids: Ordinals = Field(
        (0,), description="GPUs by number: each holds every model once, and whichever is free takes the next batch."
    )
    require_device: Literal["", "cpu", "cuda", "xpu"] = Field(
        "", description="Refuse to start where models would not run on this; empty takes what there is."
    )
    engine: Literal["auto", "eager", "torchscript", "inductor", "tensorrt", "openvino", "ipex"] = Field(
        "auto",
        description="What computes the networks: `auto` is the fastest that is built and passed its gate, "
        "`eager` is PyTorch as it is.",
    )
    precision: Literal["auto", "float32", "bfloat16", "float16", "int8"] = Field(
        "auto", description="Precision of the networks: `auto` is the fastest that keeps the vectors as they are."
    )
    calibration: Path | None = Field(
        None, description="Folder of pictures that int8 engines are calibrated on; empty takes generated ones."
    )
    calibration_texts: Path | None = Field(
        None,
        description="File of texts, one per line, that int8 engines are calibrated on; empty takes generated ones.",
    )
    build: Literal["never", "background", "require"] = Field(
        "never",
        description="Build engines that are missing: `background` serves eager until one has passed, "
        "`require` does not serve a model before.",
    )
    streams: int = Field(
        0,
        ge=0,
        description="Parts of a batch that run at the same time on the processor; 0 is what was measured as fastest.",
    )
    openvino_hint: Literal["latency", "throughput"] = Field(
        "latency", description="What OpenVINO tunes its engines for."
    )
    preload_clip_textual: Names = _preload("CLIP__TEXTUAL", "CLIP models whose text side is loaded at the start.")
    preload_clip_visual: Names = _preload("CLIP__VISUAL", "CLIP models whose picture side is loaded at the start.")
    preload_clip: Names = _preload("CLIP", "Older name: CLIP models of which both sides are loaded at the start.")
    preload_face_detection: Names = _preload(
        "FACIAL_RECOGNITION__DETECTION", "Face models whose detector is loaded at the start."
    )
    preload_face_recognition: Names = _preload(
        "FACIAL_RECOGNITION__RECOGNITION", "Face models whose recogniser is loaded at the start."
    )
    preload_face: Names = _preload("FACIAL_RECOGNITION", "Older name: face models of which both are loaded.")
    http_keepalive_timeout_s: float = Field(
        75,
        ge=0,
        description="Seconds that an idle connection stays open.",
    )
    shutdown_grace_s: float = Field(
        8,
        ge=0,
        description="Seconds after Ctrl-C or SIGTERM in which running requests are still answered; the rest gets 503.",
    )
    untrained: bool = Field(
        False,
        description="Build every model with random weights from a fixed seed: for load tests, never for photos.",
    )
    clip_resize: Literal["native", "crop"] = Field(
        "native",
        description="`native` prepares pictures as each model was trained; `crop` as Immich ML up to v3.2 does.",
    )
    embeddings: Literal["string", "list"] = Field(
        "string",
        description="`string` for Immich from v1.125 on; `list` for v1.106 to v1.124.",
    )
    face_alias: str = Field(
        "facenet-vggface2",
        description="Face model that answers for `buffalo_l`, `buffalo_m`, `buffalo_s`, `antelopev2`; empty refuses.",
    )
    min_face: int = Field(
        40,
        ge=12,
        description="Side in pixels of the smallest face to look for; half of it costs up to four times the time.",
    )
    exif: bool = Field(
        False,
        description="Turn pictures as their EXIF orientation says before all else.",
    )
    ocr: Literal["refuse", "empty"] = Field(
        "refuse",
        description="There is no OCR here: `refuse` answers 501, `empty` answers that there is no text.",
    )
    scaled_decode: float = Field(
        4,
        ge=0,
        description="Decode JPEGs of which only a CLIP vector is wanted at a fraction of their size, as long as both "
        "sides keep this many times what the model takes; 0 decodes all in full.",
    )
    decode: Literal["cpu", "cuda"] = Field(
        "cpu",
        description="What decodes JPEGs of which only a CLIP vector is wanted: `cuda` is the GPU, if the vectors stay "
        "the same.",
    )
    max_body_mb: float = Field(100, gt=0, description="Largest request body, in megabytes.")
    max_pixels: int = Field(200_000_000, gt=0, description="Largest picture, in pixels.")
    max_decoded_pixels: int = Field(
        100_000_000,
        gt=0,
        description="Pixels held decoded at one time, up to 20 bytes each: further pictures wait.",
    )
    body_timeout_s: float = Field(
        30, gt=0, description="Seconds without a byte after which a request's body is given up with 408."
    )
    page: bool = Field(
        True,
        description="Serve the page at `/app`, where a person tries photos in the browser; `/docs` stays either way.",
    )
    queue_items: int = Field(
        4096,
        gt=0,
        description="Inputs that may wait for a model; beyond that, or 290 seconds of work, the answer is 503. Clients "
        "share it evenly: who fills it turns away nobody else.",
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_empty(cls, values: Any) -> Any:
        return {name: value for name, value in values.items() if value != "" or name in _EMPTY_MEANS_EMPTY}

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower(cls, level: Any) -> Any:
        return level.lower() if isinstance(level, str) else level

    @field_validator("cache_folder", "calibration", "calibration_texts")
    @classmethod
    def _expand(cls, path: Path | None) -> Path | None:
        return path and path.expanduser()

    def preloads(self) -> tuple[tuple[Kind, str], ...]:
        """Return what to load at the start as (kind, name as written), each once, texts first."""
        wanted: dict[Kind, Names] = {
            "textual": self.preload_clip_textual + self.preload_clip,
            "visual": self.preload_clip_visual + self.preload_clip,
            "detection": self.preload_face_detection + self.preload_face,
            "recognition": self.preload_face_recognition + self.preload_face,
        }
        return tuple(dict.fromkeys((kind, name) for kind, names in wanted.items() for name in names))


def variable(field: str) -> str:
    """Return the environment variable of a field of Settings."""
    alias = Settings.model_fields[field].validation_alias
    return str(alias.choices[0]) if isinstance(alias, AliasChoices) else PREFIX + field.upper()


def problems(error: ValidationError) -> list[str]:
    """Return a sentence for every setting that could not be read."""
    sentences = []
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"])
        name = variable(name) if name in Settings.model_fields else name
        sentences.append(f"{name} is {problem['input']!r}: {problem['msg']}")
    return sentences


def advice(environ: Mapping[str, str] | None = None) -> list[str]:
    """Return a sentence for every variable of ours in `environ` that has no effect here: replaced, or misspelt."""
    known = {variable(field) for field in Settings.model_fields}
    sentences = []
    for name in sorted(os.environ if environ is None else environ):
        if name in known or not name.startswith(PREFIX):
            continue
        replaced = next((text for pattern, text in REPLACED.items() if fnmatchcase(name, pattern)), None)
        if replaced is not None:
            sentences.append(f"{name} has no effect: {replaced}")
            continue
        near = difflib.get_close_matches(name, known, n=1)
        sentences.append(f"{name} is not a setting" + (f": did you mean {near[0]}?" if near else ""))
    return sentences
