"""What the coverage-guided fuzzing calls with its inputs, and what must hold for every one of them.

A target returns for any bytes, or it has found something. Knows the form reader and the way of a picture up to the
square that CLIP sees. Knows nothing of the fuzzer (fuzz_inputs.py), so that every input that was ever found runs in the
tests without it.
"""

import asyncio
import io
from collections.abc import Callable
from typing import cast

import numpy as np
from aiohttp import web
from PIL import Image

from engines import images, jpeg, preprocess
from engines.errors import ImageError
from server import wire
from server.errors import RequestError
from server.wire import Form

Target = Callable[[bytes], None]

MAX_BYTES = 3000
MAX_PIXELS = 250_000
SQUARE = 32  # pixels
TYPES = (
    "multipart/form-data; boundary=XX",
    "application/x-www-form-urlencoded",
    'multipart/form-data; charset=utf-8; boundary="X Y"',
)
PIECES = (1, 2, 3, 7, 64, 1000)  # bytes that come at a time


def written(form: Form) -> bytes:
    """Return a form as a client writes it, with the boundary XX."""
    head = '--XX\r\nContent-Disposition: form-data; name="%s"\r\n\r\n'
    return b"".join((head % name).encode() + value + b"\r\n" for name, value in form.items()) + b"--XX--\r\n"


class _Body:
    """The part of aiohttp's stream that forms are read from."""

    def __init__(self, data: bytes, piece: int) -> None:
        self._pieces = [data[i : i + piece] for i in range(0, len(data), piece)][::-1]

    async def readany(self) -> bytes:
        """Return what comes next, nothing at the end."""
        return self._pieces.pop() if self._pieces else b""


class _Request:
    """The part of aiohttp's request that forms are read from."""

    def __init__(self, type_: str, data: bytes, piece: int) -> None:
        self.headers = {"Content-Type": type_}
        self.content_length = None
        self.content = _Body(data, piece)


class Forms:
    """A body is a form or it is refused, and it is the same form in whatever pieces it comes.

    A body that is none, with bytes before its first boundary or half a line break, may be forgiven in some pieces and
    refused in others: that is up to the parser. What was read, written anew as clients do, is never refused.

    The first byte chooses Content-Type (the input's first line, if it is none of ours) and pieces; the rest is sent.
    """

    def __init__(self) -> None:
        self._runner = asyncio.Runner()

    def __call__(self, data: bytes) -> None:
        """Read one input; raises AssertionError, or what was not foreseen."""
        if not data:
            return
        choice, body = data[0], data[1:]
        type_ = TYPES[choice % 4] if choice % 4 < len(TYPES) else ""
        if not type_:
            line, _, body = body.partition(b"\n")
            type_ = line.decode("latin-1")
        piece = PIECES[choice // 4 % len(PIECES)]
        whole, parts = self._read(type_, body, max(1, len(body))), self._read(type_, body, piece)
        assert whole is None or parts is None or whole == parts, "it depends on how it comes"  # noqa: S101 - the test
        if whole is None:
            return
        assert set(whole) <= set(wire.FIELDS)  # noqa: S101 - this is what is being tested
        assert sum(map(len, whole.values())) <= MAX_BYTES  # noqa: S101 - the same
        if not any(b"--XX" in value for value in whole.values()):
            assert self._read(TYPES[0], written(whole), piece, 2 * MAX_BYTES) == whole  # noqa: S101 - the same
        try:
            wire.parse(whole)
        except RequestError as error:
            str(error).encode()  # it goes into an answer

    def close(self) -> None:
        """End the event loop."""
        self._runner.close()

    def _read(self, type_: str, body: bytes, piece: int, most: int = MAX_BYTES) -> Form | None:
        request = cast(web.Request, _Request(type_, body, piece))
        try:
            return self._runner.run(wire.read_form(request, most, 60.0))
        except RequestError as error:
            str(error).encode()
            return None


def picture(data: bytes) -> None:
    """Read one picture: it is one, of the size that its header says, or an ImageError; raises AssertionError if not.

    What the fast decoder reads Pillow reads alike.
    """
    try:
        header = images.probe(data, MAX_PIXELS)
    except ImageError:
        header = None
    for exif in (False, True):
        pixels = _read(lambda exif=exif: images.decode(data, MAX_PIXELS, exif))  # type: ignore[misc]  # of the argument
        if pixels is None:
            continue
        assert header is not None, "decoded without a header"  # noqa: S101 - this is what is being tested
        sides = (header.height, header.width)
        assert pixels.shape in ((*sides, 3), (*sides[::-1], 3) if exif or header.format == "TIFF" else ())  # noqa: S101
        for mode in ("shortest", "squash"):
            assert preprocess.prepare(pixels, SQUARE, mode).shape == (SQUARE, SQUARE, 3)  # noqa: S101 - the same
    if header is not None and header.format in ("JPEG", "MPO"):
        _compare(data, header)
        small = _read(lambda: images.reduced(data, MAX_PIXELS, 8)[0])
        assert small is None or min(small.shape[:2]) >= min(8, header.width, header.height)  # noqa: S101 - the same


def _compare(data: bytes, header: images.Header) -> None:
    fast = jpeg.decode(data, header.width, header.height)
    image = Image.open(io.BytesIO(data), formats=("JPEG",))
    if fast is not None and image.mode in jpeg.MODES:
        assert np.array_equal(fast, np.asarray(image.convert("RGB")))  # noqa: S101 - this is what is being tested


def _read(read: Callable[[], images.Pixels]) -> images.Pixels | None:
    try:
        pixels = read()
    except ImageError as error:
        str(error).encode()  # it goes into an answer
        return None
    assert pixels.dtype == np.uint8  # noqa: S101 - this is what is being tested
    return pixels
