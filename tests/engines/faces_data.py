"""Pictures with faces for the tests: photos that scikit-image bundles, and montages of the faces in them."""

from functools import cache
from pathlib import Path

import numpy as np
import skimage
from numpy.typing import NDArray
from PIL import Image

SAMPLES = Path(skimage.__file__).parent / "data"
# Around the heads: left, upper, right, lower.
HEADS = {"astronaut.png": (150, 0, 310, 200), "camera.png": (180, 80, 300, 230)}


@cache
def photo(name: str) -> Image.Image:
    """Return a photo that scikit-image bundles, in RGB."""
    with Image.open(SAMPLES / name) as image:
        return image.convert("RGB")


@cache
def portraits() -> tuple[Image.Image, ...]:
    """Return the hundred faces of scikit-image's subset of Labeled Faces in the Wild, grey, 25 x 25 pixels."""
    faces: NDArray[np.float64] = np.load(SAMPLES / "lfw_subset.npy")[:100]
    return tuple(Image.fromarray(np.uint8(face * 255)).convert("RGB") for face in faces)


def head(index: int) -> Image.Image:
    """Return a picture of a head: two large ones first, then the portraits."""
    large = list(HEADS.items())
    if index < len(large):
        name, box = large[index]
        return photo(name).crop(box)
    return portraits()[index - len(large)]


def montage(
    width: int, height: int, heads: list[tuple[int, int, int, int]], background: str = "coffee.png"
) -> Image.Image:
    """Return a picture with heads (index, left, upper, side in pixels) on a photo; they may reach past its edge."""
    picture = photo(background).resize((width, height))
    for index, left, upper, side in heads:
        face = head(index)
        picture.paste(face.resize((side, round(side * face.height / face.width))), (left, upper))
    return picture


def crowd(seed: int, width: int, height: int, count: int, smallest: int, largest: int) -> Image.Image:
    """Return a montage of `count` heads at seeded places and sides, some of them cut by the borders."""
    rng = np.random.default_rng(seed)
    heads = []
    for index in range(count):
        side = round(float(np.exp(rng.uniform(np.log(smallest), np.log(largest)))))
        left, upper = (
            int(rng.integers(-side // 3, width - side // 2)),
            int(rng.integers(-side // 3, height - side // 2)),
        )
        heads.append((index % 2 if rng.random() < 0.6 else int(rng.integers(2, 102)), left, upper, side))
    return montage(width, height, heads)
