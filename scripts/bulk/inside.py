"""The server without HTTP, in this process: the models of a run, loaded and held, and what answers with them.

The same shelf, queues and threads as behind a socket, put together from the same settings, so that an index has the
vectors that the server answers.
"""

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from engines import machine
from server.budget import Budget
from server.loading import Engines, batch_weight, engine_config
from server.predict import Predictor, Rules
from server.queue import Limits
from server.settings import Settings
from server.shelf import Loaded, Part, Shelf

CLOSE_S = 5.0


@dataclass(frozen=True, slots=True)
class Inside:
    """What answers, and the models that it answers with."""

    predictor: Predictor
    loaded: Sequence[Loaded]
    threads: int  # that decode
    max_bytes: int  # of one photo

    @property
    def engine(self) -> str:
        """What the models run on, in words: "openvino bfloat16 on cpu", one after the other where they differ."""
        infos = [one.model.info for one in self.loaded]
        return ", ".join(dict.fromkeys(f"{info.backend} {info.precision} on {info.device}" for info in infos))

    @property
    def callers(self) -> int:
        """How many photos must be on their way to keep all busy: a batch that runs, one collated, one that fills."""
        largest: int = max(one.model.buckets[-1] for one in self.loaded)
        return max(3 * largest, 2 * self.threads)


@asynccontextmanager
async def inside(settings: Settings, parts: Sequence[Part]) -> AsyncIterator[Inside]:
    """Load `parts` and yield what answers with them; raises what loading raises, errors of engines.errors."""
    engines = Engines(engine_config(settings))
    shelf = Shelf(engines.load, engines.release, limits=_limits)
    rules = Rules(settings.face_alias, settings.max_pixels, settings.exif, ocr=False)
    threads = settings.request_threads or machine.cores()
    predictor = Predictor(shelf, rules, Budget(settings.max_decoded_pixels), threads)
    try:
        async with AsyncExitStack() as held:
            loaded = [await held.enter_async_context(shelf.use(part)) for part in parts]
            yield Inside(predictor, loaded, threads, int(settings.max_body_mb * 1_000_000))
    finally:
        predictor.close()
        await shelf.close(grace=CLOSE_S)


def _limits(part: Part) -> Limits:
    # Nobody waits for one photo alone, so that no queue is too long; how much is on its way is bounded elsewhere.
    return Limits(seconds=math.inf, batch_weight=batch_weight(part.kind))
