"""python -m scripts.endure.faults.process FOLDER: the real server, with models that fail when they are told to.

The trained demo model computes, behind the real queues and the real HTTP stack; faults come in through the functions
that load models, so that the server itself knows nothing of them. A file in FOLDER is a fault, for as long as it lies
there. Knows nothing of who puts it there, and nothing of what is sent.

- `raise`: every batch of a compiled model fails. `die`: the next batch ends its thread, and takes the file away.
- `little-memory`: batches of more than four rows find no memory on the device.
- `load-fails`, `load-hangs`, `disk-full`: what becomes of whoever loads a model meanwhile.
- `clock`: the wall clock jumps years to and fro with each look at it, from the start on.
"""

import asyncio
import errno
import itertools
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from engines.errors import WeightsMissing
from engines.model import Model
from server import logs
from server.__main__ import listen, serve
from server.loading import Engines, engine_config
from server.settings import Settings
from server.shelf import Part

POISON = "poison"  # a text with this word makes every batch fail that it rides in
YEAR_S = 365 * 86400.0
POLL_S = 0.01
ROWS = 4  # that fit where there is little memory


class Faulty:
    """A model that fails as the files of a folder say; all else is that of the model inside."""

    def __init__(self, inside: Any, folder: Path) -> None:
        self._inside = inside
        self._folder = folder
        self._poison: set[bytes] = set()
        self.buckets = inside.buckets
        self.info = replace(inside.info, backend="torchscript", built=True)  # something that eager can stand in for

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inside, name)

    def prepare(self, value: Any, *options: Any) -> Any:
        """Prepare as the model does, and remember what is poison."""
        item = self._inside.prepare(value, *options)
        if isinstance(value, str) and POISON in value:
            self._poison.add(item.tobytes())
        return item

    def collate(self, items: Sequence[Any]) -> tuple[Any, bool]:
        """Put items together, and say whether poison is among them."""
        return self._inside.collate(items), any(item.tobytes() in self._poison for item in items)

    def run(self, batch: tuple[Any, bool]) -> Sequence[Any]:
        """Compute a batch, or fail."""
        collated, is_poison = batch
        if (self._folder / "die").exists():
            (self._folder / "die").unlink()
            raise SystemExit("the thread was told to die")
        if is_poison or (self._folder / "raise").exists():
            raise RuntimeError("the engine was told to fail")
        results: Sequence[Any] = self._inside.run(collated)
        return results


class Tight:
    """An engine on a device with little memory."""

    def __init__(self, engine: Any, folder: Path) -> None:
        self._engine = engine
        self._folder = folder
        self.backend, self.precision, self.device = engine.backend, engine.precision, engine.device

    def __call__(self, batch: Any) -> Any:
        if len(batch) > ROWS and (self._folder / "little-memory").exists():
            import torch  # heavy: it is imported with the models

            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self._engine(batch)


class FaultyEngines(Engines):
    """The engines of the server, with models that fail when they are told to."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        super().__init__(engine_config(settings))
        self._folder = folder

    def load(self, part: Part) -> Sequence[Model]:
        """Load as the server does, or fail; raises WeightsMissing, OSError."""
        while (self._folder / "load-hangs").exists():
            time.sleep(POLL_S)
        if (self._folder / "load-fails").exists():
            raise WeightsMissing("The weights are not there, since the load was told to fail.")
        if (self._folder / "disk-full").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        models: list[Any] = list(super().load(part))
        for model in models:
            if part.kind in ("visual", "textual"):
                from engines.fitting import Fitting  # imports torch

                model._engine = Fitting(Tight(model._engine, self._folder), model.buckets)
        return [Faulty(model, self._folder) if part.kind in ("visual", "textual") else model for model in models]


def main(folder: Path) -> None:
    """Serve on a free port until a signal comes."""
    settings = Settings()
    logs.set_up(settings.log_level, settings.log_format)
    if (folder / "clock").exists():
        real, turns = time.time, itertools.count()
        time.time = lambda: real() + YEAR_S * (-1) ** next(turns) * (next(turns) % 7)
    sock = listen(settings.host, settings.port)
    asyncio.run(serve(settings, FaultyEngines(settings, folder), sock))
    os._exit(0)  # as the server does: a thread may be busy


if __name__ == "__main__":
    main(Path(sys.argv[1]))
