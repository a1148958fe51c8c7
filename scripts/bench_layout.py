"""Measures how the cores are best shared between decoding and computing: python -m scripts.bench_layout [NAME].

Photos of 1440x1080 go the whole way of the server but HTTP: decoded and prepared in its threads, queued, computed in
batches.
Every number of decoding threads is tried with every number of streams and of computing threads, in turn. What wins here
belongs into MACHINE_LEARNING_REQUEST_THREADS, MACHINE_LEARNING_STREAMS and MACHINE_LEARNING_MODEL_INTRA_OP_THREADS; the
defaults are all cores for both kinds of threads, and the streams that were measured when the engine was built. The last
line is JSON.
"""

import argparse
import asyncio
import io
import itertools
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
from rich.console import Console
from rich.table import Table

from engines import catalog, machine
from engines.model import Config
from scripts import scenes
from server.budget import Budget
from server.loading import Engines, engine_config
from server.predict import Predictor, Rules
from server.settings import Settings
from server.shelf import Part, Shelf
from server.wire import Ask

PHOTOS = 24
CALLERS = 16
ROUNDS = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every layout of one CLIP model and print a table."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench_layout", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", default="ViT-B-32__openai", metavar="NAME", help="a CLIP model")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement, default 8")
    options = parser.parse_args(arguments)
    settings = Settings()
    config = engine_config(settings)
    cores = machine.cores()
    tried = sorted({1, max(1, cores // 2), cores})
    layouts = list(itertools.product(tried, tried, tried))
    pictures = photos()
    rates: dict[tuple[int, int, int], list[float]] = {layout: [] for layout in layouts}
    for _ in range(ROUNDS):
        for decoding, computing, streams in layouts:
            if streams > computing:
                continue
            laid_out = replace(config, threads=computing, streams=streams)
            rate = asyncio.run(closed_loop(options.name, laid_out, decoding, pictures, options.seconds))
            rates[decoding, computing, streams].append(rate)
    records = [
        {"decoding_threads": d, "computing_threads": c, "streams": s, "pictures_per_s": statistics.median(measured)}
        for (d, c, s), measured in rates.items()
        if measured
    ]
    table = Table(
        "decoding threads", "computing threads", "streams", "pictures/s", title=f"{options.name}, {cores} cores"
    )
    for record in sorted(records, key=lambda record: -record["pictures_per_s"]):
        table.add_row(*(str(value) for value in list(record.values())[:3]), f"{record['pictures_per_s']:.1f}")
    Console().print(table)
    sys.stdout.write(orjson.dumps(records).decode() + "\n")
    return 0


def photos() -> list[bytes]:
    """Return generated photos as JPEGs of 1440x1080 pixels."""
    rng = np.random.default_rng(1)
    files = []
    for _ in range(PHOTOS):
        file = io.BytesIO()
        scenes.photo(rng, 1440, 1080).save(file, "JPEG", quality=80)
        files.append(file.getvalue())
    return files


async def closed_loop(name: str, config: Config, threads: int, pictures: Sequence[bytes], seconds: float) -> float:
    """Return the pictures per second that CALLERS get who each send the next picture when the last is answered."""
    engines = Engines(config)
    shelf = Shelf(engines.load, engines.release)
    rules = Rules(face_alias="", max_pixels=100_000_000, exif=False, ocr=False)
    predictor = Predictor(shelf, rules, Budget(100_000_000), threads)
    await shelf.preload([Part("visual", catalog.clip(name))])
    answered = 0
    started = time.perf_counter()

    async def caller(number: int) -> None:
        nonlocal answered
        own = itertools.cycle(pictures[number % len(pictures) :])
        while time.perf_counter() - started < seconds:
            ask = Ask(visual=name, image=next(own))
            answer: Any = await predictor.answer(ask, flow=number)
            answered += answer.embedding is not None

    await asyncio.gather(*(caller(number) for number in range(CALLERS)))
    rate = answered / (time.perf_counter() - started)
    predictor.close()
    await shelf.close(grace=5.0)
    return rate


if __name__ == "__main__":
    sys.exit(main())
