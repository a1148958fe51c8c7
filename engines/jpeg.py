"""JPEGs decoded by libjpeg-turbo straight into one array, at a fraction of their size if that is enough.

Pillow decodes with the same library into memory of its own, four bytes a pixel, from which an array is then copied:
the same pixels in two to three times the time. Knows simplejpeg. What it will not read as it is, damaged files and rare
colour spaces, is left to Pillow (images.py), which has the last word on what is a picture.
"""

import numpy as np
import simplejpeg
from numpy.typing import NDArray

MODES = ("RGB", "L")  # of Pillow, whose pixels are the same here
# What the decoder scales by in the time of a full decode or less. It knows all eighths, but for the others it has no
# vector code: 12 megapixels took 39 ms in full, 65 ms at 7/8, 31 ms at 3/8, and 21 ms at 1/2.
FACTORS = (8, 4, 2)


def decode(data: bytes, width: int, height: int, shortest: int = 0) -> NDArray[np.uint8] | None:
    """Return the pixels (H, W, 3) uint8 RGB of a JPEG of `width` x `height` pixels by its header, None if it is odd.

    H, W are `height`, `width`, or with `shortest` a half, a quarter or an eighth of them, rounded up: the smallest that
    keeps at least so many pixels on both sides, if there is one.
    """
    factor = next((one for one in FACTORS if shortest and min(width, height) >= one * shortest), 1)
    size = -(-height // factor), -(-width // factor)
    try:
        # By its own reading of the header: memory is made for that size, not for the one that was checked.
        if simplejpeg.decode_jpeg_header(data)[:2] != (height, width):
            return None
        # The decoder takes the smallest of its scales that has so many pixels.
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", min_height=size[0], min_width=size[1])
    except ValueError:  # its only error; also what Pillow would forgive, as bytes between two markers
        return None
    return pixels if pixels.shape == (*size, 3) else None
