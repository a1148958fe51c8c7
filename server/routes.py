"""What each route answers, but for the pages.

Knows what the application holds under which key. Does not know how that is put together (app.py), nor how a request is
computed (predict.py).
"""

import asyncio
from collections.abc import Hashable
from typing import Any

import orjson
from aiohttp import web

from engines import catalog
from server import body, wire
from server.access import VISIT
from server.budget import Budget
from server.builds import Builds
from server.door import Door
from server.errors import Overdue, SlowBody
from server.keys import FLOW
from server.metrics import Metrics
from server.predict import Predictor
from server.readiness import Readiness
from server.settings import Settings
from server.shelf import Shelf

SETTINGS = web.AppKey("settings", Settings)
SHELF = web.AppKey("shelf", Shelf)
BUILDS = web.AppKey("builds", Builds)
DOOR = web.AppKey("door", Door)
PREDICTOR = web.AppKey("predictor", Predictor)
BODIES = web.AppKey("bodies", Budget)
PRELOAD = web.AppKey("preload", asyncio.Task[None])
METRICS = web.AppKey("metrics", Metrics)
READINESS = web.AppKey("readiness", Readiness)


def routes() -> list[web.RouteDef]:
    """Return the routes of the API."""
    return [
        web.get("/", root),
        web.get("/ping", ping),
        web.post("/predict", predict),
        web.get("/health/live", live),
        web.get("/health/ready", ready),
        web.get("/models", models),
        web.get("/metrics", show_metrics),
    ]


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
