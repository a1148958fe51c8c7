"""Forms in, JSON out: the three generations of the protocol, and nothing else.

Knows the shapes of requests and answers. Does not know which models there are, what is computed, or how: a form
becomes an `Ask`, and results become bytes.
"""

import math
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import parse_qsl

import numpy as np
import orjson
from aiohttp import web
from multipart import MultipartError, MultipartSegment, ParserLimitReached, PushMultipartParser, parse_options_header
from numpy.typing import NDArray

from server.body import Limits, chunks, too_large
from server.errors import BadForm, BadInput, TooLarge

DEFAULT_MIN_SCORE = 0.7
FIELDS = ("entries", "modelName", "modelType", "options", "text", "image")

# task -> type -> option -> what it must be; other options are ignored
_NUMBER, _STRING = "a finite number", "a string"
_TASKS: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    "clip": {"visual": {}, "textual": {"language": _STRING}},
    "facial-recognition": {"detection": {"minScore": _NUMBER}, "recognition": {}},
    "ocr": {"detection": {"minScore": _NUMBER, "maxResolution": _NUMBER}, "recognition": {"minScore": _NUMBER}},
}

Form = dict[str, bytes]
Embeddings = Literal["string", "list"]


@dataclass(frozen=True, slots=True)
class Ask:
    """What one request asks for. A model name is None where that part was not asked for.

    `bare` marks the oldest generation, whose answer is the value itself. `either` means that the input decides between
    `visual` and `textual`, which then carry the same name.
    """

    visual: str | None = None
    textual: str | None = None
    detection: str | None = None
    recognition: str | None = None
    ocr: bool = False
    language: str | None = None
    min_score: float = DEFAULT_MIN_SCORE
    image: bytes | None = None
    text: str | None = None
    bare: bool = False
    either: bool = False


@dataclass(frozen=True, slots=True)
class Face:
    """One face: its box (x1, y1, x2, y2) in pixels of the picture, its score, and its embedding if asked for."""

    box: NDArray[np.float32]
    score: float
    embedding: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True)
class Answer:
    """What was computed for an Ask. `size` is (width, height) of the picture, None for a text."""

    size: tuple[int, int] | None = None
    embedding: NDArray[np.float32] | None = None
    faces: Sequence[Face] | None = None


async def read_form(request: web.Request, limits: Limits) -> Form:
    """Read the fields that the protocol knows from a request's body; others are skipped.

    Raises BadForm for a body that is no form, TooLarge for one that is over a limit, SlowBody for one that is too slow.
    """
    if "Content-Encoding" in request.headers:
        raise BadForm("The body is encoded: send it as it is, without Content-Encoding.")
    if request.content_length is not None and request.content_length > limits.body:
        raise too_large(limits.body)
    kind, options = parse_options_header(request.headers.get("Content-Type", ""))
    if kind == "multipart/form-data":
        return await _read_multipart(chunks(request, limits), options.get("boundary", ""), limits)
    if kind == "application/x-www-form-urlencoded":
        return await _read_urlencoded(chunks(request, limits), limits)
    raise BadForm("Send a form: multipart/form-data, or application/x-www-form-urlencoded for texts.")


async def _read_multipart(body: AsyncIterator[bytes], boundary: str, limits: Limits) -> Form:
    if not boundary:
        raise BadForm("The Content-Type names no boundary: send multipart/form-data as HTTP clients build it.")
    form: dict[str, bytearray] = {}
    target: bytearray | None = None
    try:
        with PushMultipartParser(boundary, max_segment_count=limits.parts, max_segment_size=limits.part) as parser:
            async for chunk in body:
                if parser.closed:  # what follows the last boundary means nothing
                    continue
                for event in parser.parse(chunk):
                    if isinstance(event, MultipartSegment):
                        target = _start_part(form, event)
                    elif event is not None and target is not None:
                        target += event
                        _check_text_bytes(form, limits)
    except ParserLimitReached as error:
        raise TooLarge(
            f"The form has too many or too large parts: at most {limits.parts} parts of up to {limits.part} bytes, "
            "with few and short headers."
        ) from error
    except MultipartError as error:
        raise BadForm(f"The multipart body cannot be read ({error.args[0]}): build it as HTTP clients do.") from error
    return {name: bytes(value) for name, value in form.items()}


def _start_part(form: dict[str, bytearray], part: MultipartSegment) -> bytearray | None:
    transfer = part.header("Content-Transfer-Encoding", "binary").lower()
    if part.header("Content-Encoding") is not None or transfer not in ("binary", "8bit", "7bit"):
        raise BadForm("A part of the form is encoded: send parts as they are.")
    if (part.content_type or "").startswith("multipart/"):
        raise BadForm("A part of the form is a multipart body itself: send a flat form.")
    if part.name is None or part.name not in FIELDS:
        return None
    form[part.name] = bytearray()  # the last one of a name counts
    return form[part.name]


def _check_text_bytes(form: Mapping[str, bytearray], limits: Limits) -> None:
    if sum(len(value) for name, value in form.items() if name != "image") > limits.text:
        raise TooLarge(f"The text fields of the form are over {limits.text} bytes: send less text.")


async def _read_urlencoded(chunks: AsyncIterator[bytes], limits: Limits) -> Form:
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > limits.text:
            raise TooLarge(f"The form is over {limits.text} bytes: send less text, and pictures as multipart.")
    if body.count(b"&") >= limits.parts:
        raise TooLarge(f"The form has too many fields: at most {limits.parts}.")
    try:  # as clients send them: percent-encoded, or as plain UTF-8
        pairs = parse_qsl(body.decode("utf-8"), keep_blank_values=True, errors="surrogateescape")
    except UnicodeDecodeError as error:
        raise BadForm("The form is not UTF-8.") from error
    return {name: value.encode("utf-8", "surrogateescape") for name, value in pairs if name in FIELDS}


def parse(form: Form) -> Ask:
    """Return what a form asks for, in whichever generation of the protocol it speaks; raises BadForm and BadInput."""
    image = form.get("image")
    text = _string(form, "text") or None
    if "entries" not in form and "modelType" in form:
        return _parse_fields(form, image, text)
    entries = _json(_string(form, "entries"), BadForm, "entries")
    if not isinstance(entries, dict) or not entries:
        raise BadForm('entries must be a JSON object like {"clip": {"visual": {"modelName": "demo"}}}.')
    names: dict[tuple[str, str], str] = {}
    options: dict[tuple[str, str], dict[str, Any]] = {}
    for task, types in entries.items():
        if task not in _TASKS:
            raise BadForm(f"entries names an unknown task: known ones are {', '.join(_TASKS)}.")
        if not isinstance(types, dict) or not types:
            raise BadForm(f"entries.{task} must be an object of one or more types: {', '.join(_TASKS[task])}.")
        for type_, entry in types.items():
            if type_ not in _TASKS[task]:
                raise BadForm(f"entries.{task} names an unknown type: known ones are {', '.join(_TASKS[task])}.")
            if not isinstance(entry, dict) or not isinstance(entry.get("modelName"), str):
                raise BadForm(f'entries.{task}.{type_} must be an object with a string "modelName".')
            names[task, type_] = entry["modelName"]
            options[task, type_] = _options(f"entries.{task}.{type_}", _TASKS[task][type_], entry.get("options", {}))
    return Ask(
        visual=names.get(("clip", "visual")),
        textual=names.get(("clip", "textual")),
        detection=names.get(("facial-recognition", "detection")),
        recognition=names.get(("facial-recognition", "recognition")),
        ocr="ocr" in entries,
        language=options.get(("clip", "textual"), {}).get("language"),
        min_score=options.get(("facial-recognition", "detection"), {}).get("minScore", DEFAULT_MIN_SCORE),
        image=image,
        text=text,
    )


def _parse_fields(form: Form, image: bytes | None, text: str | None) -> Ask:
    """Parse the oldest generation: modelName, modelType, options."""
    kind = _string(form, "modelType")
    if kind not in ("clip", "facial-recognition"):
        raise BadForm("modelType must be clip or facial-recognition.")
    name = _string(form, "modelName")
    if not name:
        raise BadForm("modelName is missing.")
    options = _json(_string(form, "options"), BadInput, "options") if "options" in form else {}
    if not isinstance(options, dict):
        raise BadInput("options must be a JSON object.")
    if kind == "facial-recognition":
        options = _options("options", {"minScore": _NUMBER}, options)
        min_score = options.get("minScore", DEFAULT_MIN_SCORE)
        return Ask(detection=name, recognition=name, min_score=min_score, image=image, text=text, bare=True)
    mode = options.get("mode")
    if mode not in (None, "vision", "text"):
        raise BadForm("options.mode must be vision or text.")
    return Ask(
        visual=name if mode != "text" else None,
        textual=name if mode != "vision" else None,
        either=mode is None,
        image=image,
        text=text,
        bare=True,
    )


def _string(form: Form, field: str) -> str:
    try:
        return form.get(field, b"").decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadForm(f"The field {field} is not UTF-8.") from error


def _json(text: str, error: type[BadForm] | type[BadInput], field: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as bad:
        raise error(f"{field} must be JSON: {bad.msg}.") from bad


def _options(where: str, known: Mapping[str, str], options: Any) -> dict[str, Any]:
    if not isinstance(options, dict):
        raise BadForm(f"{where}.options must be an object.")
    for name, wanted in known.items():
        if name in options and not _is(wanted, options[name]):
            raise BadForm(f"{where}.options.{name} must be {wanted}.")
    return options


def _is(wanted: str, value: Any) -> bool:
    if wanted == _STRING:
        return isinstance(value, str)
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def render(ask: Ask, answer: Answer, embeddings: Embeddings) -> bytes:
    """Return the JSON of an answer in the generation that `ask` came in."""
    if ask.bare:
        value: Any = [_old_face(face, answer) for face in answer.faces] if answer.faces is not None else None
        if answer.embedding is not None:
            value = _vector(answer.embedding, "list")
        return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    body: dict[str, Any] = {}
    if answer.embedding is not None:
        body["clip"] = _vector(answer.embedding, embeddings)
    if answer.faces is not None:
        body["facial-recognition"] = [_face(face, embeddings) for face in answer.faces]
    if ask.ocr:
        body["ocr"] = {"text": [], "box": [], "boxScore": [], "textScore": []}
    if answer.size is not None:
        body["imageWidth"], body["imageHeight"] = answer.size
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def _vector(embedding: NDArray[np.float32], embeddings: Embeddings) -> str | NDArray[np.float32]:
    embedding = np.ascontiguousarray(embedding)
    if embeddings == "list":
        return embedding
    return orjson.dumps(embedding, option=orjson.OPT_SERIALIZE_NUMPY).decode("ascii")


def _box(face: Face) -> dict[str, Any]:
    x1, y1, x2, y2 = (round(float(number)) for number in face.box)
    return {"boundingBox": {"x1": x1, "y1": y1, "x2": x2, "y2": y2}, "score": float(face.score)}


def _face(face: Face, embeddings: Embeddings) -> dict[str, Any]:
    if face.embedding is None:
        return _box(face)
    return {**_box(face), "embedding": _vector(face.embedding, embeddings)}


def _old_face(face: Face, answer: Answer) -> dict[str, Any]:
    assert answer.size is not None, "faces come from a picture"  # noqa: S101 - an invariant of predict
    width, height = answer.size
    return {"imageWidth": width, "imageHeight": height, **_face(face, "list")}
