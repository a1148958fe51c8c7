"""The load on a server, as a process of its own: python -m scripts.bench.load < plan.json; the answer is JSON.

Closed loop: each caller sends its next request when the last is answered, over a connection of its own. HTTP is
written and read by hand here, since a client that costs the processor anything would take it from the server; what it
cost is told. Every picture sent is different: bytes behind the end of the JPEG say which number it has.
"""

import asyncio
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import psutil

BOUNDARY = "----facet-bench-7d1f0a"
IMAGE = 'name="image"; filename="photo.jpg"\r\nContent-Type: image/jpeg'
FACES = "facenet-vggface2"
LONGEST_S = 120.0  # that a round may take, however short it was meant to be
AGAIN_S = 0.2


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send. `pictures`, `texts` and `faces` (photos that are searched for these) are numbers of callers.

    `warm` seconds go before the `seconds` that count, and more until there are as many answers as callers: the first
    ones of many wait less than all others will. `photos` are paths, `lines` texts; `vectors` are .npy files (N, dim)
    of what the right answers to them are, "" for not looking. `pid` is the server's process.
    """

    port: int
    pid: int
    model: str
    seconds: float
    warm: float
    pictures: int = 0
    texts: int = 0
    faces: int = 0
    photos: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    vectors: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Flow:
    """What the callers of one kind got: when each answer came, how long it took, and for which input it was.

    `sent` has when the requests that wait for an answer were sent, by number.
    """

    bodies: Callable[[int], list[bytes]]
    numbers: Iterator[int] = field(default_factory=itertools.count)
    sent: dict[int, float] = field(default_factory=dict)
    ended: list[float] = field(default_factory=list)
    taken: list[float] = field(default_factory=list)
    answers: list[tuple[int, bytes]] = field(default_factory=list)


def pictures(plan: Plan) -> Callable[[int], list[bytes]]:
    """Return a function from the number of a request to the parts of its body."""
    files = [Path(path).read_bytes() for path in plan.photos]
    before, after = _form({"clip": {"visual": {"modelName": plan.model}}}, IMAGE)
    return lambda number: [before, files[number % len(files)], b"%016x" % number, after]


def faces(plan: Plan) -> Callable[[int], list[bytes]]:
    """Return the same for the faces in photos."""
    files = [Path(path).read_bytes() for path in plan.photos]
    both = {"detection": {"modelName": FACES}, "recognition": {"modelName": FACES}}
    before, after = _form({"facial-recognition": both}, IMAGE)
    return lambda number: [before, files[number % len(files)], b"%016x" % number, after]


def texts(plan: Plan) -> Callable[[int], list[bytes]]:
    """Return the same for texts."""
    before, after = _form({"clip": {"textual": {"modelName": plan.model}}}, 'name="text"')
    return lambda number: [before, plan.lines[number % len(plan.lines)].encode(), after]


def _form(wanted: dict[str, Any], disposition: str) -> tuple[bytes, bytes]:
    entries = orjson.dumps(wanted).decode()
    before = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="entries"\r\n\r\n{entries}\r\n'
        f"--{BOUNDARY}\r\nContent-Disposition: form-data; {disposition}\r\n\r\n"
    )
    return before.encode(), f"\r\n--{BOUNDARY}--\r\n".encode()


async def caller(port: int, flow: Flow) -> None:
    """Send request after request until cancelled; raises RuntimeError for an answer that is not 200."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        while True:
            number = next(flow.numbers)
            body = flow.bodies(number)
            head = (
                "POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n"
                f"Content-Length: {sum(map(len, body))}\r\n\r\n"
            )
            flow.sent[number] = time.perf_counter()
            writer.writelines([head.encode(), *body])
            await writer.drain()
            answer = await _answer(reader)
            now = time.perf_counter()
            flow.ended.append(now)
            flow.taken.append(now - flow.sent.pop(number))
            flow.answers.append((number, answer))
    finally:
        writer.close()


async def _answer(reader: asyncio.StreamReader) -> bytes:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    status, *lines = head.split("\r\n")
    length = next(int(line.partition(":")[2]) for line in lines if line.lower().startswith("content-length:"))
    body = await reader.readexactly(length)
    if status.split()[1] != "200":
        raise RuntimeError(f"the server answered {status}: {body[:200].decode(errors='replace')}")
    return body


async def run(plan: Plan) -> dict[str, Any]:
    """Load the server as planned, and return what came of it by kind, and what it cost the server and this process."""
    counts = {"pictures": plan.pictures, "texts": plan.texts, "faces": plan.faces}
    makers = {"pictures": pictures, "texts": texts, "faces": faces}
    flows = {kind: Flow(makers[kind](plan)) for kind, count in counts.items() if count}
    owners = [flow for kind, flow in flows.items() for _ in range(counts[kind])]
    server, own = psutil.Process(plan.pid), psutil.Process()
    callers = [asyncio.create_task(caller(plan.port, flow)) for flow in owners]
    try:
        await _while_all_run(callers, plan.warm)
        await _until(callers, lambda: all(len(flow.ended) >= counts[kind] for kind, flow in flows.items()))
        before, began = (_busy(server), _busy(own)), time.perf_counter()
        await _while_all_run(callers, plan.seconds)
        await _until(callers, lambda: all(flow.ended[-1] >= began for flow in flows.values()))
        after, end = (_busy(server), _busy(own)), time.perf_counter()
        # What was sent by then counts in part, see `summary`.
        await _until(callers, lambda: all(sent >= end for flow in flows.values() for sent in flow.sent.values()))
    finally:
        for task in callers:
            task.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
    return {
        "seconds": end - began,
        "server_busy_s": after[0] - before[0],
        "client_busy_s": after[1] - before[1],
        **{kind: summary(flow, began, end, plan.vectors.get(kind, "")) for kind, flow in flows.items()},
    }


async def _until(callers: Sequence["asyncio.Task[None]"], true: Callable[[], bool]) -> None:
    """Wait until something is true, which the slowest kind of callers decides; raises RuntimeError if it never is."""
    end = time.perf_counter() + LONGEST_S
    while not true():
        if time.perf_counter() > end:
            raise RuntimeError(f"not every caller was answered in {LONGEST_S:.0f} s")
        await _while_all_run(callers, AGAIN_S)


async def _while_all_run(callers: Sequence["asyncio.Task[None]"], seconds: float) -> None:
    """Wait for `seconds`; raise what a caller raised before they were over."""
    done, _ = await asyncio.wait(callers, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    for task in done:
        task.result()


def _busy(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def summary(flow: Flow, began: float, end: float, vectors: str) -> dict[str, Any]:
    """Return rate and latencies of what was answered between two moments, and the lowest cosine of all answers.

    To the rate a request counts for the share of its time that lies between the two: answers come in batches, and it
    must not depend on whether one more batch just ended in time.
    """
    times = list(zip(flow.ended, flow.taken, strict=True))
    taken = [taken for ended, taken in times if began <= ended <= end]
    shares = [max(0.0, min(ended, end) - max(ended - taken, began)) / taken for ended, taken in times]
    return {
        "count": len(taken),
        "per_s": sum(shares) / (end - began),
        "p50_s": float(np.percentile(taken, 50)),
        "p99_s": float(np.percentile(taken, 99)),
        "lowest_cosine": lowest_cosine(flow.answers, np.load(vectors)) if vectors else None,
    }


def lowest_cosine(answers: Sequence[tuple[int, bytes]], right: np.ndarray[Any, np.dtype[np.float32]]) -> float:
    """Return the lowest cosine between the vectors of answers and those of `right` (N, dim), whose length is 1."""
    cosines = []
    for number, answer in answers:
        vector = np.asarray(orjson.loads(orjson.loads(answer)["clip"]))
        cosines.append(float(vector @ right[number % len(right)] / np.linalg.norm(vector)))
    return min(cosines)


def main() -> None:
    """Read the plan from standard input, load the server, and print what came of it as JSON."""
    plan = Plan(**orjson.loads(sys.stdin.buffer.read()))
    sys.stdout.write(orjson.dumps(asyncio.run(run(plan))).decode() + "\n")


if __name__ == "__main__":
    main()
