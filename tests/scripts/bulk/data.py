"""Rows and what they were made with, for tests of the files that hold them."""

from collections.abc import Sequence

import numpy as np

from scripts.bulk.made_with import MadeWith
from scripts.bulk.table import About, Row
from scripts.bulk.walk import Photo
from server.wire import Face
from tests.server.fakes import unit

DIM = 8
WITH = MadeWith(clip="demo", clip_weights="a-hash", resize="native", exif=False)
ABOUT = About(folder="/photos", made_with=WITH, dim=DIM)
WITH_FACES = WITH.model_copy(update={"face": "demo", "face_weights": "another", "min_face": 40, "min_score": 0.7})


def row(number: int, *, modified: int = 1, failure: str | None = None, faces: Sequence[Face] | None = None) -> Row:
    """Return the row of the photo `number`, whose embedding depends on it and on when it was modified."""
    photo = Photo(f"{number}.jpg".encode(), 100 + number, modified)
    if failure is not None:
        return Row(photo, "eager float32 on cpu", failure=failure)
    digest = f"{number:08}{modified:08}".encode()
    return Row(photo, "eager float32 on cpu", (640, 480), digest, unit(number, modified), faces)


def face(number: int) -> Face:
    """Return a face with an embedding of three numbers."""
    return Face(np.arange(4, dtype=np.float32) + number, 0.9, unit(number, length=3))
