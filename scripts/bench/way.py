"""The whole way of the server but HTTP, in this process: decoded and prepared in threads, queued, run in batches."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from engines import machine
from engines.model import Config
from scripts.bench import pictures
from scripts.bench.served import Running
from scripts.bench.turns import Ended
from server.app import DETECTION_BATCH_PIXELS, Engines
from server.budget import Budget
from server.predict import Predictor, Rules
from server.queue import Limits
from server.shelf import Part, Shelf

CLOSE_S = 5.0


@asynccontextmanager
async def whole(
    config: Config, parts: Sequence[Part], threads: int = 0
) -> AsyncIterator[tuple[Predictor, dict[str, Running]]]:
    """Load `parts` and yield what answers requests with them, and what each kind of them runs on.

    `threads` decode pictures, 0 is one per core.

    Raises Ended where a part cannot be loaded.
    """

    def limits(part: Part) -> Limits:
        return Limits(batch_weight=DETECTION_BATCH_PIXELS) if part.kind == "detection" else Limits()

    engines = Engines(config)
    shelf = Shelf(engines.load, engines.release, limits=limits)
    rules = Rules(face_alias="", max_pixels=pictures.MAX_PIXELS, exif=False, ocr=False)
    predictor = Predictor(shelf, rules, Budget(pictures.MAX_PIXELS), threads or machine.cores())
    try:
        if failed := await shelf.preload(parts):
            raise Ended(f"not loaded: {failed}")
        infos = [one.model.info for one in shelf.loaded()]
        yield predictor, {info.kind: Running(f"{info.backend} {info.precision}", info.reason) for info in infos}
    finally:
        predictor.close()
        await shelf.close(grace=CLOSE_S)


async def closed_loop(answer: Callable[[int], Awaitable[object]], callers: int, seconds: float) -> float:
    """Return the answers per second that so many callers get who each ask again when they are answered.

    `answer` takes the number of the caller.
    """
    answered = 0
    started = time.perf_counter()

    async def caller(number: int) -> None:
        nonlocal answered
        while time.perf_counter() - started < seconds:
            await answer(number)
            answered += 1

    await asyncio.gather(*(caller(number) for number in range(callers)))
    return answered / (time.perf_counter() - started)
