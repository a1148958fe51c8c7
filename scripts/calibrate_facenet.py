"""Makes the batch-norm statistics of the untrained recogniser: python -m scripts.calibrate_facenet.

Straight from its initialiser InceptionResnetV1 gives nearly the same vector for every picture, and every comparison
on it would be empty. One pass over drawn faces and real ones, in which each layer takes the mean and variance of what
it sees, pulls them apart. The real ones come from scikit-image's pictures: half of the small portraits, and the heads
in two photos. The other half is left to the tests.
"""

from pathlib import Path

import numpy as np
import safetensors.torch
import skimage
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance
from torch import Tensor, nn

from engines import faces

SAMPLES = Path(skimage.__file__).parent / "data"
HEADS = {"astronaut.png": (180, 65, 270, 185), "camera.png": (205, 100, 275, 190)}  # left, upper, right, lower
SEED = 1
DRAWN = 32
SIDE = faces.CROP_SIZE


def main() -> None:
    """Write the statistics into the package and print how far apart different faces then lie."""
    rng = np.random.default_rng(SEED)
    calibration = np.stack([*(drawn_face(rng) for _ in range(DRAWN)), *real_faces(rng)])
    statistics = calibrate(faces.untrained_state(), torch.from_numpy(calibration))
    target = Path(faces.__file__).parent / faces.STATISTICS
    target.write_bytes(safetensors.torch.save(statistics))
    print(f"{target}: {len(statistics)} tensors, {target.stat().st_size} bytes")

    network = faces.Embedder(faces.build(faces.untrained_state() | statistics))
    fresh = np.stack([drawn_face(rng) for _ in range(DRAWN)])
    for name, crops in (("these faces", calibration), ("faces drawn anew", fresh)):
        with torch.inference_mode():
            print(f"mean cosine between {name}: {mean_cosine(network(torch.from_numpy(crops))):.3f}")


def calibrate(state: dict[str, Tensor], crops: Tensor) -> dict[str, Tensor]:
    """Return mean and variance at each batch norm for weights `state` and crops (B, 160, 160, 3) uint8."""
    network = faces.build(state)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.train()
            module.momentum = 1.0  # take this batch as it is, nothing of what was before
    with torch.inference_mode():
        faces.Embedder(network)(crops)
    return {
        key: value.clone()
        for key, value in network.state_dict().items()
        if key.endswith(("running_mean", "running_var"))
    }


def mean_cosine(embeddings: Tensor) -> float:
    """Return the mean cosine between different rows of `embeddings` (N, D), each of length 1."""
    n = len(embeddings)
    return float(((embeddings @ embeddings.T).sum() - n) / (n * (n - 1)))


def real_faces(rng: Generator) -> list[NDArray[np.uint8]]:
    """Return crops (160, 160, 3) of real faces: every other portrait, and two heads thrice, shifted."""
    portraits: NDArray[np.float64] = np.load(SAMPLES / "lfw_subset.npy")[:100:2]  # (50, 25, 25), 0 to 1
    images = [Image.fromarray(np.uint8(portrait * 255)).convert("RGB") for portrait in portraits]
    for name, (left, upper, right, lower) in HEADS.items():
        with Image.open(SAMPLES / name) as photo:
            for _ in range(3):
                dx, dy = rng.integers(-8, 9, 2).tolist()
                images.append(photo.convert("RGB").crop((left + dx, upper + dy, right + dx, lower + dy)))
    return [np.array(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)) for image in images]


def drawn_face(rng: Generator) -> NDArray[np.uint8]:
    """Return a drawing of a face (160, 160, 3): skin, hair, features, glasses at times, light from one side."""
    image = Image.new("RGB", (SIDE, SIDE), _colour(rng, 0, 256))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(0, 6))):
        x, y, r = rng.uniform((0, 0, 10), (SIDE, SIDE, 70))
        draw.ellipse((x - r, y - r, x + r, y + r), fill=_colour(rng, 0, 256))

    tone = rng.uniform(0.25, 1)
    skin = tuple(int(level * tone) for level in (245, 205 + rng.uniform(-25, 15), 175 + rng.uniform(-35, 25)))
    dark = tuple(int(level * 0.6) for level in skin)
    hair = tuple(int(level * rng.uniform(0.1, 1)) for level in (220, 180, 120))
    x, y = rng.uniform(70, 90, 2)
    width, height = rng.uniform(42, 60), rng.uniform(58, 78)
    top = y - height * rng.uniform(0.9, 1.25)
    draw.ellipse((x - width * 1.15, top, x + width * 1.15, y + height * rng.uniform(0, 1)), fill=hair)
    draw.rectangle((x - 24, y + height * 0.7, x + 24, SIDE), fill=dark)
    draw.ellipse((x - width, y - height * 0.85, x + width, y + height), fill=skin)

    eye, apart, size = y - height * rng.uniform(0.05, 0.25), width * rng.uniform(0.38, 0.52), rng.uniform(5, 10)
    iris = _colour(rng, 10, 130)
    for side in (-1, 1):
        cx = x + side * apart
        draw.ellipse((cx - size * 1.4, eye - size * 0.7, cx + size * 1.4, eye + size * 0.7), fill=(235, 235, 235))
        draw.ellipse((cx - size * 0.6, eye - size * 0.6, cx + size * 0.6, eye + size * 0.6), fill=iris)
        brow = eye - size * rng.uniform(1.3, 2)
        draw.line((cx - size * 1.7, brow, cx + size * 1.7, brow - side * rng.uniform(-3, 3)), fill=hair, width=4)
    if rng.random() < 0.25:
        for cx in (x - apart, x + apart):
            draw.ellipse((cx - 17, eye - 14, cx + 17, eye + 14), outline=_colour(rng, 0, 90), width=3)
        draw.line((x - apart + 17, eye, x + apart - 17, eye), fill=(30, 30, 30), width=3)
    nose, mouth = y + height * rng.uniform(0.15, 0.3), y + height * rng.uniform(0.48, 0.62)
    draw.polygon([(x, eye), (x - rng.uniform(5, 11), nose), (x + rng.uniform(5, 11), nose)], fill=dark)
    wide, open_ = rng.uniform(12, 26), rng.uniform(2, 11)
    draw.ellipse((x - wide, mouth - open_, x + wide, mouth + open_), fill=(int(190 * tone), 60, 65))
    return _varied(image.rotate(rng.uniform(-20, 20), Image.Resampling.BILINEAR), rng)


def _varied(image: Image.Image, rng: Generator) -> NDArray[np.uint8]:
    """Return the image at the recogniser's size with its own brightness, contrast, sharpness, colour and light."""
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    small = round(float(np.exp(rng.uniform(np.log(25), np.log(SIDE)))))  # as it was in the photo
    image = image.resize((small, small), Image.Resampling.BOX).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    image = ImageEnhance.Color(image).enhance(rng.uniform(0, 1))
    image = ImageEnhance.Contrast(image).enhance(rng.uniform(0.6, 1.4))
    image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.6, 1.3))
    slope = np.linspace(-1, 1, SIDE) * rng.uniform(-0.4, 0.4)
    levels = np.asarray(image) * (1 + slope)[None, :, None] + rng.normal(0, rng.uniform(0, 3), (SIDE, SIDE, 1))
    return np.clip(levels, 0, 255).astype(np.uint8)


def _colour(rng: Generator, low: int, high: int) -> tuple[int, ...]:
    return tuple(rng.integers(low, high, 3).tolist())


if __name__ == "__main__":
    main()
