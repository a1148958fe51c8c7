"""A decoded picture to the square of pixels that a CLIP picture tower takes.

Knows how torchvision rounds sizes and offsets and in which order Pillow resamples, and computes only the window that
the crop keeps. Deliberately knows neither mean nor std (they are inside the network) nor any model's name.

open_clip's transform resizes the whole picture and then crops: on a strip of 20000x1 pixels it makes a picture of
4480000x224 first. To get its pixels from the window alone, two things must agree with it. Pillow resamples in two
passes with 8 bits in between, so their order shows in the result. And it takes the window in float32.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engines.catalog import ResizeMode

Size = tuple[int, int]  # width, height in pixels
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels, with fractions

BICUBIC = Image.Resampling.BICUBIC
BICUBIC_REACH = 2  # source pixels on each side of an output pixel's centre, times the scale when shrinking
# How many output pixels beyond the crop an edge of the window may lie, to fall where float32 errs least.
_SLACK = 8
# A picture that is to be enlarged is small: up to this aspect ratio all of it is resampled, without any window.
_STRIP = 8


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


def prepare(image: Image.Image, size: int, mode: ResizeMode, floor_offset: bool = False) -> NDArray[np.uint8]:
    """Resize and crop an RGB picture; returns (size, size, 3) uint8.

    Equal to open_clip's `image_transform` before its ToTensor (Pillow's bicubic filter with antialiasing), within one
    level in rare pixels.
    """
    crop = plan(image.width, image.height, size, mode, floor_offset)
    strip = max(crop.resized) > _STRIP * size
    if crop.resized == (size, size) or (crop.resized[0] > image.width and not strip):
        resized = image.resize(crop.resized, BICUBIC)
        return np.array(resized.crop((crop.left, crop.top, crop.left + size, crop.top + size)))

    landscape = crop.resized[0] > crop.resized[1]
    source, scaled = (image.width, crop.resized[0]) if landscape else (image.height, crop.resized[1])
    offset = crop.left if landscape else crop.top
    rows_first = _rows_first(image.size, crop.resized)
    near = (0, source)
    if strip or rows_first != _rows_first(image.size, (size, size)):
        near = _reach(offset, size, source, scaled)
        image = image.crop((near[0], 0, near[1], image.height) if landscape else (0, near[0], image.width, near[1]))
    first, last = _edges(offset, size, source, scaled, near[0])
    start, stop = first * source / scaled - near[0], last * source / scaled - near[0]
    lead = offset - first
    if landscape:
        resized = _resize(image, (last - first, size), (start, 0.0, stop, image.height), rows_first)
        return np.array(resized.crop((lead, 0, lead + size, size)))
    resized = _resize(image, (size, last - first), (0.0, start, image.width, stop), rows_first)
    return np.array(resized.crop((0, lead, size, lead + size)))


def _offset(spare: int, floor: bool) -> int:
    return spare // 2 if floor else round(spare / 2.0)


def _reach(offset: int, size: int, source: int, scaled: int) -> tuple[int, int]:
    # The pixels of the longer side that the window can read, edges included.
    scale = source / scaled
    reach = int(BICUBIC_REACH * max(1.0, scale)) + 2
    first, last = int((offset - _SLACK) * scale), int((offset + size + _SLACK) * scale)
    return max(0, first - reach), min(source, last + reach)


def _edges(offset: int, size: int, source: int, scaled: int, origin: int) -> tuple[int, int]:
    # The edges of the window in the resized picture. Pillow holds their positions in the source (counted from
    # `origin`) as float32, and the difference of the two as well: those edges at hand are taken that lose least by it.
    first = np.arange(max(0, offset - _SLACK), offset + 1)[:, None]
    last = np.arange(offset + size, min(scaled, offset + size + _SLACK) + 1)[None, :]
    start, stop = first * source / scaled - origin, last * source / scaled - origin
    start32, stop32 = start.astype(np.float32), stop.astype(np.float32)
    error = np.maximum(np.abs(start32 - start), np.abs(start32 + (stop32 - start32).astype(np.float64) - stop))
    best = np.unravel_index(np.argmin(error), error.shape)
    return int(first[best[0], 0]), int(last[0, best[1]])


def _resize(image: Image.Image, size: Size, box: Box, rows_first: bool) -> Image.Image:
    # One pass at a time where Pillow would take them in the other order.
    if rows_first == _rows_first(image.size, size):
        return image.resize(size, BICUBIC, box=box)
    left, top, right, bottom = box
    if rows_first:
        rows = image.resize((image.width, size[1]), BICUBIC, box=(0, top, image.width, bottom))
        return rows.resize(size, BICUBIC, box=(left, 0, right, size[1]))
    columns = image.resize((size[0], image.height), BICUBIC, box=(left, 0, right, image.height))
    return columns.resize(size, BICUBIC, box=(0, top, size[0], bottom))


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
