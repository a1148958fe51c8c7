"""One small forward of a loaded model, on a photo or a text that lies in the package, and whether it can be right.

Knows what goes into each kind of model and how to see at a glance that an answer is broken. Does not know what the
right answer is: that is the gate's affair (parity.py).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engines import samples
from engines.errors import EngineError
from engines.model import Kind

PHOTO, HEAD = samples.HEADS[0]
TEXT = "a photo of an astronaut"
MIN_SCORE = 0.7
NORM_OFF = 1e-3
# The photo's face: the shorter side of its box in pixels, and what is cut out around it where it must be larger.
FACE = 110
AROUND = (96, 0, 352, 256)
ROOM = 1.5  # times the smallest face that is looked for, so that it is found for sure
LARGEST = 4096  # pixels of a side


class BrokenAnswer(EngineError):
    """A model answers, and the answer cannot be right."""


def forward(model: Any, kind: Kind) -> str:
    """Run one input through a model of engines.models; return in words what came out.

    Raises BrokenAnswer, and whatever the model raises.
    """
    if kind == "detection":
        return _detected(model)
    pixels = np.array(samples.photo(PHOTO))
    if kind == "recognition":
        items = model.crops(pixels, np.array([HEAD], np.float32))
    else:
        items = [model.prepare(pixels if kind == "visual" else TEXT)]
    (vector,) = model.run(model.collate(items))
    return _judged(vector, model.info.name)


def _detected(model: Any) -> str:
    photo, there = _portrait(model.min_face)
    (found,) = model.run(model.collate([model.prepare(np.array(photo), MIN_SCORE)]))
    if len(found.boxes) != there or not np.isfinite(found.boxes).all():
        raise BrokenAnswer(
            f"{model.info.name} finds {len(found.boxes)} faces in a photo of one astronaut: unset "
            "MACHINE_LEARNING_ENGINE and MACHINE_LEARNING_PRECISION."
        )
    if not there:
        return f"no face, as none of {model.min_face} pixels was shown"
    return f"the face of an astronaut, score {found.scores[0]:.2f}"


def _portrait(min_face: int) -> tuple[Image.Image, int]:
    """Return the photo, larger where faces of its size are not looked for, and how many faces are to be found in it."""
    photo, scale = samples.photo(PHOTO), ROOM * min_face / FACE
    if scale <= 1:
        return photo, 1
    around = photo.crop(AROUND)
    side = round(scale * around.width)
    return (around.resize((side, side), Image.Resampling.BICUBIC), 1) if side <= LARGEST else (around, 0)


def _judged(vector: NDArray[np.float32], name: str) -> str:
    norm = float(np.linalg.norm(vector))
    if not abs(norm - 1) <= NORM_OFF:  # also true of NaN
        raise BrokenAnswer(
            f"{name} answers with a vector of length {norm:g}, not 1: build its engines anew with "
            f"`python -m scripts.build_engines {name}`, or set MACHINE_LEARNING_ENGINE=eager."
        )
    return f"a vector of {len(vector)} numbers"
