"""Each request as it is seen from outside: its id, its sizes, its line in the log, its phases in the answer.

Knows nothing of what is asked. Of an input only its sizes and what its first bytes look like are ever written down,
never its content. This is the outermost middleware of ours, so that it also sees the answers to errors.
"""

import asyncio
import logging
import re
import secrets
from dataclasses import dataclass, field

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from engines.images import looks_like
from server.errors import DETAIL
from server.logs import REQUEST_ID
from server.metrics import Metrics
from server.stopwatch import Stopwatch, server_timing
from server.wire import Form

log = logging.getLogger(__name__)

ID_HEADER = "X-Request-ID"
_ID = re.compile(r"[\w.:/+=@-]{1,128}", re.ASCII)
_HEAD = 16  # bytes of a picture by which its format is known


@dataclass(slots=True)
class Visit:
    """What is known of one request from outside."""

    id: str
    watch: Stopwatch = field(default_factory=Stopwatch)
    sizes: dict[str, int] = field(default_factory=dict)  # bytes of each field of its form
    head: bytes = b""  # the picture's first bytes

    def note(self, form: Form) -> None:
        """Keep the sizes of a form."""
        self.sizes = {name: len(value) for name, value in form.items()}
        self.head = form.get("image", b"")[:_HEAD]

    def looks(self) -> str:
        """Return what the picture's first bytes look like, "" where there is no picture."""
        return looks_like(self.head) if self.head else ""


VISIT = web.RequestKey("visit", Visit)


def observed(metrics: Metrics, slow_s: float) -> Middleware:
    """Return the middleware: it counts for `metrics`, and logs requests of more than `slow_s` seconds; 0 is none."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        visit = request[VISIT] = Visit(request_id(request))
        token = REQUEST_ID.set(visit.id)
        try:
            response = await handler(request)
            seconds, phases = visit.watch.elapsed(), visit.watch.seconds()
            metrics.answered(route(request), response.status, seconds, phases, visit.watch.pixels)
            response.headers[ID_HEADER] = visit.id
            if phases:
                response.headers["Server-Timing"] = server_timing(phases, seconds)
            if (detail := response.get(DETAIL)) is not None:
                _log_failure(request, response, visit, seconds, detail)
            if slow_s and seconds > slow_s:
                _log_slow(request, response, visit, seconds)
        except asyncio.CancelledError:
            metrics.cancelled(route(request), visit.watch.seconds(), visit.watch.pixels)
            log.debug("the client of %s hung up after %.3f s", route(request), visit.watch.elapsed())
            raise
        finally:
            REQUEST_ID.reset(token)
        return response

    return middleware


def request_id(request: web.Request) -> str:
    """Return the id that came with a request if it is a sane one, else a new one."""
    given = request.headers.get(ID_HEADER, "")
    return given if _ID.fullmatch(given) else secrets.token_hex(8)


def route(request: web.Request) -> str:
    """Return the template of the route, "other" where there is none: paths of strangers are no labels."""
    resource = request.match_info.route.resource
    return "other" if resource is None else resource.canonical


def _fields(request: web.Request, response: web.StreamResponse, visit: Visit, seconds: float) -> dict[str, object]:
    """Return what a line in JSON tells beside its message."""
    return {
        "route": route(request),
        "status": response.status,
        "seconds": round(seconds, 4),
        "phases": {phase: round(value, 4) for phase, value in visit.watch.seconds().items()},
        "body_bytes": request.content_length,
        "field_bytes": visit.sizes,
        "image_looks_like": visit.looks() or None,
    }


def _sent(request: web.Request, visit: Visit) -> str:
    """Return in words what came: sizes in bytes, and what the picture looks like."""
    parts = [f"{name} {size:,} bytes" for name, size in visit.sizes.items()]
    if not parts:
        size = request.content_length
        parts = ["no body" if not size else f"a body of {size:,} bytes"]
    looks = visit.looks()
    return ", ".join(parts) + (f"; the image looks like {looks}" if looks else "")


def _log_failure(request: web.Request, response: web.StreamResponse, visit: Visit, seconds: float, detail: str) -> None:
    log.log(
        logging.WARNING if response.status >= 500 else logging.INFO,
        "%d %s %s after %.3f s: %s (%s)",
        response.status,
        request.method,
        route(request),
        seconds,
        detail,
        _sent(request, visit),
        extra={"fields": _fields(request, response, visit, seconds)},
    )


def _log_slow(request: web.Request, response: web.StreamResponse, visit: Visit, seconds: float) -> None:
    phases = ", ".join(f"{phase} {value:.3f}" for phase, value in visit.watch.seconds().items())
    log.warning(
        "slow: %d %s %s took %.1f s: %s (%s)",
        response.status,
        request.method,
        route(request),
        seconds,
        phases or "nothing was computed",
        _sent(request, visit),
        extra={"fields": _fields(request, response, visit, seconds)},
    )
