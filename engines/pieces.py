"""How a picture's file is put together, looked at before a decoder sees it.

A file of a few megabytes can consist of a million empty segments, chunks or strips, each of which costs a decoder a
hundred bytes of memory and some microseconds; a thumbnail may come in one tile of a gigabyte, or be read a thousand
times over in as many scans. Limits on bytes and pixels do not see that, so the pieces are counted here, as far as they
are walked through in Python by Pillow or cost memory beyond the picture's own. Cameras and programs write a hundredth
of what is allowed. Deliberately decodes nothing, and lets pass what it cannot follow where the decoder cannot either.
"""

import io
import re
import struct
from collections.abc import Iterator
from itertools import islice

from engines.errors import ImageError, ImageTooLarge

# Segments of a JPEG, chunks of a PNG, blocks of a GIF, strips or tiles of a TIFF: so many, and one more per kilobyte.
MOST_PIECES = 16_384
MOST_SCANS = 100  # of a JPEG: progressive ones have about 10, and each costs a pass over all pixels
MOST_EXIF_SEGMENTS = 16  # of a JPEG, 64 KB each: Pillow appends one to the other, copying all that came before
MOST_JUNK = 1 << 16  # bytes between the segments of a JPEG: Pillow steps over them one by one
MOST_PACKED = 256  # compressed texts and profiles of a PNG, each of which may unpack to 1 MB
MOST_VALUES = 1 << 18  # numbers in one TIFF tag: each becomes an object; colour maps have up to 196,608
MOST_RUNS = 1 << 23  # pixels of a BMP in runs: Pillow fills in those that are left out one by one, in Python
SMALL_TILE = 1 << 22  # pixels: a tile of a TIFF may be so large however small the picture is
MOST_DIRECTORIES = 16  # that begin in an AVIF or HEIF: it has one, of its EXIF

# A marker that is no stuffed zero, no restart and no fill byte (ITU T.81, annex B).
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_SCAN, _END, _EXIF, _COMMENT, _LEAST = 0xDA, 0xD9, 0xE1, 0xFE, 0xC0
_SEGMENTS = frozenset({*range(_LEAST, 0xD0), *range(_SCAN, 0xDE), *range(0xE0, 0xF0), _COMMENT} - {0xC8})

_CORE_HEADER = 12  # bytes of the oldest header of a BMP, which tells no packing
_RUNS = (1, 2)  # packings of a BMP in runs: of 8 and of 4 bits

_TIFF = (b"II*\0", b"MM\0*", b"MM*\0", b"II\0*", b"MM\0+", b"II+\0")  # those that Pillow takes
_DIRECTORY = re.compile(rb"II\*\x00|MM\x00\*")
_OFFSETS = (273, 324)  # tags: where strips lie, where tiles do
_TILE_WIDTH, _TILE_LENGTH, _WIDTH, _LENGTH = 322, 323, 256, 257
_POINTERS = (34665, 34853, 40965)  # tags of directories that Pillow reads beside the first: EXIF, GPS, interoperability
_PLAIN = (1, 2, 6, 7)  # types that stay bytes
_NUMBERS = {3: "H", 4: "I", 16: "Q"}  # types of sizes and offsets, as struct names them


def check(data: bytes, max_pixels: int) -> None:
    """Raise ImageError if the file is made of more pieces than a picture needs, ImageTooLarge for a GIF's first frame.

    What is no picture passes: that is for the decoder to say.
    """
    if data.startswith(b"\xff\xd8\xff"):
        _check_jpeg(data)
    elif data.startswith(b"\x89PNG\r\n\x1a\n"):
        _check_png(data)
    elif data.startswith((b"GIF87a", b"GIF89a")):
        _check_gif(data, max_pixels)
    elif data.startswith(b"BM"):
        _check_bmp(data)
    elif data.startswith(_TIFF):
        # "+" marks BigTIFF. Pillow reads that of one byte order as if it were none, which libtiff behind it does not.
        if data[2:3] != b"+":
            _check_directory(data, 0, "TIFF")
        if b"+" in data[2:4]:
            _check_directory(data, 0, "TIFF", big=True)
    elif data[4:8] == b"ftyp":
        kind = "AVIF" if data.startswith(b"avi", 8) else "HEIF"
        begins = [match.start() for match in islice(_DIRECTORY.finditer(data), MOST_DIRECTORIES + 1)]
        if len(begins) > MOST_DIRECTORIES:
            raise _odd(kind, f"has more than {MOST_DIRECTORIES} directories of tags")
        for begin in begins:
            _check_directory(data, begin, kind)


def _check_jpeg(data: bytes) -> None:
    position, segments, exif, scans, junk = 2, 0, 0, 0, 0
    most = _most(data)
    while (found := _MARKER.search(data, position)) is not None:
        marker = data[found.end() - 1]
        if not scans:
            junk += found.start() - position
        elif marker == _END:
            return  # what follows is no part of the picture
        if not scans and marker < _LEAST:
            return  # where Pillow gives up as well
        if not scans and marker not in _SEGMENTS:  # where Pillow reads on as if it were nothing, and libjpeg gives up
            raise ImageError("The JPEG picture is cut off or damaged: send the whole file.")
        length = int.from_bytes(data[found.end() : found.end() + 2], "big")
        position = found.end() + max(2, length)
        segments += 1
        scans += marker == _SCAN
        exif += marker == _EXIF and data.startswith(b"Exif\0\0", found.end() + 2)
        if segments > most:
            raise _odd("JPEG", f"is made of more than {most} segments")
        if scans > MOST_SCANS:
            raise _odd("JPEG", f"is made of more than {MOST_SCANS} scans")
        if exif > MOST_EXIF_SEGMENTS:
            raise _odd("JPEG", f"has more than {MOST_EXIF_SEGMENTS} segments of EXIF")
        if junk > MOST_JUNK:
            raise _odd("JPEG", f"has more than {MOST_JUNK} stray bytes")


def _check_png(data: bytes) -> None:
    position, chunks, packed = 8, 0, 0
    most = _most(data)
    while position + 8 <= len(data):
        length, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        if kind == b"IEND":
            return
        position += 12 + length
        chunks += 1
        packed += kind in (b"iCCP", b"zTXt", b"iTXt")
        if chunks > most:
            raise _odd("PNG", f"is made of more than {most} chunks")
        if packed > MOST_PACKED:
            raise _odd("PNG", f"has more than {MOST_PACKED} packed texts and profiles")


def _check_gif(data: bytes, max_pixels: int) -> None:
    """Walk to the first frame exactly as Pillow does, which makes room for that frame as soon as it opens the file."""
    most = _most(data)
    for blocks, frame in enumerate(_gif_blocks(data)):
        if blocks > most:
            raise _odd("GIF", f"is made of more than {most} blocks")
        if frame is not None and len(frame) == 8:
            left, top, width, height = struct.unpack("<4H", frame)
            if (left + width) * (top + height) > max_pixels:
                raise ImageTooLarge(
                    f"The picture's first frame has {left + width}x{top + height} pixels, the limit is {max_pixels}: "
                    "send a smaller one, or raise MACHINE_LEARNING_MAX_PIXELS."
                )


def _gif_blocks(data: bytes) -> Iterator[bytes | None]:
    """Yield None for every block or stray byte before the first frame, and then where that frame lies, in 8 bytes."""
    flags = data[10] if len(data) > 10 else 0
    file = io.BytesIO(data)
    file.seek(13 + (3 << (flags & 7) + 1 if flags & 128 else 0))  # behind the screen and its colours

    def block() -> bytes:
        size = file.read(1)
        return file.read(size[0]) if size else b""

    while (introducer := file.read(1)) not in (b"", b";"):
        yield None
        if introducer == b",":
            yield file.read(8)
            return
        if introducer == b"!":
            label, part = file.read(1), block()
            if label == b"\xfe":  # a comment ends with its first empty block; others with the next one behind the first
                while part:
                    yield None
                    part = block()
                continue
            if label == b"\xff" and part.startswith(b"NETSCAPE2.0"):
                block()
            while block():
                yield None


def _check_bmp(data: bytes) -> None:
    if _number(data, 14, "<I") == _CORE_HEADER or _number(data, 30, "<I") not in _RUNS:
        return
    width, height = _number(data, 18, "<I"), abs(_number(data, 22, "<i"))  # negative where rows go downwards
    if width * height > MOST_RUNS:
        raise _odd("BMP", f"has more than {MOST_RUNS} pixels in runs")


def _check_directory(data: bytes, begin: int, kind: str, big: bool = False) -> None:
    """Check the first directory of the TIFF that begins at `begin`, and those it points to that Pillow reads."""
    order = "<" if data[begin : begin + 1] == b"I" else ">"
    least = dict.fromkeys((_WIDTH, _LENGTH), 1 << 32)
    most = dict.fromkeys((_TILE_WIDTH, _TILE_LENGTH), 0)
    first = _number(data, begin + (8 if big else 4), order + ("Q" if big else "I"))
    for tag, type_, count, value in _entries(data, begin + first, order, big):
        _check_values(kind, type_, count)
        number = _number(value, 0, order + _NUMBERS.get(type_, "I"))
        if tag in _OFFSETS and count > _most(data):
            raise _odd(kind, f"is made of more than {_most(data)} strips or tiles")
        if tag in least:  # of tags that stand twice the decoders take one or the other
            least[tag] = min(least[tag], number)
        elif tag in most:
            most[tag] = max(most[tag], number)
        elif tag in _POINTERS:
            for _, inner, many, _ in _entries(data, begin + number, order, big):
                _check_values(kind, inner, many)
    tile = most[_TILE_WIDTH] * most[_TILE_LENGTH]
    if tile > max(SMALL_TILE, 2 * least[_WIDTH] * least[_LENGTH]):
        raise _odd(kind, f"is built of tiles of {tile} pixels, far larger than itself")


def _check_values(kind: str, type_: int, count: int) -> None:
    if type_ not in _PLAIN and count > MOST_VALUES:
        raise _odd(kind, f"has a tag of more than {MOST_VALUES} values")


def _entries(data: bytes, position: int, order: str, big: bool) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield tag, type, number of values, and the bytes in place of the value, of each entry of a directory."""
    entry = struct.Struct(order + ("HHQ8s" if big else "HHI4s"))
    number = _number(data, position, order + ("Q" if big else "H"))
    position += 8 if big else 2
    for place in range(position, min(position + number * entry.size, len(data) - entry.size + 1), entry.size):
        yield entry.unpack_from(data, place)


def _number(data: bytes, position: int, form: str) -> int:
    """Return the number at `position`, 0 behind the end."""
    if position + struct.calcsize(form) > len(data):
        return 0
    (number,) = struct.unpack_from(form, data, position)
    return int(number)


def _most(data: bytes) -> int:
    return MOST_PIECES + len(data) // 1024


def _odd(kind: str, what: str) -> ImageError:
    return ImageError(f"The {kind} picture {what}: open it in a photo program, save it anew, and send that.")
