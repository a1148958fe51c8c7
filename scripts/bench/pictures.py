"""The pictures that are measured with: generated photos of two sizes, and groups of faces. Kept in the cache folder.

Knows JPEG as cameras and photo apps write it. Everything comes from fixed seeds, so that all runs see the same.
"""

import io
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from scripts import scenes
from scripts.bench.show import tell

PHOTOS = 64
PREVIEW = (1440, 1080)
ORIGINAL = (4000, 3000)
MAX_PIXELS = 200_000_000  # far more than any of them has
QUALITY = 80
ORIGINAL_QUALITY = 88
SEED = 20261123
FACE_SIDES = (24, 300)  # of the faces in groups, in pixels
TRIES = 400  # to find a place for a face where none is yet


def photo_paths(cache: Path, count: int = PHOTOS) -> list[Path]:
    """Return generated photos as JPEGs of 1440x1080 pixels, of 200 to 400 KB."""
    paths = [cache / "photos" / f"{seed}.jpg" for seed in range(count)]
    for seed, path in enumerate(paths):
        _kept(path, partial(_photo, seed, PREVIEW))
    return paths


def photos(cache: Path, count: int = PHOTOS) -> list[bytes]:
    """Return the bytes of them."""
    return [path.read_bytes() for path in photo_paths(cache, count)]


def original(cache: Path) -> bytes:
    """Return a generated photo as a JPEG of 12 megapixels and about 2.5 MB."""
    return _kept(cache / "photos" / "original.jpg", partial(_photo, 0, ORIGINAL, ORIGINAL_QUALITY))


def group(cache: Path, faces: int, size: tuple[int, int] = PREVIEW, smallest: int = FACE_SIDES[0]) -> bytes:
    """Return a generated photo of `size` with `faces` faces of `smallest` to 300 pixels as a JPEG.

    All are one face from scikit-image's pictures, in different sizes.
    """
    width, height = size
    path = cache / "photos" / f"group-{faces}-{width}x{height}-{smallest}.jpg"
    return _kept(path, lambda: _jpeg(montage(faces, size, smallest)))


def montage(faces: int, size: tuple[int, int], smallest: int) -> Image.Image:
    """Return the picture of `group`."""
    import skimage.data

    rng = np.random.default_rng([SEED, faces])
    canvas = scenes.photo(rng, *size)
    with Image.open(Path(skimage.data.data_dir, "astronaut.png")) as file:
        face = file.convert("RGB").crop((150, 0, 300, 200))
    taken: list[tuple[int, int, int, int]] = []
    # Small ones are many, as in photos of groups. The largest comes first, while there is room.
    largest = min(FACE_SIDES[1], min(size) // 3)
    for share in np.linspace(1, 0, faces):
        side = round(smallest * (largest / smallest) ** share**3)
        tile = face.resize((side * 3 // 2, side * 2))  # the face itself fills two thirds of the crop's width
        place = _free(rng, tile.size, size, taken)
        canvas.paste(tile, place[:2])
        taken.append(place)
    return canvas


def _free(
    rng: np.random.Generator, tile: tuple[int, int], size: tuple[int, int], taken: Sequence[tuple[int, int, int, int]]
) -> tuple[int, int, int, int]:
    """Return a box for `tile` that overlaps none of `taken`; raises ValueError if none is found."""
    for _ in range(TRIES):
        left, top = (int(rng.integers(0, whole - part)) for whole, part in zip(size, tile, strict=True))
        right, bottom = left + tile[0], top + tile[1]
        if all(right <= x1 or x2 <= left or bottom <= y1 or y2 <= top for x1, y1, x2, y2 in taken):
            return left, top, right, bottom
    raise ValueError(f"{size[0]}x{size[1]} pixels have no room for {len(taken) + 1} faces: ask for fewer")


def _photo(seed: int, size: tuple[int, int], quality: int = QUALITY) -> bytes:
    return _jpeg(scenes.photo(np.random.default_rng([SEED, seed]), *size), quality)


def _jpeg(image: Image.Image, quality: int = QUALITY) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, subsampling=0)  # 4:4:4
    return file.getvalue()


def _kept(path: Path, make: Callable[[], bytes]) -> bytes:
    """Return what lies at `path`, made first if nothing does."""
    if path.exists():
        return path.read_bytes()
    tell(f"draws {path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    data = make()
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_bytes(data)
    draft.replace(path)  # whole or not at all
    return data
