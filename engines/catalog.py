"""The catalogue: every model name that is served, and what it stands for.

Knows names, architectures, sizes and where published weights of the face models lie. Deliberately knows neither torch
nor open_clip nor the file system outside this package: a name is looked up here before it touches anything else.
The CLIP table is data/clip-models.csv; the numbers of the demo come from its own config file.
"""

import csv
import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal, get_args

from engines.errors import UnknownModel
from engines.model import Kind

ResizeMode = Literal["shortest", "squash"]
TextTower = Literal["causal", "masked", "fixed"]

DEMO = "demo"
FACE_ALIASES = ("buffalo_l", "buffalo_m", "buffalo_s", "antelopev2")
# The words that the table may use: any other one is a slip in it.
_RESIZE_MODES: dict[str, ResizeMode] = {mode: mode for mode in get_args(ResizeMode)}
_TEXT_TOWERS: dict[str, TextTower] = {tower: tower for tower in get_args(TextTower)}
LONGEST_NAME = 80  # letters of a user's name that a message repeats


@dataclass(frozen=True, slots=True)
class Clip:
    """One CLIP model: two towers that share a space.

    `arch` and `tag` are open_clip's names. `dim` is the length of an embedding, `image_size` the side of the square
    input in pixels, `context_length` the most token ids of a text. `text_tower` says what may be done to the length
    of a text: "causal" may be cut after the end token, "masked" may be cut with its mask, "fixed" may not.
    `mclip_repo` is the Hugging Face repository of an M-CLIP text side, "" for all other models. `module` is the module
    that a model is built by which is a file of its own, "" for those that open_clip builds: see own.py.
    """

    name: str
    arch: str
    tag: str
    dim: int
    image_size: int
    context_length: int
    resize: ResizeMode
    tokenizer: str
    quickgelu: bool
    text_tower: TextTower
    mclip_repo: str = ""
    module: str = ""


@dataclass(frozen=True, slots=True)
class Face:
    """One face model: MTCNN before it, an InceptionResnetV1 with `dim` outputs.

    `classes` is the width of the classifier in the published file (dropped on loading), `sha256` the checksum of that
    file, "" where none is published. `url` is "" for the demo, whose weights lie in the package.
    """

    name: str
    dim: int
    classes: int
    url: str
    sha256: str


# Release assets of facenet-pytorch; the project publishes no checksums itself.
_FACENET_RELEASE = "https://github.com/timesler/facenet-pytorch/releases/download/v2.2.9/"
_FACES = {
    face.name: face
    for face in (
        Face(
            name="facenet-vggface2",
            dim=512,
            classes=8631,
            url=_FACENET_RELEASE + "20180402-114759-vggface2.pt",
            sha256="281cebca8662831adb987a874bdcb36e73f5b1c6dc5ee5878f305e985625d99b",
        ),
        Face(
            name="facenet-casia-webface",
            dim=512,
            classes=10575,
            url=_FACENET_RELEASE + "20180408-102900-casia-webface.pt",
            sha256="",
        ),
        Face(name=DEMO, dim=512, classes=0, url="", sha256=""),
    )
}


def own(
    name: str, module: str, dim: int, image_size: int, context_length: int, resize: ResizeMode = "shortest"
) -> Clip:
    """Return the entry of a model that is a file of its own, as `engines.palette`."""
    return Clip(
        name=name,
        arch=name,
        tag="",
        dim=dim,
        image_size=image_size,
        context_length=context_length,
        resize=resize,
        tokenizer=module,
        quickgelu=False,
        text_tower="fixed",
        module=module,
    )


# Models that are a file of their own, a line each: docs/adding-a-model.md.
_OWN: tuple[Clip, ...] = (
    # name, module, length of an embedding, side of the picture in pixels, most ids of a text
)


def normalise(name: str) -> str:
    """Return the catalogue's spelling of `name`: after the last "/", ":" and "\\" as "_", without dots."""
    return name.rsplit("/", 1)[-1].replace(":", "_").replace("\\", "_").replace(".", "")


def clip(name: str) -> Clip:
    """Return the CLIP model called `name` in any of its spellings; raises UnknownModel."""
    key = normalise(name)
    if key in _clips():
        return _clips()[key]
    if key in FACE_ALIASES or key in _FACES:
        raise UnknownModel(f"{_shown(name)} is a face model: ask for it with the task 'facial-recognition'.")
    raise UnknownModel(f"There is no CLIP model {_shown(name)}. {_nearest(key, _clips())}")


def face(name: str, alias: str = "facenet-vggface2") -> Face:
    """Return the face model called `name`; InsightFace's names lead to the one called `alias`.

    Raises UnknownModel, also for InsightFace's names where `alias` is empty.
    """
    key = normalise(name)
    if key in FACE_ALIASES:
        if not alias:
            raise UnknownModel(
                f"{_shown(name)} is a model of InsightFace, which is not served here. Set MACHINE_LEARNING_FACE_ALIAS "
                "to the face model that shall answer for it, for example facenet-vggface2."
            )
        if normalise(alias) not in _FACES:
            raise UnknownModel(
                f"MACHINE_LEARNING_FACE_ALIAS is {_shown(alias)}, which is no face model: "
                f"set it to one of {', '.join(_FACES)}."
            )
        key = normalise(alias)
    if key in _FACES:
        return _FACES[key]
    if key in _clips():
        raise UnknownModel(f"{_shown(name)} is a CLIP model: ask for it with the task 'clip'.")
    raise UnknownModel(f"There is no face model {_shown(name)}. {_nearest(key, (*_FACES, *FACE_ALIASES))}")


def look_up(kind: Kind, name: str, face_alias: str = "facenet-vggface2") -> Clip | Face:
    """Return the entry for `name` among the models of `kind`; raises UnknownModel."""
    if kind in ("visual", "textual"):
        return clip(name)
    return face(name, face_alias)


def names() -> dict[Literal["clip", "facial-recognition"], tuple[str, ...]]:
    """Return the names in the catalogue by task, aliases left out."""
    return {"clip": tuple(_clips()), "facial-recognition": tuple(_FACES)}


def demo_config() -> dict[str, Any]:
    """Return the demo's architecture in open_clip's config format (embed_dim, vision_cfg, text_cfg, …)."""
    text = resources.files("engines").joinpath("data/demo/clip.json").read_text(encoding="utf-8")
    config: dict[str, Any] = json.loads(text)
    return config


@cache
def _clips() -> dict[str, Clip]:
    """Return all CLIP models by name: the published ones, those that are a file of their own, the demo last."""
    table = resources.files("engines").joinpath("data/clip-models.csv").read_text(encoding="utf-8")
    published = (_clip_of(row) for row in csv.DictReader(table.splitlines()))
    return {entry.name: entry for entry in (*published, *_OWN, _demo())}


def _clip_of(row: dict[str, str]) -> Clip:
    return Clip(
        name=row["name"],
        arch=row["open_clip_arch"],
        tag=row["open_clip_tag"],
        dim=int(row["dim"]),
        image_size=int(row["image_size"]),
        context_length=int(row["context_length"]),
        resize=_RESIZE_MODES[row["resize_mode"]],
        tokenizer=row["tokenizer"],
        quickgelu=row["run_with_quickgelu"] == "true",
        text_tower=_TEXT_TOWERS[row["text_tower"]],
        mclip_repo=f"M-CLIP/{row['name']}" if row["tokenizer"].startswith("M-CLIP") else "",
    )


def _demo() -> Clip:
    config = demo_config()
    return Clip(
        name=DEMO,
        arch=DEMO,
        tag="",
        dim=config["embed_dim"],
        image_size=config["vision_cfg"]["image_size"],
        context_length=config["text_cfg"]["context_length"],
        resize="shortest",
        tokenizer="CLIP-BPE",
        quickgelu=config.get("quick_gelu", False),
        text_tower="causal",
    )


def _shown(name: str) -> str:
    return repr(name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…")


def _nearest(key: str, known: Iterable[str]) -> str:
    # difflib compares letter by letter, quadratic in the length of the name: a long one is cut first.
    near = difflib.get_close_matches(key[:LONGEST_NAME].lower(), {n.lower() for n in known}, n=3)
    spelled = [n for n in known if n.lower() in near]
    if not spelled:
        return "GET /models lists the names."
    return f"Did you mean {' or '.join(spelled)}? GET /models lists all names."
