"""Generated pictures, scenes and faces, for where real ones are wanted and none are at hand.

They have the statistics of photos, not their meaning: detail at every scale, hard edges, things in front of others.
Knows nothing of networks.
"""

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance

Pixels = NDArray[np.uint8]

FACE_SIZE = 160  # side of a drawn face in pixels


def scene(rng: Generator, side: int) -> Pixels:
    """Return a picture (side, side, 3): things of all sizes that cover each other and a ground.

    The ground has the amplitudes of natural images, which fall with 1 / frequency (Field, 1987); things that cover each
    other, their sizes scattered as a power, give the edges (Lee, Mumford and Huang, Occlusion models for natural
    images, 2001).
    """
    pixels = rng.uniform(60, 200) + rng.uniform(20, 60) * _ground(rng, side)
    y, x = np.mgrid[:side, :side]
    for _ in range(int(rng.integers(5, 60))):
        radius = 0.02 * side / rng.uniform(0.01, 1) ** 0.5
        across, along = _turned(x - rng.uniform(0, side), y - rng.uniform(0, side), rng.uniform(0, np.pi))
        across, along = across / radius, along / (radius * rng.uniform(0.4, 1))
        round_ = rng.random() < 0.6
        inside = across**2 + along**2 < 1 if round_ else np.maximum(np.abs(across), np.abs(along)) < 1
        below = pixels[inside]
        if len(below):
            colour = rng.uniform(0, 255) + rng.normal(0, 40, 3)
            pixels[inside] = colour + rng.uniform(0, 0.6) * (below - below.mean(axis=0))
    return _levels(pixels + rng.normal(0, rng.uniform(0, 6), pixels.shape))


def plain(rng: Generator, side: int) -> Pixels:
    """Return one colour, or noise between two levels, (side, side, 3): as far from photos as pictures get."""
    low, high = np.sort(rng.integers(0, 256, (2, 3)), axis=0)
    if rng.random() < 0.5:
        high = low
    return rng.integers(low, high, (side, side, 3), dtype=np.uint8, endpoint=True)


def face(rng: Generator) -> Pixels:
    """Return a drawing of a face (160, 160, 3): skin, hair, features, glasses at times, light from one side."""
    image = Image.new("RGB", (FACE_SIZE, FACE_SIZE), _colour(rng, 0, 256))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(0, 6))):
        x, y, r = rng.uniform((0, 0, 10), (FACE_SIZE, FACE_SIZE, 70))
        draw.ellipse((x - r, y - r, x + r, y + r), fill=_colour(rng, 0, 256))

    tone = rng.uniform(0.25, 1)
    skin = tuple(int(level * tone) for level in (245, 205 + rng.uniform(-25, 15), 175 + rng.uniform(-35, 25)))
    dark = tuple(int(level * 0.6) for level in skin)
    hair = tuple(int(level * rng.uniform(0.1, 1)) for level in (220, 180, 120))
    x, y = rng.uniform(70, 90, 2)
    width, height = rng.uniform(42, 60), rng.uniform(58, 78)
    top = y - height * rng.uniform(0.9, 1.25)
    draw.ellipse((x - width * 1.15, top, x + width * 1.15, y + height * rng.uniform(0, 1)), fill=hair)
    draw.rectangle((x - 24, y + height * 0.7, x + 24, FACE_SIZE), fill=dark)
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


def _varied(image: Image.Image, rng: Generator) -> Pixels:
    """Return the image at the recogniser's size with its own brightness, contrast, sharpness, colour and light."""
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    small = round(float(np.exp(rng.uniform(np.log(25), np.log(FACE_SIZE)))))  # as it was in the photo
    image = image.resize((small, small), Image.Resampling.BOX).resize((FACE_SIZE, FACE_SIZE), Image.Resampling.BILINEAR)
    image = ImageEnhance.Color(image).enhance(rng.uniform(0, 1))
    image = ImageEnhance.Contrast(image).enhance(rng.uniform(0.6, 1.4))
    image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.6, 1.3))
    slope = np.linspace(-1, 1, FACE_SIZE) * rng.uniform(-0.4, 0.4)
    levels = np.asarray(image) * (1 + slope)[None, :, None] + rng.normal(
        0, rng.uniform(0, 3), (FACE_SIZE, FACE_SIZE, 1)
    )
    return _levels(levels)


def _colour(rng: Generator, low: int, high: int) -> tuple[int, ...]:
    return tuple(rng.integers(low, high, 3).tolist())


def _ground(rng: Generator, side: int) -> NDArray[np.float64]:
    """Return three channels, alike but not the same, of about unit variance: (side, side, 3)."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = np.inf  # no mean
    real, imaginary = rng.normal(size=(2, 4, *frequency.shape))
    layers = np.fft.irfft2((real + 1j * imaginary) / frequency, (side, side))
    layers /= layers.std(axis=(1, 2), keepdims=True)
    return np.moveaxis(layers[:1] + 0.35 * layers[1:], 0, 2)


def _turned(
    x: NDArray[np.float64], y: NDArray[np.float64], angle: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def _levels(pixels: NDArray[np.float64]) -> Pixels:
    return np.clip(pixels, 0, 255).astype(np.uint8)
