"""Which answers are wrong, and that right ones are not."""

from typing import Any

import numpy as np
import orjson
import pytest

from scripts.load.answers import Face, People, Vector, Vectors, WrongAnswer, clip_vector, faces
from tests.server.fakes import unit

DIM = 8
LEAST = 0.99
RIGHT = [unit("photo", number) for number in range(5)]


def near(vector: Vector, cosine: float) -> Vector:
    """Return a unit vector with that cosine to `vector`."""
    other = unit("aside")
    aside = other - (other @ vector) * vector
    return np.asarray(cosine * vector + np.sqrt(1 - cosine**2) * aside / np.linalg.norm(aside), np.float32)


def listed(vector: Vector) -> str:
    return orjson.dumps(vector.tolist()).decode()


@pytest.mark.parametrize("as_string", [True, False])
def test_a_vector_is_read_in_both_of_its_forms(as_string: bool) -> None:
    value: Any = listed(RIGHT[0]) if as_string else RIGHT[0].tolist()
    assert np.array_equal(clip_vector(orjson.dumps({"clip": value}), DIM), RIGHT[0])


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"no JSON", "no JSON"),
        (b"[1]", "no JSON object"),
        (b"{}", "has not 8 numbers"),
        (b'{"clip": "x"}', "no list of numbers"),
        (b'{"clip": {"a": 1}}', "no list of numbers"),
        (orjson.dumps({"clip": listed(unit("short", length=7))}), "has not 8 numbers"),
        (orjson.dumps({"clip": listed(RIGHT[0] * np.float32(1.01))}), "length 1"),
        (orjson.dumps({"clip": "[" + ",".join(["null"] * 8) + "]"}), "length 1"),
    ],
)
def test_what_is_no_vector_of_that_length_and_norm_is_wrong(answer: bytes, why: str) -> None:
    with pytest.raises(WrongAnswer, match=why):
        clip_vector(answer, DIM)


def test_an_answer_near_its_own_is_right_and_one_farther_away_or_of_another_input_is_wrong() -> None:
    vectors = Vectors(RIGHT, LEAST)
    vectors.check(near(RIGHT[2], 0.9999), 2)
    with pytest.raises(WrongAnswer, match=r"below 0\.99"):
        vectors.check(near(RIGHT[2], 0.985), 2)
    with pytest.raises(WrongAnswer, match="another input"):
        vectors.check(RIGHT[3], 2)


def test_inputs_with_the_same_vector_are_not_held_against_each_other() -> None:
    """Two photos of one thing may be nearer to each other than the noise."""
    twins = [*RIGHT, near(RIGHT[2], 0.9999)]
    Vectors(twins, LEAST).check(twins[-1], 2)


def test_where_all_inputs_have_one_vector_nothing_can_be_checked() -> None:
    with pytest.raises(WrongAnswer, match="all 3 inputs"):
        Vectors([near(RIGHT[0], cosine) for cosine in (1, 0.9999, 0.9998)], LEAST)


def face(number: int, left: float = 0) -> Face:
    return Face((left, 10, left + 50, 70), RIGHT[number])


def test_faces_are_read_with_their_boxes() -> None:
    box = {"x1": 1, "y1": 10, "x2": 51, "y2": 70}
    answer = {"facial-recognition": [{"boundingBox": box, "embedding": listed(RIGHT[4]), "score": 0.9}]}
    read = faces(orjson.dumps(answer), DIM)[0]
    assert list(read.box) == [1, 10, 51, 70]
    assert np.array_equal(read.vector, RIGHT[4])


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({}, "no list of faces"),
        ({"facial-recognition": [{"score": 1}]}, "no box"),
        ({"facial-recognition": [{"boundingBox": {"x1": 1}, "embedding": listed(RIGHT[0])}]}, "no box"),
    ],
)
def test_what_is_no_list_of_faces_is_wrong(answer: Any, why: str) -> None:
    with pytest.raises(WrongAnswer, match=why):
        faces(orjson.dumps(answer), DIM)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ([face(0)], "more or fewer"),
        ([face(0), face(1, 100), face(2, 200)], "more or fewer"),
        ([face(0), face(1, 104)], "not where"),
        ([face(1), face(0, 100)], "another input"),
        ([face(0), face(3, 100)], "another input"),
    ],
)
def test_faces_of_another_number_place_or_person_are_wrong(answer: list[Face], why: str) -> None:
    people = People([[face(0), face(1, 100)], [], [face(2), face(3, 100), face(4, 200)]], LEAST)
    people.check([face(1, 102), face(0)], 0)  # their order and a pixel mean nothing
    people.check([], 1)
    with pytest.raises(WrongAnswer, match=why):
        people.check(answer, 0)


def test_photos_without_any_face_check_nothing_and_are_refused() -> None:
    with pytest.raises(WrongAnswer, match="no photo has a face"):
        People([[], []], LEAST)
