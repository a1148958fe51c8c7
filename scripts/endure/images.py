"""Mutated pictures of every format through a live server, with right requests beside them that must stay right.

Starts a server of its own with the demo models. Every mutated picture must be answered, with a vector of length 1 or
with a 4xx; never with a 5xx. Right requests must get what they got alone. When all are through, the server holds no
more memory than before. Knows the protocol and the process; how pictures are broken is in mutations.py.
"""

import asyncio
import contextlib
import io
import itertools
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import orjson
import skimage.data
from PIL import Image

from scripts.bench.served import Served, free_port
from scripts.bench.turns import Ended
from scripts.endure.mutations import mutated
from scripts.endure.row import Options, Row
from scripts.endure.specimens import KINDS, specimens

COUNT = 2000  # mutated files of each format
COUNT_SHORT = 40
CALLERS = 16  # that send mutated files; two more send right ones
# What the process may hold more than before all files. Some of them are large pictures, and glibc keeps up to 64 MB of
# free pages at the end of its heap: twice the largest block that it takes from there. That does not add up, where a
# leak of 5 KB a file would be 70 MB.
TOLERANCE_MB = 64
LEAST_COSINE = 0.99999  # of a right answer beside mutated files to the same one alone: what rows of a batch must keep
PRELOAD = ("CLIP", "FACIAL_RECOGNITION")
CLIP = {"clip": {"visual": {"modelName": "demo"}}}
FACES = {"facial-recognition": {kind: {"modelName": "demo"} for kind in ("detection", "recognition")}}
PATIENCE_S = 60.0


@dataclass(slots=True)
class Count:
    """What came of the requests of a trial so far."""

    statuses: Counter[int]
    lost: int = 0
    wrong: int = 0
    beside: int = 0  # right requests that were answered right
    told: str = ""  # of the first request that went wrong


async def rows(options: Options, kinds: Sequence[str] = KINDS) -> list[Row]:
    """Return a line for each format."""
    with tempfile.TemporaryDirectory() as folder, _served(Path(folder)) as server:
        await asyncio.to_thread(server.wait_ready)
        timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
        connector = aiohttp.TCPConnector(limit=CALLERS + 2)
        base = f"http://127.0.0.1:{server.port}"
        async with aiohttp.ClientSession(base, timeout=timeout, connector=connector) as session:
            right = [await _right(session, entries, field) for entries, field in _right_inputs()]
            count = COUNT_SHORT if options.short else COUNT
            # Everything is loaded and every thread has its memory before the first measurement.
            first = max(20, count // 20)
            warm = [
                data
                for kind in kinds
                for data in (*specimens(kind), *mutated(specimens(kind), first, options.seed + 1))
            ]
            await _trial(server, session, right, warm)
            before = await asyncio.to_thread(_resident, server)
            lines = [await _row(server, session, right, kind, count, options.seed) for kind in kinds]
            return [*lines, await _kept(server, before, count * len(kinds))]


@contextlib.contextmanager
def _served(folder: Path) -> Iterator[Served]:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("MACHINE_LEARNING_")},
        **{f"MACHINE_LEARNING_PRELOAD__{what}": "demo" for what in PRELOAD},
        "HF_HUB_OFFLINE": "1",
        "IMMICH_HOST": "127.0.0.1",
        "IMMICH_PORT": str(port := free_port()),
        "MACHINE_LEARNING_CACHE_FOLDER": str(folder),
        "MACHINE_LEARNING_ENGINE": "eager",
        "MACHINE_LEARNING_PRECISION": "float32",
    }
    with contextlib.closing(
        Served([sys.executable, "-m", "server"], environment, port, folder / "server.log")
    ) as server:
        yield server


async def _row(
    server: Served, session: aiohttp.ClientSession, right: Sequence["_Right"], kind: str, count: int, seed: int
) -> Row:
    counted = await _trial(server, session, right, mutated(specimens(kind), count, seed))
    read = counted.statuses[200]
    seen = f"{read} read, {sum(counted.statuses.values()) - read} refused, {counted.beside} right requests beside them"
    return Row("images", f"mutated {kind} files", count, counted.lost, counted.wrong, seen + counted.told)


async def _kept(server: Served, before: float, count: int) -> Row:
    """Return whether the server holds what it held before `count` files, in MB."""
    grown = await asyncio.to_thread(_resident, server) - before
    seen = f"resident size {before:.0f} {grown:+.0f} MB, limit +{TOLERANCE_MB} MB"
    return Row("images", "memory after all mutated files", count, 0, int(grown > TOLERANCE_MB), seen)


async def _trial(
    server: Served, session: aiohttp.ClientSession, right: Sequence["_Right"], files: Iterator[bytes] | list[bytes]
) -> Count:
    """Send all `files`, and right requests until they are through."""
    counted = Count(Counter())
    numbered = iter(enumerate(files))
    ended = asyncio.Event()
    beside = [asyncio.create_task(_send_right(session, itertools.cycle(right), counted, ended)) for _ in range(2)]
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(CALLERS):
                group.create_task(_send_mutated(session, numbered, counted))
    finally:
        ended.set()
    await asyncio.gather(*beside)
    try:
        await asyncio.to_thread(server.get, "/ping")
    except (Ended, OSError) as error:
        counted.wrong += 1
        counted.told = counted.told or f"; {error}"
    return counted


async def _send_mutated(session: aiohttp.ClientSession, files: Iterator[tuple[int, bytes]], counted: Count) -> None:
    for number, data in files:
        try:
            status, answer = await _ask(session, CLIP | FACES if number % 2 else CLIP, "image", data)
        except (aiohttp.ClientError, TimeoutError) as error:
            counted.lost += 1
            counted.told = counted.told or f"; file {number}: {error!r}"
            continue
        counted.statuses[status] += 1
        if not (_is_vector(answer) if status == 200 else 400 <= status < 500 and "detail" in answer):
            counted.wrong += 1
            counted.told = counted.told or f"; file {number}: {status} {str(answer)[:200]}"


async def _send_right(
    session: aiohttp.ClientSession, asks: Iterator["_Right"], counted: Count, ended: asyncio.Event
) -> None:
    while not ended.is_set():
        one = next(asks)
        try:
            status, answer = await _ask(session, one.entries, one.field, one.value)
        except (aiohttp.ClientError, TimeoutError) as error:
            counted.lost += 1
            counted.told = counted.told or f"; a right request: {error!r}"
            continue
        if status == 200 and one.is_answered_by(answer):
            counted.beside += 1
        else:
            counted.wrong += 1
            counted.told = counted.told or f"; a right request: {status} {str(answer)[:200]}"


async def _ask(session: aiohttp.ClientSession, entries: Any, field: str, value: bytes | str) -> tuple[int, Any]:
    form = aiohttp.FormData()
    form.add_field("entries", orjson.dumps(entries).decode())
    form.add_field(field, value, **({"filename": "blob"} if isinstance(value, bytes) else {}))
    async with session.post("/predict", data=form) as response:
        return response.status, orjson.loads(await response.read())


@dataclass(frozen=True, slots=True)
class _Right:
    """A request that is right, and what it is answered when nothing else goes on."""

    entries: Any
    field: str
    value: bytes | str
    answer: Any

    def is_answered_by(self, answer: Any) -> bool:
        """Whether `answer` is that of the request alone: the same vectors and boxes but for rounding."""
        if not _is_vector(answer) or float(_vector(answer["clip"]) @ _vector(self.answer["clip"])) < LEAST_COSINE:
            return False
        faces, wanted = (one.get("facial-recognition", []) for one in (answer, self.answer))
        return len(faces) == len(wanted) and all(
            face["boundingBox"] == other["boundingBox"]
            and float(_vector(face["embedding"]) @ _vector(other["embedding"])) >= LEAST_COSINE
            for face, other in zip(faces, wanted, strict=True)
        )


async def _right(session: aiohttp.ClientSession, entries: Any, field: tuple[str, bytes | str]) -> _Right:
    status, answer = await _ask(session, entries, *field)
    if status != 200:
        raise Ended(f"the server answers a right request with {status}: {answer}")
    return _Right(entries, *field, answer)


def _right_inputs() -> Iterator[tuple[Any, tuple[str, bytes | str]]]:
    with Image.open(Path(skimage.data.data_dir, "astronaut.png")) as file:
        photo = file.convert("RGB")
    for kind in ("JPEG", "PNG", "WEBP"):
        out = io.BytesIO()
        photo.resize((320, 320)).save(out, kind)
        yield CLIP | FACES, ("image", out.getvalue())
    yield {"clip": {"textual": {"modelName": "demo"}}}, ("text", "a red circle")


def _is_vector(answer: Any) -> bool:
    """Whether an answer has a vector of length 1 in it."""
    return "clip" in answer and abs(float(np.linalg.norm(_vector(answer["clip"]))) - 1) < 1e-3


def _vector(text: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.asarray(orjson.loads(text))


def _resident(server: Served) -> float:
    """Return what the process holds, in MB, when it computes no more."""
    server.wait_quiet()
    return server.memory().resident
