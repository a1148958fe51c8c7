"""Bytes to pixels: which pictures are read, within which limit, and what is said of those that are not.

Knows Pillow, its ways to fail, and what a header tells; how JPEGs are decoded faster is in jpeg.py, what files are
refused for the way they are put together in pieces.py. Deliberately knows no model: neither sizes nor crops nor
normalisation. Pictures come from strangers, so formats are few, sizes are checked by the header before anything is
decoded, and every failure of the decoder becomes one ImageError.
"""

import contextlib
import ctypes
import importlib
import importlib.util
import io
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, _imaging

from engines import jpeg, pieces
from engines.errors import ImageError, ImageTooLarge

Pixels = NDArray[np.uint8]
Size = tuple[int, int]  # width, height in pixels

# Our own limit is checked by the header first, and says which setting to change; Pillow's would warn at half of its
# own limit, and in a server a warning helps nobody.
Image.MAX_IMAGE_PIXELS = None
# Pillow warns of damaged EXIF, odd MPO indexes and the like, and reads the pixels all the same. Filters are global, so
# this one is set once here rather than around each call, where two threads would restore each other's.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

# The plugins register themselves when imported; done here once and not by the first unlucky request.
Image.init()
if importlib.util.find_spec("pillow_heif") is not None:
    importlib.import_module("pillow_heif").register_heif_opener()

# libtiff writes lines to standard error for damaged TIFFs, past the log, up to one for each row. Pillow tells of the
# damage all the same. The symbol is found through the library that links to libtiff; where that is linked statically
# and hidden there is none, and the lines stay.
with contextlib.suppress(AttributeError):
    ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)

# MPO is what many phones write: a JPEG with further pictures behind it, of which the first is taken.
FORMATS = tuple(
    name for name in ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF") if name in Image.OPEN
)

# What Pillow raises on damaged or hostile bytes. Its plugins parse with struct, slices and dictionaries and leave many
# of the errors of those to the caller; asserts guard some of its states.
DECODER_ERRORS = (
    OSError,  # truncated data, broken streams; UnidentifiedImageError is one
    SyntaxError,  # Pillow's word for a malformed header
    ValueError,  # bad sizes, modes and tables; UnicodeDecodeError is one
    EOFError,  # a chunk that ends before its announced length
    ArithmeticError,  # sizes that overflow, rationals divided by zero
    LookupError,  # tags, modes and table entries that are not there
    TypeError,  # tags that hold another type than theirs
    AttributeError,  # parts of a header that never came
    AssertionError,
    RuntimeError,  # what the AVIF decoder reports; NotImplementedError is one
    struct.error,
    zlib.error,
    Image.DecompressionBombError,  # sizes of tiles and frames beyond those of the header
)

# How files begin that are sent often enough by mistake to be called by name: (offset, bytes, name).
_BEGINNINGS = (
    (0, b"\xff\xd8\xff", "a JPEG"),
    (0, b"\x89PNG", "a PNG"),
    (0, b"GIF8", "a GIF"),
    (0, b"BM", "a BMP"),
    (0, b"II*\x00", "a TIFF or a raw photo"),
    (0, b"MM\x00*", "a TIFF or a raw photo"),
    (8, b"WEBP", "a WebP"),
    (4, b"ftypavif", "an AVIF"),
    (4, b"ftyphei", "a HEIC"),
    (4, b"ftypmif1", "a HEIF"),
    (4, b"ftypcrx", "a raw photo"),
    (4, b"ftyp", "a video"),
    (0, b"\x1aE\xdf\xa3", "a video"),
    (0, b"\xff\x0a", "a JPEG XL"),
    (4, b"JXL ", "a JPEG XL"),
    (4, b"jP  ", "a JPEG 2000"),
    (0, b"%PDF", "a PDF"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"<", "markup, such as HTML or SVG"),
    (0, b"{", "JSON"),
)

# The frame in an AVIF may be larger than its header says, up to 268 million pixels and 1.6 GB, and libavif scales it.
# Nothing tells before it is decoded, so one is decoded at a time; its decoder uses all cores for that one.
_AVIF_TURN = threading.Lock()

_ORIENTATION = 0x0112  # the EXIF tag; CIPA DC-008, section 4.6.4
_UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].transpose(1, 0, 2),
    8: lambda pixels: np.rot90(pixels),
}
MOST_EXIF_BYTES = 1 << 20  # more is not looked into; a JPEG has room for 64 KB in one segment
_SIDEWAYS = 5  # from this orientation on width and height change places
_INVERSE = {6: 8, 8: 6}  # of those that are not their own


@dataclass(frozen=True, slots=True)
class Header:
    """What a picture says of itself before it is decoded; sizes in pixels as stored, before any EXIF rotation."""

    format: str
    width: int
    height: int


def probe(data: bytes, max_pixels: int) -> Header:
    """Read the header of a picture and decode nothing.

    Raises ImageTooLarge if it announces more than `max_pixels` pixels, ImageError if it is none that can be read.
    """
    image = _open(data, max_pixels)
    return Header(image.format or "", image.width, image.height)


def decode(data: bytes, max_pixels: int, exif: bool = False) -> Pixels:
    """Return the picture as (H, W, 3) uint8 RGB, as sent, or turned as its EXIF orientation says with `exif`.

    Of animations the first frame. Transparency is dropped, not blended, and all else is converted as Pillow does
    (which is what open_clip's transform does), but for 16-bit grey, which Pillow would clip to white: there the high
    byte is taken, as Pillow itself does for 16-bit colour. Raises ImageTooLarge and ImageError.
    """
    return reduced(data, max_pixels, 0, exif)[0]


def reduced(data: bytes, max_pixels: int, shortest: int, exif: bool = False) -> tuple[Pixels, Size]:
    """Return the picture as `decode` does, and its size in full as width, height.

    A JPEG may come smaller, with at least `shortest` pixels on both sides, which takes less time; 0 is in full. Its
    pixels are then means of those in full, by the decoder's scaled inverse cosine transform.
    """
    image = _open(data, max_pixels)
    try:
        pixels, size, orientation = _read(image, data, shortest, exif)
        if orientation >= _SIDEWAYS:
            size = size[::-1]
        turn = _UPRIGHT.get(orientation)
        return (pixels if turn is None else np.ascontiguousarray(turn(pixels))), size
    except DECODER_ERRORS as error:
        raise ImageError(f"The {image.format} picture is cut off or damaged: send the whole file.") from error
    except MemoryError as error:
        raise ImageError(
            f"The {image.format} picture of {image.width}x{image.height} pixels needs more memory than there is: "
            "send a smaller one."
        ) from error


def _read(image: Image.Image, data: bytes, shortest: int, exif: bool) -> tuple[Pixels, Size, int]:
    """Return pixels, the size in full, and the EXIF orientation that the pixels still have to be turned by."""
    if image.format in ("JPEG", "MPO") and image.mode in jpeg.MODES:
        pixels = jpeg.decode(data, image.width, image.height, shortest)
        if pixels is not None:
            return pixels, image.size, _orientation(image) if exif else 1
    # Pillow turns TIFFs by itself while it loads them, and then forgets their orientation.
    turned = _orientation(image) if image.format == "TIFF" else 1
    with _AVIF_TURN if image.format == "AVIF" else contextlib.nullcontext():
        image.load()
    orientation = _orientation(image) if exif else _INVERSE.get(turned, turned)
    return np.array(_to_rgb(image)), image.size, orientation


def _open(data: bytes, max_pixels: int) -> Image.Image:
    if not data:
        raise ImageError("The image is empty: send the bytes of a picture.")
    pieces.check(data, max_pixels)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (*DECODER_ERRORS, MemoryError) as error:
        raise ImageError(
            f"These bytes cannot be read as a picture, they look like {looks_like(data)}: "
            f"send a whole {', '.join(FORMATS[:-1])} or {FORMATS[-1]}."
        ) from error
    if image.width <= 0 or image.height <= 0:
        raise ImageError(f"The {image.format} picture has no pixels: its header says {image.width}x{image.height}.")
    if image.width * image.height > max_pixels:
        raise ImageTooLarge(
            f"The picture has {image.width}x{image.height} pixels, the limit is {max_pixels}: "
            "send a smaller one, or raise MACHINE_LEARNING_MAX_PIXELS."
        )
    return image


def looks_like(data: bytes) -> str:
    """Return what the first bytes of a file say that it is, in words: "a JPEG", "no picture"."""
    for offset, beginning, name in _BEGINNINGS:
        if data.startswith(beginning, offset):
            return name
    return "no picture"


def _orientation(image: Image.Image) -> int:
    if len(image.info.get("exif", b"")) + len(image.info.get("Raw profile type exif", "")) > MOST_EXIF_BYTES:
        return 1
    orientation: int = image.getexif().get(_ORIENTATION, 1)
    return orientation if orientation in _UPRIGHT else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    # Pillow before 10.3 opens 16-bit grey PNGs in mode I, later ones in I;16; TIFFs come in both byte orders.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        grey = np.asarray(image) >> 8  # (H, W) uint16, or int32 in mode I
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode == "RGB":
        return image
    # A palette with transparency: the colours are the same without it, and Pillow does not warn.
    image.info.pop("transparency", None)
    return image.convert("RGB")
