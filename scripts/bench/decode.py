"""Bytes of a JPEG to pixels: ours in turn with Pillow, on one thread and on two; and scaled, as for a CLIP vector."""

import io
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from engines import catalog, images
from scripts.bench import pictures
from scripts.bench.ceiling import Ceiling
from scripts.bench.options import Options
from scripts.bench.record import Row, row
from scripts.bench.turns import in_turn, pace, timed

PREVIEW = "1440x1080"
AT_ONCE = 8  # calls given to one or two threads at a time


def measure(options: Options, ceiling: Ceiling) -> list[Row]:
    """Measure both sizes, then how two threads do."""
    rows = []
    files = {PREVIEW: pictures.photos(options.cache, 1)[0], "12 megapixels": pictures.original(options.cache)}
    for name, data in files.items():
        difference = np.abs(images.decode(data, pictures.MAX_PIXELS).astype(np.int16) - by_pillow(data))
        sides: dict[str, Callable[[], float]] = {
            "ours": partial(pace, partial(images.decode, data, pictures.MAX_PIXELS), options.seconds),
            "Pillow": partial(pace, partial(by_pillow, data), options.seconds),
        }
        found = in_turn(f"decode, {name}", sides, options.rounds)
        per_s = [[1 / seconds for seconds in each] for each in found.values()]
        most = ceiling.decoded if name == PREVIEW else None
        rows.append(row("decode", name, "pictures/s", *per_s, ceiling=most))
        rows.append(row("decode", f"{name}, greatest difference to Pillow", "levels", [float(difference.max())]))
        rows.append(row("decode", f"{name}, mean difference to Pillow", "levels", [float(difference.mean())]))
        rows.append(scaling("decode", name, partial(images.decode, data, pictures.MAX_PIXELS), options))
        rows.append(_scaled(name, data, options))
    return rows


def _scaled(name: str, data: bytes, options: Options) -> Row:
    """Return how fast a picture is decoded for the first model of the options, beside in full."""
    enough = math.ceil(options.settings().scaled_decode * catalog.clip(options.model).image_size)
    sides: dict[str, Callable[[], float]] = {
        case: partial(pace, partial(images.reduced, data, pictures.MAX_PIXELS, shortest), options.seconds)
        for case, shortest in (("ours", enough), ("in full", 0))
    }
    found = in_turn(f"decode, {name}, scaled", sides, options.rounds)
    per_s = [[1 / seconds for seconds in each] for each in found.values()]
    case = f"{name} for {options.model}, baseline: ours in full"
    return row("decode", case, "pictures/s", *per_s, goal="ratio >= 0.95")


def by_pillow(data: bytes) -> NDArray[np.uint8]:
    """Return the pixels (H, W, 3) as Pillow decodes them."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def scaling(what: str, name: str, work: Callable[[], object], options: Options) -> Row:
    """Return how many calls of `work` two threads do in a second, beside one: with the GIL held it would be as many.

    PyTorch's own threads are kept to one for each meanwhile, which else would take the other core for the one too.
    """
    sides: dict[str, Callable[[], float]] = {
        str(threads): partial(calls_per_s, work, threads, options.seconds) for threads in (2, 1)
    }
    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        two, one = in_turn(f"{what}, {name}, threads", sides, options.rounds).values()
    finally:
        torch.set_num_threads(usual)
    return row(what, f"{name}, on 2 threads, baseline: on 1", "pictures/s", two, one, at=2)


def calls_per_s(work: Callable[[], object], threads: int, seconds: float) -> float:
    """Return the calls of `work` per second of so many threads, in at least `seconds`."""
    with ThreadPoolExecutor(threads) as pool:

        def some() -> None:
            for done in [pool.submit(work) for _ in range(AT_ONCE)]:
                done.result()

        some()
        count, taken = 0, 0.0
        while taken < seconds or not count:
            taken += timed(some)
            count += AT_ONCE
    return count / taken
