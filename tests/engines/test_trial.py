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

    min_face = 40

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


@pytest.mark.parametrize("min_face", [12, 40, 250, 1000])
def test_a_detector_of_larger_faces_sees_a_larger_one(min_face: int, tmp_path: Path) -> None:
    config = Config(tmp_path, min_face=min_face)
    (model,) = models.load("detection", catalog.look_up("detection", catalog.DEMO), config)
    assert trial.forward(model, "detection").startswith("the face of an astronaut")


def test_faces_larger_than_can_be_tried_are_not_expected(tmp_path: Path) -> None:
    config = Config(tmp_path, min_face=100_000)
    (model,) = models.load("detection", catalog.look_up("detection", catalog.DEMO), config)
    assert trial.forward(model, "detection") == "no face, as none of 100000 pixels was shown"


@pytest.mark.parametrize("kind", ["visual", "textual", "recognition"])
@pytest.mark.parametrize("vector", [np.zeros(4), np.full(4, np.nan), np.full(4, 0.51)])
def test_a_vector_that_has_not_the_length_1_is_broken(kind: Kind, vector: Any) -> None:
    with pytest.raises(trial.BrokenAnswer, match=r"python -m scripts\.build_engines broken"):
        trial.forward(Broken(kind, vector), kind)


@pytest.mark.parametrize("boxes", [[], [[1, 2, 3, 4], [5, 6, 7, 8]], [[np.nan, 2, 3, 4]]])
def test_another_number_of_faces_than_one_is_broken(boxes: Any) -> None:
    with pytest.raises(trial.BrokenAnswer, match="faces in a photo of one astronaut"):
        trial.forward(Broken("detection", Found(boxes)), "detection")
