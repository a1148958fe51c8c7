"""The application: its parts, middlewares, what starts and stops with it.

Knows how the parts of the server are put together. The engines come in as functions, `load`, `release` and `warm_up`,
so that nothing here imports torch and tests can hand in models of their own.
"""

import asyncio
import functools
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from aiohttp import web
from aiohttp.typedefs import Handler

from engines import progress
from engines.errors import EngineError
from engines.machine import cores
from engines.model import Model
from server import pages
from server.access import observed
from server.budget import Budget
from server.builds import Builds, command
from server.connections import attended, turned_away
from server.door import Door
from server.errors import errors_to_answers
from server.gauges import Gauges
from server.headers import cors, secure
from server.keys import Keys, guard
from server.loading import batch_weight, preload_parts
from server.metrics import Metrics, QueueMetrics
from server.predict import Predictor, Rules
from server.queue import Limits
from server.readiness import Readiness
from server.routes import (
    BODIES,
    BUILDS,
    DOOR,
    METRICS,
    PREDICTOR,
    PRELOAD,
    READINESS,
    SETTINGS,
    SHELF,
    not_ready,
    routes,
)
from server.settings import Settings
from server.shelf import Part, Shelf, in_thread
from server.standby import Standby
from server.tracing import Tracing

log = logging.getLogger(__name__)


PRELOAD_AGAIN_S = 30.0  # a preload that failed is tried again: weights may come, a disk may be emptied
CLOSE_S = 0.2  # what is on the device then ends by itself or with the process


def create_app(
    settings: Settings,
    load: Callable[[Part], Sequence[Model]],
    release: Callable[[], None],
    warm_up: Callable[[], None] = lambda: None,
    build: Callable[[Part], Sequence[str]] | None = None,
    gpu_bytes: Callable[[], Mapping[str, Mapping[str, int]]] = dict,
    tracing: Tracing | None = None,
    load_eager: Callable[[Part], Sequence[Model]] | None = None,
) -> web.Application:
    """Return the application; raises KeyFileError where the file of API keys cannot be read.

    `warm_up` runs once in the background at the start; `build` returns the command that builds engines for a part, None
    is that of scripts/. `gpu_bytes` returns the memory of GPUs by device and state. `load_eager` loads what takes the
    place of a model that fails; None where nothing does.
    """
    metrics = Metrics()

    def load_and_tell(part: Part) -> Sequence[Model]:
        with progress.told_to(metrics):
            return load(part)

    def load_and_count(part: Part) -> Sequence[Model]:
        try:
            models = builds.load(part)  # it counts once, though that may load twice, with a build in between
        except BaseException:
            metrics.loaded(part.entry.name, part.kind, ok=False)
            raise
        metrics.loaded(part.entry.name, part.kind, ok=True)
        return models

    def limits(part: Part) -> Limits:
        if part.kind == "detection":
            # No more pixels can be on their way to a detector than are held decoded.
            return Limits(settings.queue_items, settings.max_decoded_pixels, batch_weight=batch_weight(part.kind))
        if part.kind == "visual":
            return Limits(settings.queue_items, settings.queue_pixels, batch_weight=batch_weight(part.kind))
        return Limits(settings.queue_items, batch_weight=batch_weight(part.kind))

    traced = () if tracing is None else tracing.middlewares
    seen = observed(metrics, settings.slow_request_s)
    allowed = guard(Keys(settings.api_keys, settings.api_key_file), settings.api_key_free)
    others = cors(settings.cors_origins)
    app = web.Application(
        middlewares=[*traced, attended, seen, close_at_the_end, others, errors_to_answers, turned_away, allowed]
    )
    app.on_response_prepare.append(secure)
    builds = Builds(
        "never" if settings.engine == "eager" else settings.build,
        load_and_tell,
        build or functools.partial(command, engine=settings.engine, precision=settings.precision),
    )
    shelf = Shelf(
        load_and_count,
        release,
        limits=limits,
        placed=lambda loaded: builds.look_at(loaded, shelf),
        observe=lambda part: QueueMetrics(metrics, part.entry.name, part.kind),
        doubt=lambda part, replica: standby.doubt(part, replica),
        ttl=settings.model_ttl,
        budget=settings.memory_budget_mb << 20,
    )
    standby = Standby(shelf, builds.load, load_eager)
    rules = Rules(settings.face_alias, settings.max_pixels, settings.exif, settings.ocr == "empty", settings.max_faces)
    app[SETTINGS] = settings
    app[SHELF] = shelf
    app[BUILDS] = builds
    app[DOOR] = Door()
    app[BODIES] = Budget(int(settings.max_bodies_mb * 1_000_000))
    app[METRICS] = metrics
    readiness = app[READINESS] = Readiness(shelf, settings.proof_s, metrics.proved, standby=standby)
    pixels = Budget(settings.max_decoded_pixels)
    app[PREDICTOR] = Predictor(shelf, rules, pixels, settings.request_threads or cores())
    metrics.registry.register(Gauges(shelf, app[DOOR], pixels, lambda: not not_ready(app), gpu_bytes))
    parts = preload_parts(settings)
    readiness.loading = bool(parts)

    async def run_shelf(app: web.Application) -> AsyncIterator[None]:
        async def fill() -> None:
            try:
                await in_thread(warm_up, "warm up")
            except EngineError as error:
                log.error("no model can be loaded: %s", error)
                readiness.problems = [f"no model can be loaded: {error}"]
                return
            except Exception as error:  # an import runs foreign code: readiness tells what became of it
                log.exception("the libraries that run the models cannot be imported")
                readiness.problems = [f"the libraries that run the models cannot be imported: {error}"]
                return
            while failed := await shelf.preload(parts):
                readiness.problems = [f"{part} could not be preloaded: {reason}" for part, reason in failed.items()]
                await asyncio.sleep(PRELOAD_AGAIN_S)
            readiness.problems = []
            readiness.loading = False

        async def tidy() -> None:
            while True:
                await asyncio.sleep(settings.model_ttl_poll_s)
                await shelf.unload_idle()

        app[PRELOAD] = asyncio.create_task(fill())
        tasks = [app[PRELOAD], asyncio.create_task(tidy()), asyncio.create_task(readiness.watch())]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        app[PREDICTOR].close()
        standby.close()
        await asyncio.gather(builds.close(grace=CLOSE_S), shelf.close(grace=CLOSE_S))

    app.cleanup_ctx.append(run_shelf)
    app.add_routes([*routes(), *pages.routes(page=settings.page)])
    return app


@web.middleware
async def close_at_the_end(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Tell clients with their last answers not to send more on these connections."""
    response = await handler(request)
    if request.app[DOOR].closing:
        response.force_close()
    return response
