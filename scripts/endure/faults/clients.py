"""Trials of clients that behave badly: they hang up at every stage, hold idle connections, or send slowly.

Each takes a live server, and returns what it counted. Pings and predictions have to be quick all the while.
"""

import asyncio
import contextlib
import resource
import socket
import struct
import time

import orjson
import psutil

from scripts.endure.faults.live import Live
from scripts.endure.faults.models import PART, row
from scripts.endure.row import Row

BODY = b'entries={"clip":{"textual":{"modelName":"demo"}}}&text=a+red+circle'
HEAD = (
    b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\n"
    b"Content-Length: %d\r\n\r\n" % len(BODY)
)
QUICK_S = 1.0  # a ping, on two busy old cores
MOST_MB = 200.0  # that the server may grow by meanwhile
# What a client sends before it goes, and how long it waits then, in seconds.
STAGES = {
    "before headers": (b"", 0.0),
    "in headers": (HEAD[:30], 0.0),
    "before the body": (HEAD, 0.0),
    "in the body": (HEAD + BODY[:20], 0.0),
    "while queued": (HEAD + BODY, 0.0),
    "while computed": (HEAD + BODY, 0.01),
    "while answered": (HEAD + BODY, 0.05),
}


async def hang_up(port: int, sent: bytes, seconds: float, reset: bool) -> None:
    """Connect, send, wait, and go, with a reset if wanted."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    sock = writer.get_extra_info("socket")
    if reset:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.write(sent)
    with contextlib.suppress(ConnectionError):  # it is the one that breaks it
        await writer.drain()
    await asyncio.sleep(seconds)
    writer.close()


async def hanging_up(server: Live, each: int) -> Row:
    """Clients hang up at every stage; afterwards nobody is inside, and nothing waits."""
    async with server.load() as tally:
        for sent, seconds in STAGES.values():
            await asyncio.gather(*(hang_up(server.port, sent, seconds, reset=bool(n % 2)) for n in range(each)))
            await server.answers(tally)
    inside = 1.0
    async with asyncio.timeout(30):
        while inside:
            await asyncio.sleep(0.05)
            inside = await gauge(server, "facet_requests_inside")
    waiting = (await models(server))["loaded"][0]["waiting"]
    return row("clients that hang up at every stage", each * len(STAGES), tally, int(waiting), f"{len(STAGES)} stages")


async def idle_connections(server: Live, count: int) -> Row:
    """Thousands of connections on which nothing comes."""
    allow_files(count + 1000)
    before = resident_mb(server)
    writers = []
    for _ in range(count):
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writers.append(writer)
    async with server.load(callers=8) as tally:
        pings = [await server.ping_s() for _ in range(20)]
        await server.answers(tally, 100)
    grown = resident_mb(server) - before
    for writer in writers:
        writer.close()
    seen = f"slowest ping {max(pings) * 1000:.0f} ms, {grown:.0f} MB more"
    return row(f"{count:,} idle connections", count, tally, (max(pings) > QUICK_S) + (grown > MOST_MB), seen)


async def slow_senders(server: Live, count: int, seconds: float) -> Row:
    """Clients that send a byte now and then; each gets its answer at last, or is given up."""
    before = resident_mb(server)
    slow = [asyncio.create_task(send_slowly(server.port, seconds)) for _ in range(count)]
    pings = []
    async with server.load(callers=8) as tally:
        while not all(task.done() for task in slow):
            pings.append(await server.ping_s())
            await asyncio.sleep(0.1)
        await server.answers(tally, 50)
    grown = resident_mb(server) - before
    answers = [task.result() for task in slow]
    unanswered = sum(not answer.startswith(b"HTTP/1.1 ") for answer in answers)
    seen = f"slowest ping {max(pings) * 1000:.0f} ms, {grown:.0f} MB more"
    found = row(f"{count} slow senders", count, tally, (max(pings) > QUICK_S) + (grown > MOST_MB), seen)
    return Row(PART, found.what, found.tried, found.lost + unanswered, found.wrong, found.seen)


async def send_slowly(port: int, seconds: float) -> bytes:
    """Send one request over so many seconds, byte by byte; return the first line of the answer, empty if none came."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    sent = HEAD + BODY
    steps = 40
    began = time.perf_counter()
    size = -(-len(sent) // steps)
    line = b""
    with contextlib.suppress(ConnectionError):  # what came before that is the answer
        for step in range(steps):
            writer.write(sent[step * size : (step + 1) * size])
            await writer.drain()
            await asyncio.sleep(max(0.0, began + (step + 1) * seconds / steps - time.perf_counter()))
        line = await reader.readline()
    writer.close()
    return line


async def gauge(server: Live, name: str) -> float:
    """Return a metric without labels."""
    async with server.session.get("/metrics") as answer:
        lines = (await answer.text()).splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


async def models(server: Live) -> dict[str, list[dict[str, int]]]:
    """Return what /models says."""
    async with server.session.get("/models") as answer:
        told: dict[str, list[dict[str, int]]] = orjson.loads(await answer.read())
        return told


def resident_mb(server: Live) -> float:
    """Return the megabytes that the server holds."""
    return float(psutil.Process(server.process.pid).memory_info().rss / 1e6)


def allow_files(count: int) -> None:
    """Let this process open so many files, if the system lets it; raises ValueError if not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
