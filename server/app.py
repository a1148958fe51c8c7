"""The application: routes, middlewares, what starts and stops with it.

Knows how the parts of the server are put together. The engines come in as functions, `load`, `release` and `warm_up`,
so that nothing here imports torch and tests can hand in models of their own.
"""

import asyncio
import functools
import importlib
import logging
from collections.abc import AsyncIterator, Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler

from engines import catalog, progress
from engines.errors import EngineError
from engines.machine import cores
from engines.model import Config, Kind, Model
from server import body, pages, wire
from server.access import VISIT, observed
from server.budget import Budget
from server.builds import Builds, command
from server.connections import attended, turned_away
from server.door import Door
from server.errors import Overdue, SlowBody, errors_to_answers
from server.gauges import Gauges
from server.headers import cors, secure
from server.keys import FLOW, Keys, guard
from server.metrics import Metrics, QueueMetrics
from server.predict import Predictor, Rules
from server.queue import Limits
from server.readiness import Readiness
from server.settings import Settings
from server.shelf import Part, Shelf, in_thread
from server.standby import Standby
from server.tracing import Tracing

log = logging.getLogger(__name__)

SETTINGS = web.AppKey("settings", Settings)
SHELF = web.AppKey("shelf", Shelf)
BUILDS = web.AppKey("builds", Builds)
DOOR = web.AppKey("door", Door)
PREDICTOR = web.AppKey("predictor", Predictor)
BODIES = web.AppKey("bodies", Budget)
PRELOAD = web.AppKey("preload", asyncio.Task[None])
METRICS = web.AppKey("metrics", Metrics)
READINESS = web.AppKey("readiness", Readiness)

PRELOAD_AGAIN_S = 30.0  # a preload that failed is tried again: weights may come, a disk may be emptied
CLOSE_S = 0.2  # what is on the device then ends by itself or with the process
DETECTION_BATCH_PIXELS = 16_000_000  # ten previews of 1440x1080: bounds the memory of one detector batch
# Forty of them, three bytes each, and one at a time in float32: bounds what JPEGs take that the GPU decodes.
GPU_DECODED_PIXELS = 64_000_000


class Engines:
    """The functions of engines/ that need torch, imported when the first of them is called."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._memory: Any = None  # engines.memory, once it is imported

    def find_devices(self) -> None:
        """Look for the devices that the settings want, which imports torch; raises EngineMissing."""
        importlib.import_module("engines.machine").pick_devices(self._config)

    def warm_up(self) -> None:
        """Import torch and all else that is heavy, keep it out of the garbage collector's way, and look for devices.

        Logs what is wrong with them; raises EngineMissing where the settings want one that is not there.
        """
        importlib.import_module("engines.lean").import_open_clip()
        models = importlib.import_module("engines.models")
        memory = importlib.import_module("engines.memory")
        memory.settle()
        self._memory = memory
        models.devices(self._config)

    def load(self, part: Part) -> Sequence[Model]:
        """Load one model, once for each device; raises the errors of engines.errors."""
        return self._load(part, self._config)

    def load_eager(self, part: Part) -> Sequence[Model]:
        """Load one model as `load` does, on eager PyTorch in float32: what computes where an engine fails."""
        return self._load(part, replace(self._config, engine="eager", precision="float32"))

    def _load(self, part: Part, config: Config) -> Sequence[Model]:
        models: Sequence[Model] = importlib.import_module("engines.models").load(part.kind, part.entry, config)
        self.release()  # of the weights from which they were made
        return models

    def release(self) -> None:
        """Give the memory of models that are gone back to the system."""
        importlib.import_module("engines.memory").release()

    def gpu_bytes(self) -> Mapping[str, Mapping[str, int]]:
        """Return the memory of the GPUs in use, in bytes by device and state; imports nothing."""
        return {} if self._memory is None else self._memory.gpu_bytes()


def engine_config(settings: Settings) -> Config:
    """Return what the engines need of the settings."""
    return Config(
        cache_folder=settings.cache_folder,
        untrained=settings.untrained,
        resize=settings.clip_resize,
        min_face=settings.min_face,
        device_ids=settings.device_ids,
        threads=settings.model_intra_op_threads,
        device=settings.device,
        require_device=settings.require_device,
        engine=settings.engine,
        precision=settings.precision,
        # Where something better is being built, the start does not wait for it.
        examine=settings.build == "never" or settings.engine == "eager",
        streams=settings.streams,
        hint=settings.openvino_hint,
        scaled_decode=settings.scaled_decode,
        calibration=settings.calibration,
        calibration_texts=settings.calibration_texts,
        decode=settings.decode,
    )


def preload_parts(settings: Settings) -> list[Part]:
    """Return what the settings want loaded at the start; raises UnknownModel, also for a wrong face alias."""
    if settings.face_alias:
        catalog.face(catalog.FACE_ALIASES[0], settings.face_alias)
    return [Part(kind, catalog.look_up(kind, name, settings.face_alias)) for kind, name in settings.preloads()]


def batch_weight(kind: Kind) -> int:
    """Return how heavy a batch of several inputs of a kind may be: in pixels for pictures, else 1 each."""
    match kind:
        case "detection":
            return DETECTION_BATCH_PIXELS
        case "visual":
            return GPU_DECODED_PIXELS
        case _:
            return Limits().batch_weight


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
    app.add_routes(
        [
            web.get("/", root),
            web.get("/ping", ping),
            web.post("/predict", predict),
            web.get("/health/live", live),
            web.get("/health/ready", ready),
            web.get("/models", models),
            web.get("/metrics", show_metrics),
            *pages.routes(page=settings.page),
        ]
    )
    return app


@web.middleware
async def close_at_the_end(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Tell clients with their last answers not to send more on these connections."""
    response = await handler(request)
    if request.app[DOOR].closing:
        response.force_close()
    return response


async def root(request: web.Request) -> web.Response:
    """Say what the reference deployment says, which some clients look for."""
    return _json({"message": "Immich ML"})


async def ping(request: web.Request) -> web.Response:
    """Say that the server is there."""
    return web.Response(text="pong")


async def predict(request: web.Request) -> web.Response:
    """Answer one form of the protocol within the time limit."""
    settings = request.app[SETTINGS]
    limits = body_limits(settings)
    visit = request[VISIT]
    flow = _flow(request)
    comes = False  # the body, and it alone is waited for
    time = asyncio.timeout(settings.request_timeout_s)
    try:
        async with request.app[DOOR].enter(), time, body.room(request, request.app[BODIES], limits, flow):
            with visit.watch.phase("read"):
                comes = True
                form = await wire.read_form(request, limits)
                comes = False
                visit.note(form)
                ask = wire.parse(form)
            del form  # the picture's bytes live on in `ask` alone
            answer = await request.app[PREDICTOR].answer(ask, flow, visit.watch)
    except TimeoutError as error:
        if not time.expired():
            raise
        if comes:
            raise SlowBody(f"The body did not come within {settings.request_timeout_s:g} s: send it faster.") from error
        raise Overdue(
            f"The request could not be answered within {settings.request_timeout_s:g} s: send it again when less is "
            "asked for."
        ) from error
    with visit.watch.phase("write"):
        written = wire.render(ask, answer, settings.embeddings)
    return web.Response(body=written, content_type="application/json")


def body_limits(settings: Settings) -> body.Limits:
    """Return what a form may be."""
    return body.Limits(
        body=int(settings.max_body_mb * 1_000_000),
        parts=settings.max_parts,
        part=int(settings.max_part_mb * 1_000_000),
        text=settings.max_text_bytes,
        idle_s=settings.body_timeout_s,
        bytes_per_s=settings.body_bytes_per_s,
    )


def _flow(request: web.Request) -> Hashable:
    """Return whom a request belongs to, for turns in the queues: the address of the peer, and its key if it has one."""
    return request.get(FLOW), request.remote


async def live(request: web.Request) -> web.Response:
    """Say that the event loop turns."""
    return _json({"status": "live"})


async def ready(request: web.Request) -> web.Response:
    """Say whether requests are answered, and if not, why: see readiness.py."""
    if reason := not_ready(request.app):
        return _json({"status": reason}, 503)
    remarks = request.app[READINESS].remarks()
    return _json({"status": "ready"} | ({"remarks": remarks} if remarks else {}))


def not_ready(app: web.Application) -> str:
    """Return why no requests are answered, "" if they are."""
    return "shutting down" if app[DOOR].closing else "; ".join(app[READINESS].reasons())


async def show_metrics(request: web.Request) -> web.Response:
    """Write what was counted, in the text format that the client asks for."""
    body, content_type = request.app[METRICS].exposition(request.headers.get("Accept", ""))
    return web.Response(body=body, headers={"Content-Type": content_type})


async def models(request: web.Request) -> web.Response:
    """List the catalogue, and what of it is loaded, on what, and why."""
    settings = request.app[SETTINGS]
    loaded = [
        {
            "name": one.part.entry.name,  # as it is asked for: several may share a network
            "kind": one.part.kind,
            "device": one.scheduler.name,
            "backend": info.backend,
            "precision": info.precision,
            "reason": info.reason,
            "built": info.built,
            "build": request.app[BUILDS].state(one.part),
            "untrained": info.untrained,
            "bytes": one.bytes,
            "waiting": one.queue.items,
        }
        for one in request.app[SHELF].loaded()
        for info in (one.model.info,)
    ]
    known = {task: [_listed(task, name, settings) for name in names] for task, names in catalog.names().items()}
    return _json({"resize": settings.clip_resize, "untrained": settings.untrained, "loaded": loaded, "known": known})


def _listed(task: str, name: str, settings: Settings) -> dict[str, Any]:
    if task == "clip":
        entry = catalog.clip(name)
        resize = entry.resize if settings.clip_resize == "native" else "crop"
        untrained = settings.untrained and bool(entry.tag)  # the weights of the others come with the package
        return {
            "name": name,
            "dimension": entry.dim,
            "size": entry.image_size,
            "resize": resize,
            "untrained": untrained,
        }
    untrained = settings.untrained or name == catalog.DEMO
    return {"name": name, "dimension": catalog.face(name).dim, "untrained": untrained}


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(value), content_type="application/json")
