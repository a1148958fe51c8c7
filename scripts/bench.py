"""python -m scripts.bench [what…]: measure, ceiling first, one line of JSON last.

Knows how to measure the queue: what its way through costs a lone item, and how much of a model's own throughput is left
to callers who wait for their answers.
"""

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from server.batcher import Scheduler
from server.queue import BatchModel, Lane

CALLERS = 64
FULL = 32
LONE_ITEMS = 3000
console = Console()


class Free:
    """A model that costs nothing."""

    buckets = (1, 2, 4, 8, 16, 32)

    def collate(self, items: Sequence[Any]) -> list[Any]:
        """Return the items."""
        return list(items)

    def run(self, batch: list[Any]) -> list[Any]:
        """Return the items."""
        return batch


class Timed(Free):
    """A model of `fixed` seconds a batch plus `each` seconds an item."""

    def __init__(self, fixed: float, each: float) -> None:
        self.fixed = fixed
        self.each = each

    def run(self, batch: list[Any]) -> list[Any]:
        """Return the items after the time that they cost."""
        time.sleep(self.fixed + self.each * len(batch))
        return batch


def vit_b_32() -> tuple[BatchModel, Callable[[], Any]]:
    """Return the untrained picture tower of ViT-B-32 and a maker of items for it."""
    from pathlib import Path

    from engines import catalog, clip
    from engines.model import Config

    model = clip.load_visual(catalog.clip("ViT-B-32__openai"), Config(cache_folder=Path(), untrained=True))
    rng = np.random.default_rng(0)
    return model, lambda: rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)


async def lone_items(count: int) -> list[float]:
    """Return the seconds that each of `count` lone items takes through queue, scheduler, thread and back."""
    scheduler = Scheduler("bench")
    scheduler.start()
    queue = scheduler.add(Free(), "free", Lane.BULK)
    seconds = []
    for _ in range(count):
        started = time.perf_counter()
        await scheduler.submit(queue, None)
        seconds.append(time.perf_counter() - started)
    await scheduler.close()
    return seconds


async def closed_loop(model: BatchModel, item: Callable[[], Any], seconds: float) -> float:
    """Return the items per second that CALLERS get who each send the next item when the last one is answered."""
    scheduler = Scheduler("bench")
    scheduler.start()
    queue = scheduler.add(model, "model", Lane.BULK)
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


def bench_queue(seconds: float) -> dict[str, Any]:
    """Measure the queue: a lone item's way, and 64 callers on full batches of 32, in turn with the model alone."""
    record: dict[str, Any] = {"what": "queue"}
    lone = asyncio.run(lone_items(LONE_ITEMS))
    median, p99 = statistics.median(lone) * 1e6, statistics.quantiles(lone, n=100)[98] * 1e6
    console.print(
        f"lone item on a model that costs nothing: median {median:.0f} µs, p99 {p99:.0f} µs ({len(lone)} items)"
    )
    record |= {"lone_median_us": round(median, 1), "lone_p99_us": round(p99, 1)}
    table = Table("model", "full batch of 32 alone, items/s", f"{CALLERS} callers, items/s", "share", "rounds")
    vit, picture = vit_b_32()
    cases: list[tuple[str, str, BatchModel, Callable[[], Any], float]] = [
        ("2 ms + 1 ms per item", "fake", Timed(0.002, 0.001), object, seconds),
        ("ViT-B-32, eager float32", "vit_b_32", vit, picture, max(seconds, 12.0)),
    ]
    for name, key, model, item, duration in cases:
        own_rate(model, item, 0)  # the first batch of a network allocates
        alone, queued = [], []
        for _ in range(3):
            alone.append(own_rate(model, item, duration))
            queued.append(asyncio.run(closed_loop(model, item, duration)))
        share = statistics.median(queue / own for queue, own in zip(queued, alone, strict=True))
        table.add_row(
            name,
            f"{statistics.median(alone):.1f}",
            f"{statistics.median(queued):.1f}",
            f"{share:.2f}",
            " ".join(f"{queue / own:.2f}" for queue, own in zip(queued, alone, strict=True)),
        )
        record[key] = {"alone": round(statistics.median(alone), 1), "queued": round(statistics.median(queued), 1)}
        record[key]["share"] = round(share, 3)
    console.print(table)
    return record


BENCHES: dict[str, Callable[[float], dict[str, Any]]] = {"queue": bench_queue}


def main() -> None:
    """Run the benches that are asked for; the last line is JSON, one record each."""
    parser = argparse.ArgumentParser(description="Measure Facet: ceiling first, then what was reached of it.")
    parser.add_argument("what", nargs="*", help=f"what to measure, of {', '.join(BENCHES)} (default: everything)")
    parser.add_argument("--seconds", type=float, default=5.0, help="time of one round (default: 5)")
    arguments = parser.parse_args()
    if unknown := set(arguments.what) - set(BENCHES):
        parser.error(f"cannot measure {', '.join(sorted(unknown))}: there is {', '.join(BENCHES)}")
    records = [BENCHES[what](arguments.seconds) for what in arguments.what or BENCHES]
    print(json.dumps(records))


if __name__ == "__main__":
    main()
