"""Small right pictures of every format that is served, in the ways that Pillow writes them, for mutations to change.

Knows Pillow's options. Does not know what is done to them (mutations.py), nor who reads them.
"""

import io
import struct
from typing import Any

import numpy as np
from PIL import Image

from engines import images

SIZE = (96, 64)  # large enough for the detector's pyramid, small enough for a thousand of them a minute
KINDS = tuple(kind for kind in images.FORMATS if kind in Image.SAVE)
ICC = b"\0\0\2\x0clcms\2\x10\0\0mntrRGB XYZ " + bytes(500)


def specimens(kind: str) -> list[bytes]:
    """Return right pictures of a format by Pillow's name for it; the first is a plain one."""
    colour = picture()
    grey = colour.convert("L")
    bits = grey.convert("1")
    second = colour.transpose(Image.Transpose.ROTATE_180)
    animated: dict[str, Any] = {"save_all": True, "append_images": [second]}
    metadata = {"exif": exif(6), "icc_profile": ICC}
    made: list[tuple[Image.Image, dict[str, Any]]]
    match kind:
        case "JPEG":
            made = [(colour, {}), (colour, {"progressive": True, "subsampling": 0}), (grey, metadata)]
            made += [(colour.convert("CMYK"), {}), (colour, {"restart_marker_blocks": 3, "comment": b"text"})]
            return [*(encode(image, kind, **options) for image, options in made), encode(colour, "MPO", **animated)]
        case "PNG":
            made = [(colour, {}), (colour.convert("RGBA"), metadata), (transparent(), {}), (deep(), {})]
            made += [(bits, {}), (colour, animated), (grey.convert("LA"), {})]
        case "WEBP":
            made = [(colour, {}), (colour, {"lossless": True}), (colour.convert("RGBA"), metadata), (colour, animated)]
        case "GIF":
            made = [(colour, {}), (transparent(3), {"interlace": 1}), (colour, {**animated, "comment": b"text"})]
            made += [(colour, {**animated, "disposal": 2, "loop": 0}), (grey, {})]
        case "BMP":
            made = [(colour, {}), (transparent(), {}), (bits, {}), (colour.convert("RGBA"), {}), (grey, {})]
        case "TIFF":
            made = [(colour, {}), (deep(), {}), (grey.convert("F"), {}), (transparent(), {})]
            made += [(colour, {"big_tiff": True}), (bits, {"compression": "group4"})]
            made += [(colour.convert("CMYK"), {"compression": "tiff_lzw"})]
            made += [(colour, {"compression": one}) for one in ("tiff_deflate", "packbits", "jpeg", "zstd")]
            made += [(colour, {**animated, "compression": "tiff_adobe_deflate"}), (colour, {"exif": exif(6)})]
            return [*(encode(image, kind, **options) for image, options in made), tiled()]
        case "AVIF":
            made = [(colour, {}), (colour.convert("RGBA"), {"exif": exif(6)}), (grey, {}), (colour, animated)]
            made = [(image, {**options, "speed": 10}) for image, options in made]
        case _:
            made = [(colour, {})]
    return [encode(image, kind, **options) for image, options in made]


def picture() -> Image.Image:
    """Return a smooth coloured picture of SIZE with an edge in it."""
    coarse = np.random.default_rng(20261124).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC)
    image.paste((250, 20, 20), (8, 8, 40, 30))
    return image


def transparent(alphas: bytes | int = bytes(range(256))) -> Image.Image:
    """Return a picture of a palette: how visible each of its colours is, or the one that is not."""
    image = picture().convert("P", palette=Image.Palette.ADAPTIVE)
    image.info["transparency"] = alphas
    return image


def deep() -> Image.Image:
    """Return a grey picture of 16 bits."""
    return Image.fromarray(np.asarray(picture().convert("L")).astype(np.uint16) * 257)


def tiled() -> bytes:
    """Return a grey TIFF of tiles of 32x32 pixels, which Pillow reads and does not write."""
    pixels = np.asarray(picture().convert("L"))
    across, down = SIZE[0] // 32, SIZE[1] // 32
    tiles = pixels.reshape(down, 32, across, 32).transpose(0, 2, 1, 3).tobytes()
    count = across * down
    entries = [(256, 4, 1, SIZE[0]), (257, 4, 1, SIZE[1]), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    entries += [(277, 3, 1, 1), (322, 4, 1, 32), (323, 4, 1, 32)]
    # Behind two more entries, of where tiles lie and how long they are: the numbers, and then the tiles.
    first = 8 + 2 + 12 * (len(entries) + 2) + 4
    begins = [first + 8 * count + 32 * 32 * number for number in range(count)]
    entries += [(324, 4, count, first), (325, 4, count, first + 4 * count)]
    return tiff(entries, struct.pack(f"<{2 * count}I", *begins, *[32 * 32] * count) + tiles)


def tiff(entries: list[tuple[int, int, int, int]], data: bytes = b"") -> bytes:
    """Return a TIFF of one directory of (tag, type, count, value or offset), with `data` behind it."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4) + data


def exif(orientation: int) -> bytes:
    """Return EXIF that says how a picture is to be turned, with a text that is stored outside of its entry."""
    tags = Image.Exif()
    tags[0x0112], tags[0x010E] = orientation, "a description of some length"
    return tags.tobytes()


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Return the picture in a format of Pillow's."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
