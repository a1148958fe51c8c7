"""Right files made wrong in the ways that find mistakes in those who read them: bits, cuts, lengths, chunks.

Everything is drawn from a seeded generator, so that file number 1,234 of a seed is the same whenever it is made. Knows
how files are put together of chunks and segments, but of no format more than that. Does not know what reads them.
"""

import re
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

Random = np.random.Generator

# Numbers at the edges of their types, as 4 bytes in either order.
_EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
# What chunks begin with: JPEG's markers, the names of PNG's and RIFF's chunks and of AVIF's boxes, GIF's extensions.
_BEGINNINGS = re.compile(rb"\xff[\xc0-\xfe]|[A-Za-z]{3}[A-Za-z0-9 ]|![\xf9\xfe\xff]")


def mutated(files: Sequence[bytes], count: int, seed: int) -> Iterator[bytes]:
    """Yield `count` files made of right ones by one to four changes each."""
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        data = bytearray(files[number % len(files)])
        for _ in range(int(rng.integers(1, 5))):
            change = CHANGES[int(rng.integers(len(CHANGES)))]
            change(data, rng, files)
            if not data:
                break
        yield with_checksums(bytes(data)) if rng.integers(2) else bytes(data)


def with_checksums(data: bytes) -> bytes:
    """Return a PNG with checksums that are right, so that what was changed in it is looked at; others as they are."""
    if not data.startswith(b"\x89PNG"):
        return data
    out, place = bytearray(data), 8
    while place + 12 <= len(out):
        end = place + 8 + int.from_bytes(out[place : place + 4], "big")
        if end + 4 > len(out):
            break
        out[end : end + 4] = zlib.crc32(out[place + 4 : end]).to_bytes(4, "big")
        place = end + 4
    return bytes(out)


def flip_bits(data: bytearray, rng: Random, _: Sequence[bytes]) -> None:
    """Flip one to eight bits, half of the time near the beginning, where headers are."""
    for _i in range(int(rng.integers(1, 9))):
        data[_place(data, rng)] ^= 1 << int(rng.integers(8))


def cut(data: bytearray, rng: Random, _: Sequence[bytes]) -> None:
    """Cut the file off somewhere."""
    del data[int(rng.integers(len(data))) :]


def splice(data: bytearray, rng: Random, files: Sequence[bytes]) -> None:
    """Put a piece of another file, or of this one, over a place or between two."""
    other = files[int(rng.integers(len(files)))]
    begin = int(rng.integers(len(other)))
    piece = other[begin : begin + int(rng.integers(1, 65))]
    place = _place(data, rng)
    data[place : place + (len(piece) if rng.integers(2) else 0)] = piece


def drop(data: bytearray, rng: Random, _: Sequence[bytes]) -> None:
    """Take up to 64 bytes out of the middle."""
    place = _place(data, rng)
    del data[place : place + int(rng.integers(1, 65))]


def set_number(data: bytearray, rng: Random, _: Sequence[bytes]) -> None:
    """Write a number from the edge of its type, of 1, 2 or 4 bytes: often enough that is a length or a size."""
    value = _EDGES[int(rng.integers(len(_EDGES)))]
    whole = struct.pack(">I" if rng.integers(2) else "<I", value)
    size = (1, 2, 4)[int(rng.integers(3))]
    part = whole[4 - size :] if whole[0] == 0 else whole[:size]
    place = _place(data, rng)
    data[place : place + size] = part


def set_length(data: bytearray, rng: Random, _: Sequence[bytes]) -> None:
    """Change the number beside the beginning of a chunk, where formats keep its length."""
    begins = [found.start() for found in _BEGINNINGS.finditer(data)]
    if not begins:
        return
    begin = begins[int(rng.integers(len(begins)))]
    place = begin + (2, 4, -4)[int(rng.integers(3))]
    if 0 <= place < len(data) - 4:
        data[place + int(rng.integers(4))] = (0, 1, 0x7F, 0x80, 0xFF)[int(rng.integers(5))]


def swap_chunks(data: bytearray, rng: Random, _: Sequence[bytes]) -> None:
    """Exchange two neighbouring chunks, or write one of them twice."""
    begins = [found.start() for found in _BEGINNINGS.finditer(data)]
    if len(begins) < 3:
        return
    one, two, three = sorted(int(place) for place in rng.choice(begins, 3, replace=False))
    first, second = data[one:two], data[two:three]
    data[one:three] = second + first if rng.integers(2) else first + first + second


CHANGES: tuple[Callable[[bytearray, Random, Sequence[bytes]], None], ...] = (
    flip_bits,
    cut,
    splice,
    drop,
    set_number,
    set_length,
    swap_chunks,
)


def _place(data: bytearray, rng: Random) -> int:
    end = len(data) if rng.integers(2) else min(len(data), 96)
    return int(rng.integers(end))
