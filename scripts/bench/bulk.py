"""A folder of photos into an index, against the engine's own full batches: what reading, decoding and writing cost.

The photos are thumbnails of 448x336 pixels, as photo apps keep them, so that decoding is not the limit. Both sides use
the same loaded picture tower, in turn. Ours is a whole run as by scripts.index_photos without faces, from the walk to
the replaced index; only loading the model is left out. Then 10,000 photos go through the demo model, whose network
costs next to nothing: what the rest can do, whether memory grows, and how long a second run takes that finds nothing
new.
"""

import asyncio
import io
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from engines import catalog
from scripts import scenes
from scripts.bench import pictures, served
from scripts.bench.ceiling import Ceiling
from scripts.bench.options import Options
from scripts.bench.record import Row, row
from scripts.bench.show import tell
from scripts.bench.turns import Ended, in_turn
from scripts.bulk.embed import Run
from scripts.bulk.index import Index
from scripts.bulk.inside import Inside, inside
from scripts.bulk.made_with import made_with
from scripts.bulk.progress import Progress
from scripts.bulk.table import About
from server.loading import engine_config
from server.settings import Settings
from server.shelf import Part
from server.wire import Ask

SIZE = (448, 336)
DRAWN = 64  # scenes; all photos are shifted copies of them, each another file
FOLDER = 2000  # photos in one folder: those of a round, so many that start and end count little
PHOTOS = 10_000
SETTLED = 0.2  # of all photos: from then on memory must not grow
RATIO, GROWTH_MB = 0.9, 50.0
ENGINE_S = 20.0  # for which full batches run at least: a run takes so long, and the machine must not change in between
SAMPLE_S = 0.1


@dataclass(frozen=True, slots=True)
class Ran:
    """One run: photos per second, and by how many megabytes its memory grew once it had settled."""

    rate: float
    growth: float


def measure(options: Options, ceiling: Ceiling) -> list[Row]:
    """Measure the model and the demo; raises Ended unless what was built runs, or if a photo is not embedded."""
    wanted = served.build(options)
    folder = thumbnails(options.cache, PHOTOS)
    found = asyncio.run(_against_the_engine(options, folder / "000", wanted))
    return [*found, *asyncio.run(_many(options, folder))]


def thumbnails(cache_folder: Path, count: int) -> Path:
    """Return a folder with `count` JPEGs in folders of FOLDER each; only what is missing is drawn."""
    folder = cache_folder / f"thumbnails-{count}"
    last = folder / f"{(count - 1) // FOLDER:03}" / f"{count - 1}.jpg"
    if last.exists():
        return folder
    tell(f"draws {count} thumbnails")
    rng = np.random.default_rng(pictures.SEED)
    for number in range(count):
        path = folder / f"{number // FOLDER:03}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        shifted = np.roll(_drawn(number % DRAWN), tuple(rng.integers(0, SIZE[1], 2)), (0, 1))
        file = io.BytesIO()
        Image.fromarray(shifted).save(file, "JPEG", quality=pictures.QUALITY)
        path.write_bytes(file.getvalue())
    return folder


@cache
def _drawn(seed: int) -> NDArray[np.uint8]:
    return np.asarray(scenes.photo(np.random.default_rng([pictures.SEED, seed]), *SIZE))


async def _against_the_engine(options: Options, folder: Path, wanted: dict[str, str]) -> list[Row]:
    settings = options.settings(untrained=options.model != catalog.DEMO)
    entry = catalog.clip(options.model)
    async with inside(settings, [Part("visual", entry)]) as ready:
        info = ready.loaded[0].model.info
        running = {"visual": served.Running(f"{info.backend} {info.precision}", info.reason)}
        if wrong := served.others({"visual": wanted["visual"]} if "visual" in wanted else {}, running, options):
            raise Ended(f"what was built does not run, so nothing is measured: {wrong}")
        model = ready.loaded[0].model
        size = entry.image_size
        item = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
        loop = asyncio.get_running_loop()

        def ours() -> float:
            return asyncio.run_coroutine_threadsafe(_run(ready, settings, folder), loop).result().rate

        sides: dict[str, Callable[[], float]] = {
            "ours": ours,
            "engine": lambda: full_batches(model, item, max(options.seconds, ENGINE_S)),
        }
        found = await asyncio.to_thread(in_turn, "bulk", sides, options.rounds)
        largest = model.buckets[-1]
    case = f"thumbnails of {SIZE[0]}x{SIZE[1]} into an index, baseline: the engine's full batches"
    engine = running["visual"].engine
    goal = f"ratio >= {RATIO:g}"
    return [row("bulk", case, "photos/s", *found.values(), at=largest, model=options.model, engine=engine, goal=goal)]


def full_batches(model: Any, item: NDArray[np.uint8], seconds: float) -> float:
    """Return items per second of a model's largest batch, each collated while the one before runs."""
    items: Sequence[NDArray[np.uint8]] = [item] * model.buckets[-1]
    with ThreadPoolExecutor(1, "ahead") as ahead:
        model.run(model.collate(items))  # the first one allocates
        coming, done = ahead.submit(model.collate, items), 0
        started = time.perf_counter()
        while not done or time.perf_counter() - started < seconds:
            batch, coming = coming.result(), ahead.submit(model.collate, items)
            model.run(batch)
            done += len(items)
        return done / (time.perf_counter() - started)


async def _many(options: Options, folder: Path) -> list[Row]:
    """Measure PHOTOS with the demo model, and a second run that finds nothing new."""
    options = replace(options, engine="auto", precision="auto")
    settings = options.settings(untrained=False)
    async with inside(settings, [Part("visual", catalog.clip(catalog.DEMO))]) as ready:
        with tempfile.TemporaryDirectory() as place:
            tell(f"bulk: {PHOTOS} photos")
            first = await _run(ready, settings, folder, Path(place))
            tell(f"bulk: {PHOTOS} photos once more")
            again = await _run(ready, settings, folder, Path(place))
        engine = ready.engine
    common: dict[str, Any] = {"at": PHOTOS, "model": catalog.DEMO, "engine": engine}
    return [
        row("bulk", "photos of a large folder", "photos/s", [first.rate], **common),
        row("bulk", "the same again, nothing new", "photos/s", [again.rate], **common),
        row("bulk", "growth of memory", "MB", [first.growth], goal=f"ours <= {GROWTH_MB:g}", **common),
    ]


async def _run(ready: Inside, settings: Settings, folder: Path, place: Path | None = None) -> Ran:
    """Index `folder` into `place`, or where it is cleared away; raises Ended unless every photo is in."""
    if place is None:
        with tempfile.TemporaryDirectory() as place_for_once:
            return await _run(ready, settings, folder, Path(place_for_once))
    entry = catalog.clip(ready.loaded[0].part.entry.name)
    mine = made_with(settings, engine_config(settings), entry.name)
    index = Index(place / "index.parquet", About(folder=str(folder), made_with=mine, dim=entry.dim))
    held: list[tuple[int, float]] = []
    started = time.perf_counter()
    try:
        index.begin()
        with Progress(Console(quiet=True), place / "failed.txt") as progress:
            watching = asyncio.create_task(_watch(progress, held))
            await Run(ready, index, folder, Ask(visual=entry.name), progress).photos()
            watching.cancel()
        await asyncio.to_thread(index.finish)
    finally:
        index.close()
    seconds = time.perf_counter() - started
    if progress.failed:
        raise Ended(f"{progress.failed} photos were not embedded: {progress.first}")
    photos = progress.embedded + progress.kept
    settled = [megabytes for done, megabytes in held if done >= SETTLED * photos]
    return Ran(photos / seconds, max(settled, default=0.0) - min(settled[:1], default=0.0))


async def _watch(progress: Progress, held: list[tuple[int, float]]) -> None:
    process = psutil.Process()
    while True:
        held.append((progress.embedded, process.memory_info().rss / 1e6))
        await asyncio.sleep(SAMPLE_S)
