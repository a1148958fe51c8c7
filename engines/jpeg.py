"""JPEGs decoded by libjpeg-turbo straight into one array, at a fraction of their size if that is enough.

Pillow decodes with the same library into memory of its own, four bytes a pixel, from which an array is then copied:
the same pixels in two to three times the time. Knows simplejpeg. What it will not read as it is, damaged files and rare
colour spaces, is left to Pillow (images.py), which has the last word on what is a picture.
"""

import numpy as np
import simplejpeg
from numpy.typing import NDArray

MODES = ("RGB", "L")  # of Pillow, whose pixels are the same here


def decode(data: bytes, width: int, height: int, shortest: int = 0) -> NDArray[np.uint8] | None:
    """Return the pixels (H, W, 3) uint8 RGB of a JPEG of `width` x `height` pixels by its header, None if it is odd.

    H, W are `height`, `width`, or with `shortest` the smallest size of at least that many pixels on both sides that
    the decoder can scale to, in eighths.
    """
    try:
        # By its own reading of the header: memory is made for that size, not for the one that was checked.
        if simplejpeg.decode_jpeg_header(data)[:2] != (height, width):
            return None
        # A side of a few pixels keeps them at any fraction, by rounding up, while the other one shrinks.
        least = shortest if min(height, width) >= shortest else 0  # which is in full
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", min_height=least, min_width=least)
    except ValueError:  # its only error; also what Pillow would forgive, as bytes between two markers
        return None
    return pixels
