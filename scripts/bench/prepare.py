"""Pixels to the square that a network sees: ours in turn with open_clip's own transform, and how far they differ."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL import Image

from engines import catalog, images, preprocess
from scripts.bench import pictures, reference
from scripts.bench.ceiling import Ceiling
from scripts.bench.decode import scaling
from scripts.bench.options import Options
from scripts.bench.record import Row, row
from scripts.bench.turns import in_turn, pace


def measure(options: Options, ceiling: Ceiling) -> list[Row]:
    """Measure both sizes; the ceiling is reading the picture once at the rate of a copy."""
    entry = catalog.clip(options.model)
    square = reference.squares(entry)
    module = reference.visual(options.model, options.cache).module
    rows = []
    files = {"1440x1080": pictures.photos(options.cache, 1)[0], "12 megapixels": pictures.original(options.cache)}
    for name, data in files.items():
        pixels = images.decode(data, pictures.MAX_PIXELS)
        image = Image.fromarray(pixels)
        ours = partial(preprocess.prepare, pixels, entry.image_size, entry.resize)
        sides: dict[str, Callable[[], float]] = {
            "ours": partial(pace, ours, options.seconds),
            "open_clip": partial(pace, partial(square, image), options.seconds),
        }
        found = in_turn(f"prepare, {name}", sides, options.rounds)
        per_s = [[1 / seconds for seconds in each] for each in found.values()]
        difference = np.abs(ours().astype(np.int16) - square(image))
        with torch.inference_mode():
            mine, theirs = module(torch.from_numpy(np.stack([ours(), square(image)])))
        most = ceiling.bandwidth * 1e9 / (2 * pixels.nbytes)
        rows += [
            row("prepare", name, "pictures/s", *per_s, ceiling=most, model=entry.name),
            row("prepare", f"{name}, greatest difference", "levels", [float(difference.max())], goal="ours <= 1"),
            row("prepare", f"{name}, mean difference", "levels", [float(difference.mean())], goal="ours <= 0.01"),
            row("prepare", f"{name}, cosine through the tower", "", [float(mine @ theirs)], goal="ours >= 0.99999"),
            scaling("prepare", name, ours, options),
        ]
    return rows
