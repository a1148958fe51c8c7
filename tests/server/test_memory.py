"""Unloading gives memory back: resident size over 20 rounds of load, use and unload, in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import asyncio, json, sys
from pathlib import Path
import numpy as np, psutil
from engines import catalog
from engines.model import Config
from server.loading import Engines
from server.shelf import Part, Shelf

async def main(kind, name):
    engines = Engines(Config(cache_folder=Path(), untrained=True))
    engines.warm_up()
    shelf = Shelf(engines.load, engines.release, ttl=1e-9)
    part = Part(kind, catalog.look_up(kind, name))
    sizes = []
    for _ in range(20):
        async with shelf.use(part) as loaded:
            item = np.zeros((224, 224, 3) if kind == "visual" else (77,), np.uint8 if kind == "visual" else np.int64)
            await asyncio.gather(*(loaded.scheduler.submit(loaded.queue, item) for _ in range(4)))
            held = loaded.model.info.bytes
        del loaded
        await shelf.unload_idle()
        assert not shelf.loaded()
        sizes.append(psutil.Process().memory_info().rss)
    await shelf.close(grace=5)
    print(json.dumps({"sizes": sizes, "held": held}))

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize(("kind", "name"), [("visual", "ViT-B-32__openai"), ("textual", "ViT-B-32__openai")])
def test_twenty_rounds_leave_the_resident_size_where_it_was(kind: str, name: str) -> None:
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", PROGRAM, kind, name], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    measured = json.loads(done.stdout)
    sizes = measured["sizes"]
    assert sizes[-1] <= 1.1 * sizes[0], sizes
    assert measured["held"] > 100 << 20, "the model is large enough for a leak to show"
