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
from server.errors import DETAIL, UNFORESEEN
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
    route: str  # its template
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
        visit = request[VISIT] = Visit(request_id(request), await route(request))
        token = REQUEST_ID.set(visit.id)
        try:
            response = await handler(request)
            seconds, phases = visit.watch.elapsed(), visit.watch.seconds()
            metrics.answered(visit.route, response.status, seconds, phases, visit.watch.pixels)
            response.headers[ID_HEADER] = visit.id
            if phases:
                response.headers["Server-Timing"] = server_timing(phases, seconds)
            if (detail := response.get(DETAIL)) is not None:
                _log_failure(request, response, visit, seconds, detail)
            if slow_s and seconds > slow_s:
                _log_slow(request, response, visit, seconds)
        except asyncio.CancelledError:
            seconds = visit.watch.elapsed()
            metrics.cancelled(visit.route, visit.watch.seconds(), visit.watch.pixels)
            if slow_s and seconds > slow_s:
                _log_slow(request, None, visit, seconds)
            else:
                log.debug("the client of %s hung up after %.3f s", visit.route, seconds)
            raise
        finally:
            REQUEST_ID.reset(token)
        return response

    return middleware


def request_id(request: web.Request) -> str:
    """Return the id that came with a request if it is a sane one, else a new one."""
    given = request.headers.get(ID_HEADER, "")
    return given if _ID.fullmatch(given) else secrets.token_hex(8)


async def route(request: web.Request) -> str:
    """Return the template of the route, "other" where there is none: paths of strangers are no labels.

    A method that a route does not have is a request to that route all the same.
    """
    resource = request.match_info.route.resource
    if resource is None and isinstance(request.match_info.http_exception, web.HTTPMethodNotAllowed):
        for one in request.app.router.resources():
            if (await one.resolve(request))[1]:  # the methods that it has, none if the path is not its own
                return one.canonical
    return "other" if resource is None else resource.canonical


def _fields(
    request: web.Request, response: web.StreamResponse | None, visit: Visit, seconds: float
) -> dict[str, object]:
    """Return what a line in JSON tells beside its message; without a status where nobody waited for the answer."""
    return {
        "route": visit.route,
        "status": None if response is None else response.status,
        "seconds": round(seconds, 4),
        "phases": {phase: round(value, 4) for phase, value in visit.watch.seconds().items()},
        "body_bytes": _body_bytes(request),
        "field_bytes": visit.sizes,
        "image_looks_like": visit.looks() or None,
    }


def _body_bytes(request: web.Request) -> int:
    """Return the length of a body: as announced, else what has come of it."""
    return request.content.total_bytes if request.content_length is None else request.content_length


def _sent(request: web.Request, visit: Visit) -> str:
    """Return in words what came: sizes in bytes, and what the picture looks like."""
    parts = [f"{name} {size:,} bytes" for name, size in visit.sizes.items()]
    if not parts:
        size = _body_bytes(request)
        parts = ["no body" if not size else f"a body of {size:,} bytes"]
    looks = visit.looks()
    return ", ".join(parts) + (f"; the image looks like {looks}" if looks else "")


def _log_failure(request: web.Request, response: web.StreamResponse, visit: Visit, seconds: float, detail: str) -> None:
    error = response.pop(UNFORESEEN, None)  # its traceback holds the picture, and aiohttp holds the answer for a while
    level = logging.ERROR if error is not None else logging.WARNING if response.status >= 500 else logging.INFO
    log.log(
        level,
        "%d %s %s after %.3f s: %s (%s)",
        response.status,
        request.method,
        visit.route,
        seconds,
        detail if error is None else f"{type(error).__name__}: {error}",
        _sent(request, visit),
        exc_info=error,
        extra={"fields": _fields(request, response, visit, seconds)},
    )


def _log_slow(request: web.Request, response: web.StreamResponse | None, visit: Visit, seconds: float) -> None:
    phases = ", ".join(f"{phase} {value:.3f}" for phase, value in visit.watch.seconds().items())
    what = f"{request.method} {visit.route}"
    log.warning(
        "slow: %s %.1f s: %s (%s)",
        f"{what}, whose client hung up after" if response is None else f"{response.status} {what} took",
        seconds,
        phases or "nothing was computed",
        _sent(request, visit),
        extra={"fields": _fields(request, response, visit, seconds)},
    )
