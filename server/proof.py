"""A small input by which a model shows that it works: what it is for each kind, and how long it may take.

Knows how inputs of each kind are prepared. Does not know who wants a proof, nor what follows from it.
"""

from typing import Any

import numpy as np

from engines.model import Kind

HANGS_S = 120.0  # the slowest batch there is, a large model's on two old cores, takes less
AGAIN_S = 30.0  # between two proofs of what fails
SIDE = 160  # pixels of the picture that is computed


def sample(model: Any, kind: Kind) -> tuple[Any, int]:
    """Return a small prepared input for a model, and its weight in the queue; raises whatever the model raises."""
    picture = np.full((SIDE, SIDE, 3), 127, np.uint8)
    match kind:
        case "textual":
            return model.prepare("a photo", None), 1
        case "visual":
            return model.prepare(picture), 1
        case "detection":
            item = model.prepare(picture, 0.7)
            return item, item.weight
        case "recognition":
            return model.crops(picture, np.array([[0, 0, SIDE, SIDE]], np.float32))[0], 1


def compute(model: Any, kind: Kind) -> None:
    """Let a model that nobody uses yet compute a small input; raises whatever it raises."""
    item, _ = sample(model, kind)
    model.run(model.collate([item]))
