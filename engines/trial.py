"""One small forward of a loaded model, on a photo or a text that lies in the package, and whether it can be right.

Knows what goes into each kind of model and how to see at a glance that an answer is broken. Does not know what the
right answer is: that is the gate's affair (parity.py).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines import samples
from engines.errors import EngineError
from engines.model import Kind

PHOTO, HEAD = samples.HEADS[0]
TEXT = "a photo of an astronaut"
MIN_SCORE = 0.7
NORM_OFF = 1e-3


class BrokenAnswer(EngineError):
    """A model answers, and the answer cannot be right."""


def forward(model: Any, kind: Kind) -> str:
    """Run one input through a model of engines.models; return in words what came out.

    Raises BrokenAnswer, and whatever the model raises.
    """
    pixels = np.array(samples.photo(PHOTO))
    if kind == "detection":
        (found,) = model.run(model.collate([model.prepare(pixels, MIN_SCORE)]))
        if len(found.boxes) != 1 or not np.isfinite(found.boxes).all():
            raise BrokenAnswer(
                f"{model.info.name} finds {len(found.boxes)} faces in a photo of one astronaut: unset "
                "MACHINE_LEARNING_ENGINE and MACHINE_LEARNING_PRECISION, and set MACHINE_LEARNING_MIN_FACE to 40."
            )
        return f"the face of an astronaut, score {found.scores[0]:.2f}"
    if kind == "recognition":
        items = model.crops(pixels, np.array([HEAD], np.float32))
    else:
        items = [model.prepare(pixels if kind == "visual" else TEXT)]
    (vector,) = model.run(model.collate(items))
    return _judged(vector, model.info.name)


def _judged(vector: NDArray[np.float32], name: str) -> str:
    norm = float(np.linalg.norm(vector))
    if not abs(norm - 1) <= NORM_OFF:  # also true of NaN
        raise BrokenAnswer(
            f"{name} answers with a vector of length {norm:g}, not 1: build its engines anew with "
            f"`python -m scripts.build_engines {name}`, or set MACHINE_LEARNING_ENGINE=eager."
        )
    return f"a vector of {len(vector)} numbers"
