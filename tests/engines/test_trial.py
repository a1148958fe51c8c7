"""A forward of a model that works says so, and an answer that cannot be right is an error."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from engines import catalog, models, trial
from engines.model import Config, Info, Kind


class Broken:
    """A model that answers what it was given."""

    def __init__(self, kind: Kind, answer: Any) -> None:
        self.info = Info("broken", kind, "cpu", "eager", "float32", "a fake", untrained=True, bytes=0)
        self.answer = answer

    def prepare(self, value: Any, option: float = 0.0) -> Any:
        return value

    def crops(self, picture: NDArray[np.uint8], boxes: NDArray[np.float32]) -> list[Any]:
        return [picture for _ in boxes]

    def collate(self, items: Sequence[Any]) -> list[Any]:
        return list(items)

    def run(self, batch: list[Any]) -> list[Any]:
        return [self.answer for _ in batch]


class Found:
    """What a detector answers."""

    def __init__(self, boxes: Any) -> None:
        self.boxes = np.array(boxes, np.float32).reshape(-1, 4)
        self.scores = np.ones(len(self.boxes), np.float32)


@pytest.mark.parametrize("kind", get_args(Kind))
def test_the_demo_works(kind: Kind, tmp_path: Path) -> None:
    (model,) = models.load(kind, catalog.look_up(kind, catalog.DEMO), Config(tmp_path))
    expected = {"detection": "the face of an astronaut", "recognition": "a vector of 512 numbers"}
    assert trial.forward(model, kind).startswith(expected.get(kind, "a vector of 256 numbers"))


@pytest.mark.parametrize("kind", ["visual", "textual", "recognition"])
@pytest.mark.parametrize("vector", [np.zeros(4), np.full(4, np.nan), np.full(4, 0.51)])
def test_a_vector_that_has_not_the_length_1_is_broken(kind: Kind, vector: Any) -> None:
    with pytest.raises(trial.BrokenAnswer, match=r"python -m scripts\.build_engines broken"):
        trial.forward(Broken(kind, vector), kind)


@pytest.mark.parametrize("boxes", [[], [[1, 2, 3, 4], [5, 6, 7, 8]], [[np.nan, 2, 3, 4]]])
def test_another_number_of_faces_than_one_is_broken(boxes: Any) -> None:
    with pytest.raises(trial.BrokenAnswer, match="faces in a photo of one astronaut"):
        trial.forward(Broken("detection", Found(boxes)), "detection")
