"""The photos that lie in the scikit-image package, with captions: the little of the real world the demo CLIP knows.

Reads files of that package only, so nothing is downloaded. Knows nothing of networks.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
import skimage.data
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

# File, then captions; the first one is what the photo is found by.
CAPTIONS = {
    "astronaut.png": ("a photo of an astronaut", "a woman in an orange space suit", "a smiling astronaut and a flag"),
    "brick.png": ("a brick wall", "a photo of bricks", "a grey wall of bricks"),
    "camera.png": ("a man with a camera", "a photographer with a camera on a tripod", "a photo of a cameraman"),
    "cell.png": ("a cell under a microscope", "a microscope picture of a cell", "a grey cell"),
    "chelsea.png": ("a photo of a cat", "a cat", "the face of a ginger cat", "a tabby cat"),
    "clock_motion.png": ("a blurred clock", "a photo of a clock", "a clock in motion"),
    "coffee.png": ("a cup of coffee", "a photo of a coffee cup and a spoon", "an espresso on a wooden table"),
    "coins.png": ("old coins", "a photo of coins", "rows of Greek coins"),
    "grass.png": ("grass", "a photo of grass", "a lawn from above"),
    "gravel.png": ("gravel", "a photo of gravel", "many small stones"),
    "horse.png": ("the silhouette of a horse", "a horse", "a black and white drawing of a horse"),
    "hubble_deep_field.jpg": ("galaxies in space", "stars and galaxies", "a photo by the Hubble telescope"),
    "ihc.png": ("stained tissue under a microscope", "a brown and blue tissue", "cells of the colon"),
    "moon.png": ("the surface of the moon", "a photo of the moon", "craters on the moon"),
    "motorcycle_left.png": ("a motorcycle", "a photo of a motorcycle in a garage", "a motorbike"),
    "page.png": ("a page of a book", "a scanned page", "a photo of a printed page"),
    "retina.jpg": ("the retina of an eye", "a photo of a retina", "blood vessels in an eye"),
    "rocket.jpg": ("a rocket on a launch pad", "a photo of a rocket", "a rocket at night"),
    "text.png": ("handwritten text", "a photo of handwriting", "formulas written by hand"),
}


@lru_cache(maxsize=len(CAPTIONS))
def photo(name: str) -> Image.Image:
    """Return a photo of scikit-image in RGB, at most 320 pixels at its shortest side."""
    with Image.open(Path(skimage.data.data_dir, name)) as file:
        image = file.convert("RGB")
    share = min(1.0, 320 / min(image.size))
    return image.resize((round(image.width * share), round(image.height * share)), Image.Resampling.BICUBIC)


def augmented(name: str, rng: Generator, size: int) -> NDArray[np.uint8]:
    """Return a random crop of a photo, (size, size, 3), as it is or darker; left and right stay."""
    from engines.preprocess import prepare  # torch, which who wants the photos alone does without

    image = photo(name)
    share = rng.uniform(0.7, 1, 2)
    width, height = image.width * share[0], image.height * share[1]
    left, top = rng.random() * (image.width - width), rng.random() * (image.height - height)
    cropped = image.crop((round(left), round(top), round(left + width), round(top + height)))
    return (prepare(np.array(cropped), size, "shortest") * rng.uniform(0.8, 1.0)).astype(np.uint8)
