"""Bad input of many kinds, each with the status that it must get; and clients that hang up at every stage.

All of it is answered, or left, without a word in the log but its one line, and must leave nothing behind. Pictures that
were broken on purpose in a thousand ways are sent by images.py.
"""

import asyncio
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from scripts.endure.asks import CLIP, FACES, MODEL, TEXT
from scripts.endure.live import LOOPBACK

BOUNDARY = "endure"
FORM = f"multipart/form-data; boundary={BOUNDARY}"
FORMLESS = "application/octet-stream"
STAGES = ("before a byte", "in the head", "after the head", "in the body", "while it is computed", "at the answer")
LATER_S = 0.02  # after which a client hangs up whose request is being computed, at most


@dataclass(frozen=True, slots=True)
class Bad:
    """One bad request and the status of its answer."""

    name: str
    status: int
    body: bytes | None = None
    content_type: str = FORM
    path: str = "/predict"
    method: str = "POST"


def bad_requests(photo: bytes) -> list[Bad]:
    """Return bad requests of every kind; `photo` is a good JPEG."""
    return [*bad_pictures(photo), *bad_names(photo), *bad_forms(photo), *bad_routes()]


def bad_pictures(photo: bytes) -> list[Bad]:
    """Return pictures that cannot be read, for the search and for faces."""
    contents = {
        "no picture": (400, b"%PDF-1.7 not a picture"),
        "an empty picture": (400, b""),
        "half of a JPEG": (400, photo[: len(photo) // 2]),
        "a JPEG without its end": (400, photo[:-1000]),
        "the head of a JPEG": (400, photo[:20]),
        "zeros": (400, bytes(10_000)),
        "a bomb of 100000x100000": (413, png(100_000, 100_000)),
        "a picture of 0x0": (400, png(0, 0)),
    }
    return [
        Bad(f"{name}, {task}", status, form(entries, image=content))
        for name, (status, content) in contents.items()
        for task, entries in (("clip", CLIP), ("faces", FACES))
    ]


def bad_names(photo: bytes) -> list[Bad]:
    """Return forms that ask for what is not there, or for two things that do not go together."""

    def named(name: str) -> dict[str, Any]:
        return {"clip": {"textual": {"modelName": name}}}

    names = {
        "an unknown model": "no-such-model",
        "a path as model": "../../etc/passwd",
        "a line feed in a name": "demo\n200 OK",
        "a long name": "m" * 5000,
    }
    return [
        *(Bad(name, 422, form(named(value), text=b"hello")) for name, value in names.items()),
        Bad("an unknown task", 422, form({"translate": {"textual": MODEL}}, text=b"hello")),
        Bad("a text for pictures", 400, form(CLIP, text=b"hello")),
        Bad("a picture for texts", 400, form(TEXT, image=photo)),
        Bad("neither picture nor text", 400, form(CLIP)),
        Bad("faces without boxes", 400, form({"facial-recognition": {"recognition": MODEL}}, image=photo)),
    ]


def bad_forms(photo: bytes) -> list[Bad]:
    """Return bodies that are no forms of the protocol, or too large ones."""
    whole = form(CLIP, image=photo)
    return [
        Bad("no body", 422, b""),
        Bad("no form", 422, photo, FORMLESS),
        Bad("a form that is cut off", 422, whole[: len(whole) // 2]),
        Bad("a boundary that never comes", 422, whole, "multipart/form-data; boundary=other"),
        Bad("no boundary", 422, whole, "multipart/form-data"),
        Bad("entries that are no JSON", 422, parts({"entries": b"{", "text": b"hello"})),
        Bad("entries that are no UTF-8", 422, parts({"entries": b"\xff\xfe", "text": b"hello"})),
        Bad("entries 10,000 deep", 422, parts({"entries": b"[" * 10_000, "text": b"hello"})),
        Bad("a text of 2 MB", 413, form(TEXT, text=b"a " * 1_000_000)),
        Bad("too many parts", 413, parts({f"field-{number}": b"" for number in range(200)})),
    ]


def bad_routes() -> list[Bad]:
    """Return requests for what is not served."""
    return [
        Bad("an unknown route", 404, None, "", "/no/such/route", "GET"),
        Bad("a path upwards", 404, None, "", "/app/..%2f..%2fsettings.py", "GET"),
        Bad("the wrong method", 405, None, "", "/predict", "GET"),
    ]


def form(entries: dict[str, Any], **fields: bytes) -> bytes:
    """Return the body of a form of the protocol."""
    return parts({"entries": orjson.dumps(entries), **fields})


def parts(fields: dict[str, bytes]) -> bytes:
    """Return a multipart body, FORM being its content type."""
    pieces = []
    for name, content in fields.items():
        file = '; filename="blob"' if name == "image" else ""
        pieces += [
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode(),
            content,
            b"\r\n",
        ]
    return b"".join([*pieces, f"--{BOUNDARY}--\r\n".encode()])


def png(width: int, height: int) -> bytes:
    """Return a PNG whose header names these sides and that has almost no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


async def hang_up(
    port: int, stage: str, body: bytes, content_type: str, rng: np.random.Generator, *, rude: bool
) -> None:
    """Begin to send a form and hang up at `stage`, one of STAGES; a rude one resets the connection."""
    head = (
        f"POST /predict HTTP/1.1\r\nHost: {LOOPBACK}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    sent = {
        "before a byte": b"",
        "in the head": head[: len(head) // 2],
        "after the head": head,
        "in the body": head + body[: int(rng.integers(1, len(body)))],
    }.get(stage, head + body)
    reader, writer = await asyncio.open_connection(LOOPBACK, port)
    try:
        writer.write(sent)
        await writer.drain()
        if stage == "while it is computed":
            await asyncio.sleep(rng.uniform(0, LATER_S))
        elif stage == "at the answer":
            await reader.read(1)
        if rude:
            writer.transport.abort()
    except ConnectionError:
        pass  # the server was quicker to close: it has read enough of this request to refuse it
    finally:
        writer.close()
