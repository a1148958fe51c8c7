"""On a GPU the detector finds the faces that it finds on the processor."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from engines import faces, parity, samples
from engines.faces import Detector
from engines.model import Config

pytestmark = pytest.mark.gpu

MIN_SCORE = 0.7
Found = list[tuple[NDArray[np.float32], NDArray[np.float32]]]


def found_in(detector: Detector, pictures: Sequence[NDArray[np.uint8]]) -> Found:
    items = [detector.prepare(picture, MIN_SCORE) for picture in pictures]
    return [(one.boxes, one.scores) for one in detector.run(detector.collate(items))]


def test_the_same_faces_are_found_as_on_the_processor(device: torch.device) -> None:
    config = Config(cache_folder=Path(), min_face=20)
    on_cpu, on_gpu = (faces.load_detector(config, where) for where in (torch.device("cpu"), device))
    pictures = samples.crowds()
    expected = [face for picture in pictures for face in found_in(on_cpu, [picture])]
    assert sum(len(boxes) for boxes, _ in expected) >= 10
    alone = [face for picture in pictures for face in found_in(on_gpu, [picture])]
    report = parity.examine_faces(expected, alone, found_in(on_gpu, pictures), "float32")
    assert report.passed, report
