"""The queue: a lone item's way, 64 callers on full batches in turn with the model alone, and 10,000 that wait."""

import asyncio
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from engines import catalog, clip
from engines.model import Config
from scripts.bench.ceiling import Ceiling
from scripts.bench.options import Options
from scripts.bench.record import Row, row
from scripts.bench.turns import in_turn
from server.batcher import Scheduler
from server.queue import BatchModel, Lane, Limits

CALLERS = 64
FULL = 32
LONE_ITEMS = 3000
WAITING = 10_000


class Free:
    """A model that costs nothing, once its gate is open."""

    buckets = (1, 2, 4, 8, 16, 32)

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()

    def collate(self, items: Sequence[Any]) -> list[Any]:
        """Return the items."""
        return list(items)

    def run(self, batch: list[Any]) -> list[Any]:
        """Return the items."""
        self.gate.wait()
        return batch


class Timed(Free):
    """A model of `fixed` seconds a batch plus `each` seconds an item."""

    def __init__(self, fixed: float, each: float) -> None:
        super().__init__()
        self.fixed = fixed
        self.each = each

    def run(self, batch: list[Any]) -> list[Any]:
        """Return the items after the time that they cost."""
        time.sleep(self.fixed + self.each * len(batch))
        return batch


def measure(options: Options, ceiling: Ceiling) -> list[Row]:
    """Measure the queue."""
    lone = asyncio.run(lone_items(LONE_ITEMS))
    rows = [
        row("queue", "way of a lone item, median", "µs", [statistics.median(lone) * 1e6]),
        row("queue", "way of a lone item, p99", "µs", [statistics.quantiles(lone, n=100)[98] * 1e6]),
    ]
    waits = [asyncio.run(many_waiting(WAITING)) for _ in range(options.rounds)]
    case = "each of those that wait: queued, cut, answered"
    rows.append(row("queue", case, "µs", [seconds * 1e6 for seconds in waits], at=WAITING, goal="ours <= 50"))
    models = {"2 ms + 1 ms per item": (Timed(0.002, 0.001), object), options.model: picture_tower(options)}
    for name, (model, item) in models.items():
        own_rate(model, item, 0)  # the first batch of a network takes longer
        sides: dict[str, Callable[[], float]] = {
            "alone": partial(own_rate, model, item, options.seconds),
            "queued": lambda model=model, item=item: asyncio.run(closed_loop(model, item, options.seconds)),  # type: ignore[misc]  # mypy cannot infer a lambda with a default
        }
        found = in_turn(f"queue, {name}", sides, options.rounds)
        case = f"{CALLERS} callers on {name}, baseline: full batches of {FULL} without a queue"
        rows.append(row("queue", case, "items/s", found["queued"], found["alone"]))
    return rows


def picture_tower(options: Options) -> tuple[BatchModel, Callable[[], Any]]:
    """Return the untrained picture tower of the model in eager float32, and a maker of items for it."""
    entry = catalog.clip(options.model)
    model = clip.load_visual(entry, Config(cache_folder=options.cache, untrained=True), torch.device("cpu"))
    rng, size = np.random.default_rng(0), entry.image_size
    return model, lambda: rng.integers(0, 256, (size, size, 3), dtype=np.uint8)


async def lone_items(count: int) -> list[float]:
    """Return the seconds that each of `count` lone items takes through queue, scheduler, thread and back."""
    scheduler = Scheduler("bench")
    scheduler.start()
    queue = scheduler.add([Free()], "free", Lane.BULK)
    seconds = []
    for _ in range(count):
        started = time.perf_counter()
        await scheduler.submit(queue, None)
        seconds.append(time.perf_counter() - started)
    await scheduler.close()
    return seconds


async def many_waiting(count: int) -> float:
    """Return the seconds that the queue costs each of `count` items that all wait at once, of two flows."""
    model = Free()
    scheduler = Scheduler("bench")
    scheduler.start()
    queue = scheduler.add([model], "free", Lane.BULK, Limits(items=2 * count))
    model.gate.clear()
    started = time.perf_counter()
    futures = [scheduler.submit(queue, None, flow=number % 2) for number in range(count)]
    model.gate.set()
    await asyncio.gather(*futures)
    seconds = time.perf_counter() - started
    await scheduler.close()
    return seconds / count


async def closed_loop(model: BatchModel, item: Callable[[], Any], seconds: float) -> float:
    """Return the items per second that CALLERS get who each send the next item when the last one is answered."""
    scheduler = Scheduler("bench")
    scheduler.start()
    queue = scheduler.add([model], "model", Lane.BULK)
    items = [item() for _ in range(CALLERS)]
    answered = 0
    end = time.perf_counter() + seconds

    async def caller(number: int) -> None:
        nonlocal answered
        while time.perf_counter() < end:
            await scheduler.submit(queue, items[number], flow=number)
            answered += 1

    started = time.perf_counter()
    await asyncio.gather(*(caller(number) for number in range(CALLERS)))
    rate = answered / (time.perf_counter() - started)
    await scheduler.close()
    return rate


def own_rate(model: BatchModel, item: Callable[[], Any], seconds: float) -> float:
    """Return the items per second of the model's full batch, called directly."""
    items = [item() for _ in range(FULL)]
    done = 0
    started = time.perf_counter()
    while time.perf_counter() - started < seconds or not done:
        model.run(model.collate(items))
        done += FULL
    return done / (time.perf_counter() - started)
