"""python -m scripts.bench [what…]: measure, ceiling first, one line of JSON last.

Knows how to measure the queue (what its way through costs a lone item, and how much of a model's own throughput is left
to callers who wait for their answers) and the detector, in turn with facenet-pytorch's.
"""

import argparse
import asyncio
import functools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from scripts import scenes
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
    import torch

    from engines import catalog, clip
    from engines.model import Config

    config = Config(cache_folder=Path(), untrained=True)
    model = clip.load_visual(catalog.clip("ViT-B-32__openai"), config, torch.device("cpu"))
    rng = np.random.default_rng(0)
    return model, lambda: rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)


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


def matrix_rate() -> float:
    """Return the GFLOP/s of a large float32 matrix product: the ceiling of any network in eager float32 here."""
    import torch

    side = 2048
    a, b = torch.rand(2, side, side)
    best = min(timed(lambda: a @ b) for _ in range(5))
    return 2 * side**3 / best / 1e9


def timed(work: Callable[[], Any]) -> float:
    """Return the seconds that `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def montage() -> Image.Image:
    """Return 1440x1080 pixels of generated background with eight faces of 30 to 300 pixels."""
    import skimage.data

    canvas = scenes.photo(np.random.default_rng(1), 1440, 1080)
    with Image.open(Path(skimage.data.data_dir, "astronaut.png")) as file:
        face = file.convert("RGB").crop((150, 0, 300, 200))
    sizes = (30, 45, 60, 90, 130, 180, 240, 300)
    for number, size in enumerate(sizes):
        tile = face.resize((size, size * 4 // 3))
        canvas.paste(tile, (20 + 350 * (number % 4), 40 + 500 * (number // 4)))
    return canvas


def bench_faces(seconds: float) -> dict[str, Any]:
    """Measure detection on one picture at two smallest faces, in turn with facenet-pytorch's MTCNN."""
    import torch
    from facenet_pytorch import MTCNN

    from engines import faces
    from engines.model import Config

    record: dict[str, Any] = {"what": "faces", "float32_gflops": round(matrix_rate())}
    console.print(f"ceiling: {record['float32_gflops']} GFLOP/s in float32")
    picture = montage()
    table = Table("smallest face", "faces found", "facenet-pytorch, ms", "Facet, ms", "ratio")
    for min_face in (40, 20):
        theirs = MTCNN(keep_all=True, min_face_size=min_face, device="cpu")
        ours = faces.load_detector(Config(cache_folder=Path(), min_face=min_face), torch.device("cpu"))

        def detect(detector: faces.Detector = ours) -> faces.Faces:
            return detector.run(detector.collate([detector.prepare(picture, 0.7)]))[0]

        found = len(detect().boxes)
        theirs.detect(picture)
        a: list[float] = []
        b: list[float] = []
        end = time.perf_counter() + 2 * seconds
        while time.perf_counter() < end or len(a) < 3:
            a.append(timed(functools.partial(theirs.detect, picture)))
            b.append(timed(detect))
        row = [statistics.median(times) * 1000 for times in (a, b)]
        table.add_row(f"{min_face} px", str(found), *(f"{ms:.0f}" for ms in row), f"{row[0] / row[1]:.1f}")
        record[f"min_face_{min_face}"] = {"facenet_ms": round(row[0], 1), "facet_ms": round(row[1], 1), "faces": found}
    console.print(table)
    return record


def bench_queue(seconds: float) -> dict[str, Any]:
    """Measure the queue: a lone item's way, and 64 callers on full batches of 32, in turn with the model alone."""
    record: dict[str, Any] = {"what": "queue", "float32_gflops": round(matrix_rate())}
    console.print(f"ceiling: {record['float32_gflops']} GFLOP/s in float32")
    lone = asyncio.run(lone_items(LONE_ITEMS))
    median, p99 = statistics.median(lone) * 1e6, statistics.quantiles(lone, n=100)[98] * 1e6
    console.print(
        f"lone item on a model that costs nothing: median {median:.0f} µs, p99 {p99:.0f} µs ({len(lone)} items)"
    )
    record |= {"lone_median_us": round(median, 1), "lone_p99_us": round(p99, 1)}
    table = Table("model", "alone, items/s", f"{CALLERS} callers, items/s", "share", "rounds")
    vit, picture = vit_b_32()
    cases: list[tuple[str, str, BatchModel, Callable[[], Any], float]] = [
        ("2 ms + 1 ms per item", "fake", Timed(0.002, 0.001), object, seconds),
        ("ViT-B-32, eager float32", "vit_b_32", vit, picture, max(seconds, 12.0)),
    ]
    for name, key, model, item, duration in cases:
        own_rate(model, item, 0)  # the first batch of a network takes longer
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


BENCHES: dict[str, Callable[[float], dict[str, Any]]] = {"queue": bench_queue, "faces": bench_faces}


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
