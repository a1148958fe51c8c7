"""A decoded picture to the square of pixels that a CLIP picture tower takes.

Knows how torchvision rounds sizes and offsets, and how Pillow resamples. Deliberately knows neither mean nor std (they
are inside the network) nor any model's name.

Pictures are resized by torch's uint8 kernel, which does Pillow's arithmetic with weights of 16 bits and eight to ten
times as fast: no pixel differs by more than one level (mean on photos 0.003), as the tests of this module measure.
What shrinks little or grows goes through Pillow, since torch is then two levels off here and there.

open_clip's transform resizes the whole picture and then crops: on a strip of 20000x1 pixels it makes a picture of
4480000x224 first. Of strips only the window that the crop keeps is computed here, by Pillow's own arithmetic: its
`box` argument takes the window in float32, which moves some pixels by more than a level.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from engines.catalog import ResizeMode

Size = tuple[int, int]  # width, height in pixels
Pixels = NDArray[np.uint8]

BICUBIC = Image.Resampling.BICUBIC
# Pictures up to this aspect ratio are resized as a whole, which is faster than the window computed here.
STRIP = 8
# Both sides shrink at least so much where torch does it: below 2.3 one pixel in a million was two levels off.
_BY_TORCH = 2.5
# Pillow's arithmetic (src/libImaging/Resample.c): the cubic filter of Keys (1981) with a = -0.5 reaches two pixels, or
# two pixels of the target when shrinking; weights are integers with 22 bits of fraction; each pass ends in 8 bits.
_REACH = 2.0
_KEYS_A = -0.5
_FRACTION_BITS = 22


@dataclass(frozen=True, slots=True)
class Crop:
    """A resize and the square that is kept of it: the resized size, and the offset of the square in it, in pixels."""

    resized: Size
    left: int
    top: int


def plan(width: int, height: int, size: int, mode: ResizeMode, floor_offset: bool = False) -> Crop:
    """Return what open_clip's transform does to a picture of `width` x `height` pixels.

    "squash" scales both sides to `size`. "shortest" scales the shorter side to `size` and keeps the centre of the
    longer one: torchvision's Resize cuts the scaled length down to whole pixels, its CenterCrop rounds the offset half
    to even. With `floor_offset` the offset is cut down too, as the reference deployment of the protocol does.
    """
    if mode == "squash":
        return Crop((size, size), 0, 0)
    if width <= height:
        resized = (size, int(size * height / width))
        return Crop(resized, 0, _offset(resized[1] - size, floor_offset))
    resized = (int(size * width / height), size)
    return Crop(resized, _offset(resized[0] - size, floor_offset), 0)


def prepare(pixels: Pixels, size: int, mode: ResizeMode, floor_offset: bool = False) -> Pixels:
    """Resize and crop a picture (H, W, 3) uint8 RGB; returns (size, size, 3) uint8.

    Within one level of open_clip's `image_transform` before its ToTensor (Pillow's bicubic filter with antialiasing).
    """
    height, width = pixels.shape[:2]
    crop = plan(width, height, size, mode, floor_offset)
    if max(crop.resized) > STRIP * size:
        return _window(pixels, crop, size)
    shrinks = min(width / crop.resized[0], height / crop.resized[1]) >= _BY_TORCH
    resized = _by_torch(pixels, crop.resized) if shrinks else _by_pillow(pixels, crop.resized)
    return np.ascontiguousarray(resized[crop.top : crop.top + size, crop.left : crop.left + size])


def _by_torch(pixels: Pixels, target: Size) -> Pixels:
    width, height = target
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None]  # (1, 3, H, W), channels last in memory: the fast way
    if _rows_first((pixels.shape[1], pixels.shape[0]), target):
        planes = _bicubic(planes, height, pixels.shape[1])
    shrunk: Pixels = _bicubic(planes, height, width)[0].permute(1, 2, 0).numpy()
    return shrunk


def _bicubic(planes: Tensor, height: int, width: int) -> Tensor:
    return functional.interpolate(planes, (height, width), mode="bicubic", antialias=True)


def _by_pillow(pixels: Pixels, target: Size) -> Pixels:
    return np.asarray(Image.fromarray(pixels).resize(target, BICUBIC))


def _offset(spare: int, floor: bool) -> int:
    return spare // 2 if floor else round(spare / 2.0)


def _window(pixels: Pixels, crop: Crop, size: int) -> Pixels:
    """Return the square of `crop` without the rest of the resized picture."""
    height, width = pixels.shape[:2]
    columns = _Weights.of(width, crop.resized[0], crop.left, size)
    rows = _Weights.of(height, crop.resized[1], crop.top, size)
    part = pixels[rows.low : rows.high, columns.low : columns.high]
    if _rows_first((width, height), crop.resized):
        return columns.apply(rows.apply(part, axis=0), axis=1)
    return rows.apply(columns.apply(part, axis=1), axis=0)


@dataclass(frozen=True, slots=True)
class _Weights:
    """Of which source pixels, by which weights, each of some target pixels of one axis is made.

    Target pixel i is made of the pixels `starts[i]` and following, by the integers `weights[i]`. `low` and `high` bound
    all of them, the latter exclusive.
    """

    starts: list[int]
    weights: list[NDArray[np.int64]]
    low: int
    high: int

    @classmethod
    def of(cls, source: int, scaled: int, first: int, count: int) -> "_Weights":
        """Return those of the target pixels from `first` on, where `source` pixels are scaled to `scaled`."""
        scale = source / scaled
        stretch = max(scale, 1.0)
        starts, weights = [], []
        for target in range(first, first + count):
            centre = (target + 0.5) * scale
            start = max(0, int(centre - _REACH * stretch + 0.5))
            stop = min(source, int(centre + _REACH * stretch + 0.5))
            cubic = _keys((np.arange(start, stop, dtype=np.float64) - centre + 0.5) / stretch)
            cubic = cubic / cubic.sum() * (1 << _FRACTION_BITS)
            starts.append(start)
            weights.append(np.trunc(cubic + np.copysign(0.5, cubic)).astype(np.int64))
        ends = [start + len(weight) for start, weight in zip(starts, weights, strict=True)]
        return cls(starts, weights, min(starts), max(ends))

    def apply(self, pixels: Pixels, axis: int) -> Pixels:
        """Resample the axis of `pixels` that begins with source pixel `low`."""
        along = np.moveaxis(pixels, axis, -1).astype(np.int64)
        targets = [
            along[..., start - self.low : start - self.low + len(weight)] @ weight
            for start, weight in zip(self.starts, self.weights, strict=True)
        ]
        levels = (np.stack(targets, axis=-1) + (1 << (_FRACTION_BITS - 1))) >> _FRACTION_BITS
        return np.ascontiguousarray(np.moveaxis(levels.clip(0, 255).astype(np.uint8), -1, axis))


def _keys(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x, a = np.abs(x), _KEYS_A
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < _REACH, far, 0.0))


def _rows_first(source: Size, target: Size) -> bool:
    """Whether Pillow resamples the rows first: never before Pillow 13, then if they shrink by much more.

    The rule was found by comparing `resize` with its two passes one by one; the test of this module does so again.
    """
    shrink_x, shrink_y = source[0] - target[0], source[1] - target[1]
    return _PILLOW_CHOOSES and shrink_y > max(0, 2 * shrink_x)


def _pillow_chooses() -> bool:
    # A picture whose passes do not commute, since the first of them overshoots and is cut to 0..255.
    picture = Image.fromarray(np.array([[0, 255, 0, 255], [255, 0, 255, 0], [0, 0, 255, 255]] * 4, dtype=np.uint8))
    rows_first = picture.resize((picture.width, 5), BICUBIC).resize((7, 5), BICUBIC)
    return picture.resize((7, 5), BICUBIC).tobytes() == rows_first.tobytes()


_PILLOW_CHOOSES = _pillow_chooses()
