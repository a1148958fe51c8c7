"""Files made to harm those who open them: bombs, floods of empty pieces, sizes of nothing."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from scripts.endure.specimens import encode, tiff

MANY = 120_000  # pieces: seconds of work for a reader that takes them all

GREY = 0x0100, 0x0101, 0x0102, 0x0103, 0x0106, 0x0115  # tags of a TIFF: sizes, depth, packing, meaning, samples


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int = 8,
    height: int = 8,
    before: bytes = b"",
    after: bytes = b"",
    data: bytes = b"",
    kind: int = 0,
    bits: int = 8,
) -> bytes:
    """Return a PNG with further chunks before and after its pixels; `data` are those, unpacked."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(data or bytes(9 * 8)))
    return b"\x89PNG\r\n\x1a\n" + header + before + pixels + after + chunk(b"IEND")


def jpeg(behind_start: bytes = b"", **options: object) -> bytes:
    """Return a JPEG of 64x64 pixels with `behind_start` behind its first marker."""
    data = encode(Image.new("RGB", (64, 64), (10, 200, 30)), "JPEG", **options)
    return data[:2] + behind_start + data[2:]


def segment(marker: int, data: bytes) -> bytes:
    """Return a segment of a JPEG."""
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data


def scans(count: int) -> bytes:
    """Return a progressive JPEG with `count` scans: its last one over and over."""
    data = jpeg(progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + b"\xff\xd9"


def gif(
    frame: tuple[int, int, int, int], before: bytes = b"", disposal: int = 0, size: tuple[int, int] = (8, 8)
) -> bytes:
    """Return a GIF of `size` whose frame lies at left, top with width, height, and other blocks before it."""
    control = b"!\xf9\x04" + bytes([disposal << 2, 0, 0, 0, 0])
    screen = b"GIF89a" + struct.pack("<HH", *size) + b"\x80\0\0" + b"\0\0\0\xff\xff\xff"
    return screen + before + control + b"," + struct.pack("<4H", *frame) + b"\0\x02\x02\x4c\x01\0;"


def bmp_runs(width: int, height: int) -> bytes:
    """Return a BMP in runs of 8 bits, of rows that end where they begin."""
    header = struct.pack("<IiiHHIIIIII", 40, width, height, 1, 8, 1, 0, 0, 0, 256, 0)
    rows = b"\1\0\0\0" * height + b"\0\1"
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 54 + 1024) + header + bytes(range(256)) * 4 + rows


def grey_tiff(*entries: tuple[int, int, int, int], packing: int = 1, side: int = 8, data: bytes = b"") -> bytes:
    """Return a grey TIFF of side x side pixels with further entries, sorted, and data behind its directory."""
    values = (side, side, 8, packing, 1, 1)
    own = [(tag, 3, 1, value) for tag, value in zip(GREY, values, strict=True)]
    return tiff(sorted([*own, *entries]), data)


def behind_directory(entries: int) -> int:
    """Return where the data of a `grey_tiff` with so many further entries begins."""
    return 8 + 2 + 12 * (len(GREY) + entries) + 4


def webp(canvas: tuple[int, int]) -> bytes:
    """Return an animated WebP with a canvas of `canvas` pixels and one frame of 64x64 on it."""
    frame = encode(Image.new("RGB", (64, 64)), "WEBP", lossless=True)[12:]
    sides = b"".join(struct.pack("<I", side - 1)[:3] for side in canvas)
    whole = bytes(6) + struct.pack("<I", 63)[:3] * 2 + bytes(4) + frame
    body = b"".join(
        name + struct.pack("<I", len(data)) + data
        for name, data in ((b"VP8X", b"\x02\0\0\0" + sides), (b"ANIM", bytes(6)), (b"ANMF", whole))
    )
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def resized(data: bytes, size: tuple[int, int]) -> bytes:
    """Return the file of a picture with another size in its header, whatever lies behind it; raises ValueError."""
    width, height = size
    out = bytearray(data)
    if data.startswith(b"\x89PNG"):
        out[16:24] = struct.pack(">II", width, height)
        out[29:33] = struct.pack(">I", zlib.crc32(out[12:29]))
    elif data.startswith(b"\xff\xd8"):
        frame = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
        out[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    elif data.startswith(b"GIF8"):
        out[6:10] = struct.pack("<HH", width, height)
        frame = data.index(b",", 13 + (3 << (data[10] & 7) + 1 if data[10] & 128 else 0))
        out[frame + 5 : frame + 9] = struct.pack("<HH", width, height)
    elif data.startswith(b"BM"):
        out[18:26] = struct.pack("<II", width, height)
    elif data.startswith(b"II*\0"):
        (directory,) = struct.unpack_from("<I", data, 4)
        for entry in range(directory + 2, directory + 2 + 12 * data[directory], 12):
            if (tag := struct.unpack_from("<H", data, entry)[0]) in (256, 257):
                out[entry + 2 : entry + 12] = struct.pack("<HII", 4, 1, width if tag == 256 else height)
    elif data[8:16] == b"WEBPVP8 ":
        out[26:30] = struct.pack("<HH", width & 0x3FFF, height & 0x3FFF)
    elif data[4:12] == b"ftypavif":
        place = data.index(b"ispe") + 8
        out[place : place + 8] = struct.pack(">II", width, height)
    else:
        raise ValueError("no picture of a format whose size can be changed here")
    return bytes(out)


def _tiled(packing: int) -> bytes:
    packed = zlib.compress(bytes(1 << 20))
    begin = behind_directory(4)
    tiles = ((322, 4, 1, 32752), (323, 4, 1, 32768), (324, 4, 1, begin), (325, 4, 1, len(packed)))
    return grey_tiff(*tiles, packing=packing, data=packed)


def _strips() -> bytes:
    return grey_tiff((273, 4, MANY, behind_directory(2)), (278, 4, 1, 1), data=bytes(4 * MANY))


def _rationals(tag: int) -> bytes:
    count = 300_000
    return grey_tiff((273, 4, 1, 8), (tag, 5, count, behind_directory(2)), data=bytes(range(1, 9)) * count)


def _rationals_inside(tag: int) -> bytes:
    count, begin = 300_000, behind_directory(2)
    inner = struct.pack("<HHHII", 1, 2, 5, count, begin + 18) + bytes(4)
    return grey_tiff((273, 4, 1, 8), (tag, 4, 1, begin), data=inner + bytes(range(1, 9)) * count)


def _avif_exif() -> bytes:
    count = 300_000
    tags = b"MM\0*" + struct.pack(">IHHHII", 8, 1, 0x0112, 5, count, 26) + bytes(4) + bytes(range(1, 9)) * count
    return encode(Image.new("RGB", (64, 64)), "AVIF", speed=10).replace(b"mdat", b"mdat" + tags)


_TEXT = zlib.compress(bytes(1 << 20))

# What is refused for how it is put together, by name, with what is said of it.
FLOODS: dict[str, tuple[Callable[[], bytes], str]] = {
    "jpeg segments": (lambda: jpeg(segment(0xED, b"") * MANY), "segments"),
    "jpeg exif": (lambda: jpeg(segment(0xE1, b"Exif\0\0" + bytes(65_000)) * 200), "segments of EXIF"),
    "jpeg stray bytes": (lambda: jpeg(segment(0xFE, b"") + bytes(1_000_000)), "stray bytes"),
    "jpeg scans": (lambda: scans(2000), "scans"),
    "jpeg marker without segment": (lambda: jpeg(b"\xff\xf0" + segment(0xED, b"") * MANY), "cut off or damaged"),
    "png chunks": (lambda: png(before=chunk(b"prVt") * MANY), "chunks"),
    "png chunks behind": (lambda: png(after=chunk(b"prVt") * MANY), "chunks"),
    "png empty data": (lambda: png(before=chunk(b"IDAT") * MANY), "chunks"),
    "png texts": (lambda: png(before=chunk(b"iTXt", b"k\0\1\0\0\0" + _TEXT) * 1000), "packed texts"),
    "png profiles": (lambda: png(before=chunk(b"iCCP", b"k\0\0" + _TEXT) * 1000), "packed texts"),
    "gif comment": (lambda: gif((0, 0, 8, 8), b"!\xfe" + b"\x02ab" * MANY + b"\0"), "blocks"),
    "gif extension": (lambda: gif((0, 0, 8, 8), b"!\x01" + b"\x01a" * MANY + b"\0"), "blocks"),
    "gif stray bytes": (lambda: gif((0, 0, 8, 8), bytes(MANY)), "blocks"),
    "bmp runs": (lambda: bmp_runs(5000, 5000), "pixels in runs"),
    "tiff strips": (_strips, "strips or tiles"),
    "tiff tile": (lambda: _tiled(8), "tiles of 1073217536 pixels"),
    "tiff rationals": (lambda: _rationals(282), "more than 262144 values"),
    "tiff rationals inside": (lambda: _rationals_inside(34853), "more than 262144 values"),
    "avif rationals": (_avif_exif, "more than 262144 values"),
    "avif directories": (lambda: bytes(4) + b"ftypavif" + b"II*\0" * MANY, "directories"),
}

# What is refused for its size alone, whatever lies behind the header.
BOMBS: dict[str, Callable[[], bytes]] = {
    "png": lambda: png(30_000, 30_000),
    "jpeg": lambda: resized(jpeg(), (65_500, 65_500)),
    "gif": lambda: gif((0, 0, 65_535, 65_535), size=(65_535, 65_535)),
    "gif frame beyond its screen": lambda: gif((30_000, 30_000, 1, 1)),
    "gif frame that is disposed of": lambda: gif((0, 0, 65_535, 65_535), disposal=2),
    "gif frame behind empty blocks": lambda: gif((0, 0, 65_535, 65_535), b"!\xff\0\x01a\0!\x01\0\0" * 9, disposal=2),
    "gif frame behind a loop": lambda: gif((0, 0, 65_535, 65_535), b"!\xff\x0bNETSCAPE2.0\0\x01,\0", disposal=2),
    "bmp": lambda: resized(encode(Image.new("RGB", (8, 8)), "BMP"), (30_000, 30_000)),
    "tiff": lambda: resized(grey_tiff((273, 4, 1, 8)), (100_000, 100_000)),
    "webp": lambda: resized(encode(Image.new("RGB", (8, 8)), "WEBP"), (16_383, 16_383)),
    "avif": lambda: resized(encode(Image.new("RGB", (8, 8)), "AVIF", speed=10), (16_000, 16_000)),
    "webp canvas": lambda: webp((16_777_216, 200)),
    "webp square canvas": lambda: webp((30_000, 30_000)),
}

# What is read, since it is a small picture, with all that hangs on it: none may cost more than its share.
HEAVY: dict[str, Callable[[], bytes]] = {
    "bmp runs": lambda: bmp_runs(1000, 1000),
    "png texts": lambda: png(before=b"".join(chunk(b"zTXt", b"k%d\0\0" % n + _TEXT) for n in range(60))),
    "png exif": lambda: png(before=chunk(b"eXIf", b"II*\0\x08\0\0\0" + bytes(10 << 20))),
    "png data behind the end of the picture": lambda: png(data=bytes(50 << 20)),
    "jpeg profile": lambda: jpeg(
        b"".join(segment(0xE2, b"ICC_PROFILE\0" + bytes([n, 255]) + bytes(65_000)) for n in range(1, 256))
    ),
    "jpeg texts": lambda: jpeg(segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(65_000)) * 150),
    "jpeg with a film behind it": lambda: jpeg() + bytes(np.random.default_rng(1).integers(0, 256, 20 << 20, np.uint8)),
    "tiff layers": lambda: grey_tiff((273, 4, 1, 8), (37724, 7, 10 << 20, behind_directory(2)), data=bytes(10 << 20)),
    "gif comment": lambda: gif((0, 0, 1, 1), b"!\xfe" + (b"\xff" + b"a" * 255) * 9000 + b"\0", size=(1, 1)),
}


def decoded_by_pillow(data: bytes) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    """Return the pixels of the first frame as Pillow alone reads them."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
