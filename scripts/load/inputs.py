"""What load tests send: photos, photos of people, search texts, and the forms around them.

Everything comes from fixed seeds, or from a folder of one's own. Knows JPEG and the form of the protocol; knows no
answers. Imports no torch, which the process that makes the load has no use for.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import orjson
import skimage.data
from PIL import Image

from scripts import scenes
from scripts.bundled_photos import CAPTIONS, photo

SEED = 20261124
QUALITY = 80
SHAPE = 3 / 4  # height of a drawn photo as a share of its width
FACES = (1, 2, 3, 4)  # in photos of people, in turn
PEOPLE = 100  # so many of the 200 pictures in scikit-image's file are faces, the first ones
PICTURES = frozenset(Image.registered_extensions())


def photos(count: int, side: int) -> Iterator[bytes]:
    """Yield `count` JPEGs whose longer side has `side` pixels: the photos of scikit-image, then drawn ones."""
    for name in list(CAPTIONS)[:count]:
        yield jpeg(_scaled(photo(name), side))
    for number in range(count - len(CAPTIONS)):
        yield jpeg(_drawn(number, side))


def people(count: int, side: int) -> Iterator[bytes]:
    """Yield `count` JPEGs with one to four faces each on a drawn photo; no two show the same person up to 100 faces."""
    faces = np.load(Path(skimage.data.data_dir, "lfw_subset.npy"))[:PEOPLE]  # (100, 25, 25) grey levels, 0 to 1
    shown = 0
    for number in range(count):
        picture = _drawn(PEOPLE + number, side)
        rng = np.random.default_rng([SEED, number])
        cells = rng.permutation(max(FACES))[: FACES[number % len(FACES)]]  # quarters of the picture
        for cell in cells:
            face = Image.fromarray((faces[shown % PEOPLE] * 255).astype(np.uint8)).convert("RGB")
            face = face.resize((round(picture.height * rng.uniform(0.25, 0.4)),) * 2, Image.Resampling.BICUBIC)
            left, top = cell % 2 * picture.width // 2, cell // 2 * picture.height // 2
            room = (picture.width // 2 - face.width, picture.height // 2 - face.height)
            picture.paste(face, (left + int(rng.integers(room[0])), top + int(rng.integers(room[1]))))
            shown += 1
        yield jpeg(picture)


def own(folder: Path, count: int, side: int) -> Iterator[bytes]:
    """Yield up to `count` pictures of `folder` as JPEGs whose longer side has at most `side` pixels.

    Raises ValueError if there are not even two: answers could not be told apart.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)[:count]
    if len(paths) < 2:
        raise ValueError(f"{folder} has {len(paths)} pictures: name a folder with two at least.")
    for path in paths:
        with Image.open(path) as file:
            image = file.convert("RGB")
        yield jpeg(_scaled(image, min(side, max(image.size))))


def jpeg(image: Image.Image) -> bytes:
    """Return a picture as photo apps write it."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def different(picture: bytes) -> bytes:
    """Return a JPEG with the same pixels that nobody has ever sent: behind its first marker is a new comment."""
    comment = uuid4().bytes
    return picture[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + picture[2:]


def form(entries: dict[str, Any], field: str, content: bytes) -> tuple[bytes, str]:
    """Return the body and the content type of a form, as Immich's server makes it: `field` is image or text."""
    boundary = f"immich-{uuid4()}"
    file = '; filename="blob"\r\nContent-Type: application/octet-stream' if field == "image" else ""
    before = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="entries"\r\n\r\n{orjson.dumps(entries).decode()}\r\n'
        f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"{file}\r\n\r\n'
    )
    return before.encode() + content + f"\r\n--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def _drawn(number: int, side: int) -> Image.Image:
    return scenes.photo(np.random.default_rng([SEED, number]), side, round(side * SHAPE))


def _scaled(image: Image.Image, side: int) -> Image.Image:
    share = side / max(image.size)
    return image.resize((max(1, round(image.width * share)), max(1, round(image.height * share))))
