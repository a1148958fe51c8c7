"""Each limit crossed many times against a live server, while right requests beside it are answered as ever.

A crossing must get its status and one line in the log; the server's resident size must be where it was. Knows the
protocol as any client does: most crossings are bytes on a socket of their own, since no HTTP library sends such things.
"""

import asyncio
import contextlib
import io
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
import psutil
from PIL import Image

from scripts.bench.served import Served, free_port
from scripts.endure.row import Options, Row
from scripts.load import inputs

TIMES, SHORT_TIMES = 500, 20
AT_ONCE = 20
WAIT_S = 60.0
BETWEEN_S = 0.002  # between two connections: only those that a server had a moment to read from count as idle
GROWTH_MB = 24.0  # in the second half of the crossings, for allocators: a leak of bodies is far more
SLOW_SENDERS, SHORT_SLOW_SENDERS = 200, 60
SLOW_BUFFER_MB = 0.4  # read ahead of each by asyncio and aiohttp while its body waits for room
LEAST_COSINE = 0.9999
KEY = "endurance-key-0123456789"
SETTINGS = {
    "IMMICH_HOST": "127.0.0.1",
    "IMMICH_LOG_LEVEL": "info",
    "HF_HUB_OFFLINE": "1",
    "MACHINE_LEARNING_API_KEYS": KEY,
    "MACHINE_LEARNING_BODY_BYTES_PER_S": "5000",
    "MACHINE_LEARNING_BODY_TIMEOUT_S": "1",
    "MACHINE_LEARNING_ENGINE": "eager",
    "MACHINE_LEARNING_HEADER_TIMEOUT_S": "1",
    "MACHINE_LEARNING_LOG_FORMAT": "json",
    "MACHINE_LEARNING_MAX_BODIES_MB": "40",
    "MACHINE_LEARNING_MAX_BODY_MB": "3",
    "MACHINE_LEARNING_MAX_CONNECTIONS": "300",
    "MACHINE_LEARNING_MAX_FACES": "1",
    "MACHINE_LEARNING_MAX_PART_MB": "2",
    "MACHINE_LEARNING_MAX_PIXELS": "4000000",
    "MACHINE_LEARNING_PRECISION": "float32",
    "MACHINE_LEARNING_PRELOAD__CLIP__TEXTUAL": "demo",
    "MACHINE_LEARNING_PRELOAD__FACIAL_RECOGNITION": "demo",
}
TEXT = {"clip": {"textual": {"modelName": "demo"}}}
PICTURE = {"clip": {"visual": {"modelName": "demo"}}}
FACES = {"facial-recognition": {kind: {"modelName": "demo"} for kind in ("detection", "recognition")}}
Send = Callable[[int], Awaitable[int]]  # port -> status, 0 for no answer


@dataclass(frozen=True, slots=True)
class Crossing:
    """What is done, the status that it must get, and how to do it once."""

    what: str
    status: int
    send: Send


@dataclass(slots=True)
class Beside:
    """Right requests that go on meanwhile: how many were answered as before, and how many were not."""

    right: int = 0
    wrong: int = 0
    lost: int = 0


async def rows(options: Options) -> list[Row]:
    """Cross every limit; one row for each."""
    crossings = list(_crossings())
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        environment = {**os.environ, **SETTINGS, "IMMICH_PORT": str(port := free_port())}
        environment["MACHINE_LEARNING_CACHE_FOLDER"] = folder
        with contextlib.closing(Served([sys.executable, "-m", "server"], environment, port, log)) as server:
            await asyncio.to_thread(server.wait_ready)
            times, senders = (SHORT_TIMES, SHORT_SLOW_SENDERS) if options.short else (TIMES, SLOW_SENDERS)
            for one in crossings:  # buffers and caches take their size
                await asyncio.gather(*(one.send(port) for _ in range(AT_ONCE)))
            found = [await _row(one, times, server, log) for one in crossings]
            return [*found, await _idle_row(server, 2 * times + 300), await _slow_row(server, senders)]


async def _row(one: Crossing, times: int, server: Served, log: Path) -> Row:
    process = psutil.Process(server.pid)
    lines = _lines(log, one.status)
    turns = asyncio.Semaphore(AT_ONCE)

    async def cross() -> int:
        async with turns:
            return await one.send(server.port)

    async with _beside(server.port) as beside:
        statuses = await asyncio.gather(*(cross() for _ in range(times // 2)))
        before = process.memory_info().rss  # by then the allocators keep what so many at once take
        statuses += await asyncio.gather(*(cross() for _ in range(times - times // 2)))
    grown = (process.memory_info().rss - before) / 1e6
    told = _lines(log, one.status) - lines
    wrong = sum(status not in (0, one.status) for status in statuses) + beside.wrong
    wrong += (grown > GROWTH_MB) + abs(told - (times if one.status >= 400 else 0))  # what is right leaves no line
    seen = f"{one.status}; {told} lines; {beside.right} right answers beside; resident {grown:+.1f} MB"
    return Row("limits", one.what, times, statuses.count(0) + beside.lost, wrong, seen)


async def _idle_row(server: Served, count: int) -> Row:
    """Open more idle connections than there may be, and leave them open."""
    process = psutil.Process(server.pid)
    before = process.memory_info().rss
    writers: list[asyncio.StreamWriter] = []
    try:
        async with _beside(server.port) as beside:
            while len(writers) < count:
                _, writer = await asyncio.open_connection("127.0.0.1", server.port)
                writers.append(writer)
                await asyncio.sleep(BETWEEN_S)
            left = sum(one.status == psutil.CONN_ESTABLISHED for one in process.net_connections())
    finally:
        for writer in writers:
            writer.close()
        await _all_left(process)
    grown = (process.memory_info().rss - before) / 1e6
    most = int(SETTINGS["MACHINE_LEARNING_MAX_CONNECTIONS"])
    wrong = beside.wrong + (grown > GROWTH_MB) + (left > most + 1)
    seen = f"{left} left open of {most}; {beside.right} right answers beside; resident {grown:+.1f} MB"
    return Row("limits", "idle connections beyond their number", count, beside.lost, wrong, seen)


async def _all_left(process: psutil.Process) -> None:
    """Wait until the server has no connections; who comes before finds it as full as it was. Raises TimeoutError."""
    async with asyncio.timeout(WAIT_S):
        while any(one.raddr for one in process.net_connections()):  # noqa: ASYNC110 - the kernel is asked each time
            await asyncio.sleep(0.05)


async def _slow_row(server: Served, count: int) -> Row:
    """Let many senders stop in the middle of 2 MB each: several times what all bodies may be together."""
    process = psutil.Process(server.pid)
    _, kind = inputs.form(PICTURE, "image", b"")
    sent = _request(bytes(2_000_000), kind)[:1_500_000]
    before = peak = process.memory_info().rss
    async with _beside(server.port) as beside:
        sending = asyncio.gather(*(_exchange(server.port, sent) for _ in range(count)))
        while not sending.done():
            peak = max(peak, process.memory_info().rss)
            await asyncio.sleep(0.05)
        statuses = [status for status, _ in await sending]
    room, buffers = float(SETTINGS["MACHINE_LEARNING_MAX_BODIES_MB"]), count * SLOW_BUFFER_MB
    grown = (peak - before) / 1e6
    wrong = sum(status not in (0, 408) for status in statuses) + beside.wrong + (grown > room + buffers + GROWTH_MB)
    seen = f"408; {beside.right} right answers beside; resident at most {grown:+.1f} MB, room for bodies {room:.0f} MB"
    return Row("limits", "slow senders of 2 MB at once", count, statuses.count(0) + beside.lost, wrong, seen)


@asynccontextmanager
async def _beside(port: int) -> AsyncIterator[Beside]:
    """Send right requests for the time of the block, one after the other, and one more at its end."""
    body, kind = inputs.form(TEXT, "text", b"a red circle")
    request = _request(body, kind)
    counted, end = Beside(), asyncio.Event()
    expected = await _exchange(port, request)
    if expected[0] != 200:
        raise RuntimeError(f"a request that is right got {expected[0]} before anything was tried: {expected[1]!r}")

    async def ask() -> None:
        while True:
            last = end.is_set()
            answer = await _exchange(port, request)
            counted.lost += answer[0] == 0
            right = answer[0] == 200 and _near(answer[1], expected[1])
            counted.right += right
            counted.wrong += answer[0] != 0 and not right
            if last:
                return

    asking = asyncio.create_task(ask())
    try:
        yield counted
    finally:
        end.set()
        await asking


def _near(answer: bytes, other: bytes) -> bool:
    """Return whether two answers have the same vector: other texts in a batch change its last digits."""
    one, two = (np.array(orjson.loads(orjson.loads(body)["clip"])) for body in (answer, other))
    return bool(one @ two > LEAST_COSINE)


def _crossings() -> Iterator[Crossing]:
    picture = _png(64, 64)
    people = next(one for number, one in enumerate(inputs.people(4, 480)) if number == 3)  # four faces
    forms: Mapping[str, tuple[int, tuple[bytes, str]]] = {
        "bodies over their size, announced": (413, inputs.form(PICTURE, "image", bytes(3_100_000))),
        "parts over their size": (413, inputs.form(PICTURE, "image", bytes(2_100_000))),
        "forms of too many parts": (413, _parts(80)),
        "texts of more than a megabyte": (413, inputs.form(TEXT, "text", b"a" * 1_100_000)),
        "texts of one word of 100,000 letters, which are cut": (200, inputs.form(TEXT, "text", b"a" * 100_000)),
        "pictures of too many pixels by their header": (413, inputs.form(PICTURE, "image", _png(2001, 2000))),
        "pictures with too many faces": (413, inputs.form(FACES, "image", people)),
        "names of models that are paths and addresses": (422, inputs.form(_named(HOSTILE), "image", picture)),
    }
    for what, (status, (body, kind)) in forms.items():
        yield Crossing(what, status, _sending(_request(body, kind)))
    body, kind = inputs.form(PICTURE, "image", bytes(3_100_000))
    yield Crossing("bodies over their size, in chunks", 413, _sending(_chunked(body, kind)))
    body, kind = inputs.form(TEXT, "text", b"a red circle")
    yield Crossing("requests without a key", 401, _sending(_request(body, kind, key="")))
    yield Crossing("headers that do not end", 408, _sending(b"GET /ping HTTP/1.1\r\nHost: x\r\nX-Slow: "))
    yield Crossing("bodies that stop", 408, _sending(_request(bytes(2_000_000), kind)[:100_000]))
    yield Crossing("bodies that trickle", 408, _trickling(_request(bytes(2_000_000), kind)[:400]))
    yield Crossing("what is no HTTP", 400, _sending(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"))
    yield Crossing("lines of headers that are too long", 400, _sending(b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n"))


HOSTILE = "http://127.0.0.1:1/../../etc/passwd\r\nX-Evil: 1\x1b[31m"


def _named(name: str) -> dict[str, object]:
    return {"clip": {"visual": {"modelName": name}}}


def _parts(count: int) -> tuple[bytes, str]:
    part = b'--XX\r\nContent-Disposition: form-data; name="text"\r\n\r\nx\r\n'
    return part * count + b"--XX--\r\n", "multipart/form-data; boundary=XX"


def _png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 40)).save(file, "PNG")
    return file.getvalue()


def _request(body: bytes, kind: str, key: str = KEY) -> bytes:
    return _head(kind, key, f"Content-Length: {len(body)}") + body


def _chunked(body: bytes, kind: str) -> bytes:
    return _head(kind, KEY, "Transfer-Encoding: chunked") + b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"


def _head(kind: str, key: str, length: str) -> bytes:
    lines = ["POST /predict HTTP/1.1", "Host: x", f"Content-Type: {kind}", length, "Connection: close"]
    return "\r\n".join([*lines, *([f"x-api-key: {key}"] if key else []), "", ""]).encode()


def _sending(data: bytes) -> Send:
    async def send(port: int) -> int:
        return (await _exchange(port, data))[0]

    return send


def _trickling(data: bytes) -> Send:
    async def send(port: int) -> int:
        return (await _exchange(port, data, trickle=True))[0]

    return send


async def _exchange(port: int, data: bytes, trickle: bool = False) -> tuple[int, bytes]:
    """Send `data` on a connection of its own; return status and body of the answer, 0 for none."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    sending = asyncio.create_task(_send(writer, data, trickle))
    try:
        async with asyncio.timeout(WAIT_S):
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            return int(head.split()[1]), await reader.readexactly(int(length.split()[1]))
    except (OSError, asyncio.IncompleteReadError, TimeoutError):
        return 0, b""
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        writer.close()


async def _send(writer: asyncio.StreamWriter, data: bytes, trickle: bool) -> None:
    writer.write(data)
    await writer.drain()
    while trickle:
        await asyncio.sleep(0.1)
        writer.write(b"-")
        await writer.drain()


def _lines(log: Path, status: int) -> int:
    """Return how many lines tell of an answer with `status`."""
    messages = (orjson.loads(line)["message"] for line in log.read_bytes().splitlines() if line.startswith(b"{"))
    return sum(message.startswith(f"{status} ") for message in messages)
