"""What int8 is calibrated on: pictures and texts of the user's own choice, or generated ones.

Knows how they are found and read, and how many there should be. Deliberately knows no networks, and nothing of how
ranges are measured. The inputs of the gate must not be among them (subject.py sees to it): ranges that were measured on
them would flatter.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from engines import drawings, images, untrained
from engines.errors import BuildFailed, ImageError

log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]
T = TypeVar("T")

SEED = 20261123
SCENES, PLAIN, FACES = 32, 8, 32
AT_MOST = 64  # pictures or texts of one's own: each takes a second, and more change little
MOST_PIXELS = 200_000_000
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
_LENGTHS = (1, 1, 2, 2, 3, 3, 4, 5, 6, 8, 10, 13, 20, 30, 40, 60)  # of generated texts, in words


def pictures(folder: Path | None) -> list[Pixels]:
    """Return the pictures (H, W, 3) in and under `folder`, evenly chosen if there are many; without one, scenes.

    Raises BuildFailed if there are none that can be read.
    """
    rng = np.random.default_rng(SEED)
    if folder is None:
        return [drawings.scene(rng, 256) for _ in range(SCENES)] + [drawings.plain(rng, 256) for _ in range(PLAIN)]
    found = []
    for path in _some([path for path in sorted(folder.rglob("*")) if path.suffix.lower() in _SUFFIXES]):
        try:
            found.append(images.decode(path.read_bytes(), MOST_PIXELS))
        except (ImageError, OSError) as error:
            log.warning("%s is not calibrated on: %s", path, error)
    if not found:
        raise BuildFailed(f"There is no picture that can be read in {folder}: give a folder of pictures.")
    return found


def texts(file: Path | None) -> list[str]:
    """Return the lines of a UTF-8 `file` that are not empty, and generated texts of all lengths.

    Searches are short, and a text tower runs at several lengths: ranges are needed of all of them. Raises BuildFailed
    if the file cannot be read or has none.
    """
    rng = np.random.default_rng(SEED)
    words = " ".join(untrained.TEXTS).split()
    generated = [*untrained.TEXTS, *(" ".join(rng.choice(words, count)) for count in _LENGTHS)]
    if file is None:
        return generated
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BuildFailed(f"{file} cannot be read ({error}): give a text file in UTF-8, one text per line.") from error
    own = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not own:
        raise BuildFailed(f"There is no text in {file}: give a text file in UTF-8, one text per line.")
    return _some(own) + generated


def faces() -> list[Pixels]:
    """Return generated crops of faces, (160, 160, 3), and a few that are none, since not every crop is one."""
    rng = np.random.default_rng(SEED)
    side = drawings.FACE_SIZE
    return [drawings.face(rng) for _ in range(FACES)] + [drawings.plain(rng, side) for _ in range(PLAIN)]


def _some(found: Sequence[T]) -> list[T]:
    """Return all, or AT_MOST of them, evenly from the first to the last."""
    step = max(1.0, len(found) / AT_MOST)
    return [found[int(i * step)] for i in range(min(len(found), AT_MOST))]
