"""Faces that two ways found are held to be the same: as many, in the same places, with the same embeddings."""

import numpy as np
import pytest
from numpy.typing import NDArray

from scripts.bench.faces import compare, intersection_over_union
from server.wire import Face

BOXES = np.array([[0, 0, 10, 10], [20, 20, 40, 40]], np.float32)
EMBEDDINGS = np.eye(2, 4, dtype=np.float32)


def ours(boxes: NDArray[np.float32]) -> list[Face]:
    return [Face(box, 0.9, embedding) for box, embedding in zip(boxes, EMBEDDINGS, strict=False)]


def test_what_two_boxes_share_of_what_they_cover() -> None:
    a = np.array([0, 0, 10, 10], np.float32)
    assert intersection_over_union(a, a) == 1
    assert intersection_over_union(a, a + 5) == pytest.approx(25 / 175)
    assert intersection_over_union(a, a + 10) == 0


def test_equal_faces_in_any_order_are_the_same() -> None:
    assert compare(ours(BOXES), BOXES[::-1], 3 * EMBEDDINGS[::-1]) == (1.0, 1.0)


def test_the_worst_face_is_told() -> None:
    moved = BOXES + np.array([[0], [2]], np.float32)
    overlap, cosine = compare(ours(moved), BOXES, EMBEDDINGS)
    assert overlap == pytest.approx(18 * 18 / (2 * 400 - 18 * 18))
    assert cosine == pytest.approx(1.0)
    assert compare(ours(BOXES), BOXES, EMBEDDINGS[::-1])[1] == pytest.approx(0.0)


def test_another_number_of_faces_is_not_the_same() -> None:
    assert compare(ours(BOXES), BOXES[:1], EMBEDDINGS[:1]) == (0.0, 0.0)
    assert compare([], BOXES, EMBEDDINGS) == (0.0, 0.0)
    assert compare([], BOXES[:0], EMBEDDINGS[:0]) == (1.0, 1.0)
