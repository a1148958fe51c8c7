"""Whether an answer is right: its length, its norm, and that it is nearer to what this input gets than to all others.

What is right was answered by the same server when each input came alone. Knows the protocol's JSON; does not know how
answers come.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

Vector = NDArray[np.float32]

NORM_OFF = 1e-3  # from 1, at most
BOX_OFF = 3  # pixels that a side of a face may move when others ride along: boxes are rounded to whole ones


class WrongAnswer(Exception):
    """An answer that is not what its input gets; says how it differs, in one of few sentences, which are counted."""


@dataclass(frozen=True, slots=True)
class Face:
    """One face of an answer: its box (x1, y1, x2, y2) in pixels, and the vector of whom it shows."""

    box: tuple[float, float, float, float]
    vector: Vector


class Vectors:
    """The vectors that inputs get, (N, dim), and the least cosine of an answer to its own."""

    def __init__(self, right: Sequence[Vector], least: float) -> None:
        """Raises WrongAnswer if all are one vector: answers could then not be told apart."""
        self._right = np.stack(right)
        self._least = least
        if len(right) > 1 and (self._right @ self._right.T).min() >= least:
            raise WrongAnswer(f"all {len(right)} inputs get nearly the same vector")

    def check(self, vector: Vector, number: int) -> None:
        """Raise WrongAnswer unless `vector` is that of input `number`."""
        cosines = self._right @ vector
        nearest = int(cosines.argmax())
        told_apart = float(self._right[nearest] @ self._right[number]) < self._least
        if cosines[nearest] > cosines[number] and told_apart:
            raise WrongAnswer("it is nearer to the vector of another input than to its own")
        if cosines[number] < self._least:
            raise WrongAnswer(f"its cosine to what the input gets alone is below {self._least:g}")


class People:
    """The faces that photos get, and the least cosine of each to its own."""

    def __init__(self, right: Sequence[Sequence[Face]], least: float) -> None:
        """Raises WrongAnswer if there is no face in any photo, or if all have one vector."""
        self._right = right
        self._first = np.cumsum([0, *(len(faces) for faces in right)])
        vectors = [face.vector for faces in right for face in faces]
        if not vectors:
            raise WrongAnswer("no photo has a face")
        self._vectors = Vectors(vectors, least)

    def check(self, faces: Sequence[Face], number: int) -> None:
        """Raise WrongAnswer unless `faces` are those of photo `number`."""
        right = self._right[number]
        if len(faces) != len(right):
            raise WrongAnswer("it has more or fewer faces than the photo has alone")
        for place, own in enumerate(right):
            nearest = min(faces, key=lambda face: _off(face, own))
            if _off(nearest, own) > BOX_OFF:
                raise WrongAnswer("a face is not where it is when the photo comes alone")
            self._vectors.check(nearest.vector, int(self._first[number]) + place)


def clip_vector(answer: bytes, dim: int) -> Vector:
    """Return the vector of an answer; raises WrongAnswer unless it has `dim` finite numbers and the length 1."""
    return _vector(_object(answer).get("clip"), dim)


def faces(answer: bytes, dim: int) -> list[Face]:
    """Return the faces of an answer; raises WrongAnswer as `clip_vector` does, for each of them."""
    listed = _object(answer).get("facial-recognition")
    if not isinstance(listed, list):
        raise WrongAnswer("it has no list of faces")
    try:
        return [Face(_box(one["boundingBox"]), _vector(one["embedding"], dim)) for one in listed]
    except (KeyError, TypeError, ValueError) as error:
        raise WrongAnswer("a face has no box, or no vector") from error


def _object(answer: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(answer)
    except orjson.JSONDecodeError as error:
        raise WrongAnswer("it is no JSON") from error
    if not isinstance(value, dict):
        raise WrongAnswer("it is no JSON object")
    return value


def _vector(value: Any, dim: int) -> Vector:
    """Return a vector that stands in an answer as a string of JSON, or as a list for older clients."""
    try:
        vector = np.asarray(orjson.loads(value) if isinstance(value, str) else value, np.float32)
    except (ValueError, TypeError) as error:
        raise WrongAnswer("a vector is no list of numbers") from error
    if vector.shape != (dim,):
        raise WrongAnswer(f"a vector has not {dim} numbers")
    norm = float(np.linalg.norm(vector))
    if not abs(norm - 1) <= NORM_OFF:  # also true of NaN
        raise WrongAnswer("a vector has not the length 1")
    return vector


def _box(box: dict[str, Any]) -> tuple[float, float, float, float]:
    return float(box["x1"]), float(box["y1"]), float(box["x2"]), float(box["y2"])


def _off(one: Face, other: Face) -> float:
    """Return by how many pixels two boxes differ at the side where they differ most."""
    return max(abs(a - b) for a, b in zip(one.box, other.box, strict=True))
