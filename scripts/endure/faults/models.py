"""Trials of what goes wrong with models: their items, their engines, their threads, their memory, their loads, disks.

Each takes a live server or starts one, and returns what it counted. Every other request has to be answered right
meanwhile; what a fault may cost is told in its row.
"""

import asyncio
import io
import shutil
import stat
import tempfile
import time
from pathlib import Path

from scripts.bundled_photos import photo
from scripts.endure.faults.live import Live, Tally, live, poisoned
from scripts.endure.row import Row

PART = "faults"
OTHER = "ViT-B-32__openai"  # full size, untrained: anything but the demo that can be loaded without a network


def row(what: str, tried: int, tally: Tally, wrong: int = 0, seen: str = "") -> Row:
    """Return the row of one trial: `wrong` counts beside wrong vectors and errors that nobody may get."""
    errors = sum(count for status, count in tally.statuses.items() if status != 200)
    told = f"{tally.right} others right" + (f"; {seen}" if seen else "")
    return Row(PART, what, tried, tally.lost, tally.wrong + errors + wrong, told)


async def guilty_items(server: Live, times: int) -> Row:
    """Items that make their batch fail: only they do."""
    async with server.load() as tally:
        await server.answers(tally)
        failed = await poisoned(server, times)
        await server.answers(tally)
    return row("items that make their batch fail", times, tally, times - failed, f"{failed} of {times} told so")


async def dying_threads(server: Live, times: int) -> Row:
    """The device's thread dies under a full load."""
    async with server.load() as tally:
        for _ in range(times):
            await server.answers(tally)
            died = server.fault("die")
            while died.exists():  # noqa: ASYNC110 - another process takes it away
                await asyncio.sleep(0.001)
        await server.answers(tally)
    _, told = await server.ready()
    return row("the device's thread dies", times, tally, "took its place" not in told, "readiness tells")


async def little_memory(server: Live) -> Row:
    """A device has no memory for more than a few rows."""
    fault = server.fault("little-memory")
    async with server.load() as tally:
        await server.answers(tally, 300)
    fault.unlink()
    seen = "do not fit into the memory" in server.log.read_text("utf-8")
    return row("CUDA is out of memory (faked)", 1, tally, not seen, "batches were cut")


async def failing_engine(server: Live) -> Row:
    """An engine fails every batch for a while: eager PyTorch takes over, and readiness tells."""
    async with server.load() as tally:
        await server.answers(tally)
        began = time.perf_counter()
        fault = server.fault("raise")
        await server.until_ready("runs on eager PyTorch")
        seconds = time.perf_counter() - began
        await server.answers(tally)
        fault.unlink()
    return row("the engine fails every batch", 1, tally, seen=f"eager took over in {seconds:.1f} s")


async def returning_engine(server: Live) -> Row:
    """The engine works again: it comes back once it has proved itself."""
    async with server.load(callers=4) as tally:
        await server.until_logged("is back on torchscript")
        await server.answers(tally)
    _, told = await server.ready()
    return row("the engine works again", 1, tally, "eager" in told, "it came back under load")


async def loads(server: Live) -> Row:
    """A load fails, finds the disk full, and hangs: who needs that model is told or waits, the others are served."""
    wrong = 0
    buffer = io.BytesIO()
    photo("astronaut.png").save(buffer, "PNG")
    picture = buffer.getvalue()
    async with server.load() as tally:
        for name, status in (("load-fails", 503), ("disk-full", 500)):
            fault = server.fault(name)
            wrong += await server.faces(picture) not in (status, 503)
            fault.unlink()
        fault = server.fault("load-hangs")
        hanging = asyncio.create_task(server.faces(picture))
        await server.answers(tally)
        wrong += hanging.done()
        fault.unlink()
        wrong += await hanging != 200
    return row("a model load fails, fills the disk, hangs", 3, tally, wrong, "afterwards it is loaded")


async def folders() -> Row:
    """The cache folder is missing, cannot be written, and goes while the server runs."""
    total, wrong, tried = Tally(), 0, 0
    with tempfile.TemporaryDirectory(prefix="facet-cache-") as name:
        for kind in ("missing", "read-only", "removed"):
            cache = Path(name) / kind
            if kind != "missing":
                cache.mkdir()
            if kind == "read-only":
                cache.chmod(stat.S_IRUSR | stat.S_IXUSR)
            # Nothing is fetched: what is not there has to be told.
            async with live(cache, HF_HUB_OFFLINE="1") as server:
                async with server.load(callers=8) as tally:
                    await server.answers(tally, 30)
                    if kind == "removed":
                        shutil.rmtree(cache, ignore_errors=True)
                    status, _ = await server.text("x", OTHER)
                    wrong += status != 503
                    await server.answers(tally, 30)
                tried += 1
            total.right += tally.right
            total.wrong += tally.wrong
            total.lost += tally.lost
            total.statuses += tally.statuses
    return row("the cache folder is missing, read-only, removed", tried, total, wrong, "a model to be fetched is a 503")


async def clocks() -> Row:
    """The wall clock jumps years to and fro."""
    async with live(faults=("clock",)) as server:
        async with server.load() as tally:
            await server.answers(tally, 300)
        await asyncio.sleep(2)  # longer than the pause after which an idle model proves itself
        status, told = await server.ready()
        code, _ = await server.end()
    return row("the wall clock jumps by years", 1, tally, (status != 200) + (code != 0), told[:60])
