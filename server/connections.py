"""Connections: how many there may be, how long headers may take, and what is told to those who speak no HTTP.

Knows sockets and when a request begins and ends on one. Does not know what is asked. aiohttp has a time limit for idle
connections alone, no limit of their number, and answers what it cannot parse in plain text with a traceback in the log;
what is added here uses its public protocol class and nothing within it.
"""

import asyncio
import fcntl
import itertools
import logging
import resource
import socket
import termios
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

from aiohttp import StreamReader, web
from aiohttp.typedefs import Handler

from server.errors import Busy, answer, written
from server.headers import HEADERS

log = logging.getLogger(__name__)

BACKLOG = 1024  # connections that the kernel holds until they are accepted
BUFFER_BYTES = 1 << 16  # read ahead of each body: a body that waits for room costs twice that
FILES_BESIDE = 200  # open files that are no connections: libraries, models, pipes of builds
REST_S = 1.0  # after which an answer is surely on its way, and whole headers have come to their handler
FREE = ("/ping", "/health/")
FRESH_S = 0.2  # after which a new connection has surely been read from, if anything came on it
LOOKED_AT = 200  # connections to find idle ones among: a flood must not cost a look at all of them each time
TOLD_S = 10.0  # between two lines about connections that were closed to make room


@dataclass(frozen=True, slots=True)
class Limits:
    """How many connections there may be, and seconds: for headers, between requests, without taking of an answer."""

    count: int = 2000
    header_s: float = 20.0
    keepalive_s: float = 75.0
    write_s: float = 30.0


class Connections:
    """All connections of a server. `count` is told the status of each answer that no handler gives."""

    def __init__(self, limits: Limits, count: Callable[[int], None]) -> None:
        self.limits = limits
        self.count = count
        self._open: set[Connection] = set()
        # In the order in which they fell idle: those that never asked for anything, and those that were answered.
        self._fresh: dict[Connection, None] = {}
        self._resting: dict[Connection, None] = {}
        self._closed = 0  # to make room, since that was last told
        self._told = float("-inf")

    def joined(self, connection: "Connection") -> None:
        """Count a new connection, and make room for it: it is refused where none is idle."""
        if len(self._open) >= self.limits.count:
            self._tell()
            self._make_room()
        if len(self._open) >= 2 * self.limits.count:
            connection.drop()  # even the answer that there is no room has its limit
            return
        connection.refused = len(self._open) >= self.limits.count
        self._open.add(connection)
        self._fresh[connection] = None

    def left(self, connection: "Connection") -> None:
        """Forget a connection."""
        self._open.discard(connection)
        self.busy(connection)

    def busy(self, connection: "Connection") -> None:
        """Note that a request began."""
        self._fresh.pop(connection, None)
        self._resting.pop(connection, None)

    def rests(self, connection: "Connection") -> None:
        """Note that a request ended."""
        if connection in self._open:
            self._resting[connection] = None

    def _make_room(self) -> None:
        """Close the connections that are idle for longest, as many as there are too many."""
        candidates = itertools.chain(*(itertools.islice(idle, LOOKED_AT) for idle in (self._fresh, self._resting)))
        too_many = len(self._open) + 1 - self.limits.count
        for oldest in list(itertools.islice((one for one in candidates if one.is_idle()), too_many)):
            self.left(oldest)
            oldest.drop()

    def _tell(self) -> None:
        self._closed += 1
        now = asyncio.get_running_loop().time()
        if now - self._told >= TOLD_S:
            log.warning(
                "more connections than the %d of MACHINE_LEARNING_MAX_CONNECTIONS, %d since the last such line: idle "
                "ones are closed, and where there are none the answer is 503",
                self.limits.count,
                self._closed,
            )
            self._told, self._closed = now, 0


class Connection(web.RequestHandler):
    """One connection: aiohttp's, with a time limit for headers, a count, and JSON for what is no HTTP."""

    def __init__(self, server: web.Server, connections: Connections) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]  # None is what the documentation of aiohttp says for no log
            auto_decompress=False,  # encoded bodies are refused, so none is unpacked
            keepalive_timeout=connections.limits.keepalive_s,
            read_bufsize=BUFFER_BYTES,
        )
        self.refused = False  # one too many: its requests are answered by 503
        self._connections = connections
        self._clock = loop
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None
        self._heard = False
        self._busy = False
        self._answers = 0
        self._rests_since = 0.0
        self._body: StreamReader | None = None  # of the last request, where it has not come as a whole

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count it; the headers of its first request are waited for from now on."""
        super().connection_made(transport)
        self._start()
        self._connections.joined(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget it."""
        self._stop()
        if self._writing is not None:
            self._writing.cancel()
        self._connections.left(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes; those that begin a request start its time."""
        if not self._heard:
            self._heard = True
            self._rests_since = self._clock.time()  # its headers may be whole: the handler is called in a moment
        if not self._busy and self._timer is None and (self._body is None or self._body.is_eof()):
            self._start()
        super().data_received(data)

    def begins(self) -> None:
        """Note that the headers of a request are there, and that it is being answered."""
        self._stop()
        self._busy = True
        self._connections.busy(self)

    def ends(self, request: web.Request) -> None:
        """Note that its answer is ready to be written."""
        self._busy = False
        self._answers += 1
        self._body = None if request.content.is_eof() else request.content
        self._rests_since = self._clock.time()
        self._connections.rests(self)
        if self._writing is None:
            self._writing = self._clock.call_later(self._connections.limits.write_s, self._look_at_answer)

    def is_idle(self) -> bool:
        """Whether it can be closed without loss: nothing is asked or about to be, and the last answer was written."""
        if self._busy or self.transport is None or self.transport.is_closing() or self._has_unread():
            return False
        rested = self._clock.time() - self._rests_since
        return rested >= (REST_S if self._heard else FRESH_S) and not self.transport.get_write_buffer_size()

    def _has_unread(self) -> bool:
        """Whether bytes came that the loop has not read yet: closing now would lose a request."""
        assert self.transport is not None  # noqa: S101 - is_idle has looked
        count = fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.FIONREAD, bytes(4))
        return any(count)

    def drop(self) -> None:
        """Close it at once."""
        self._stop()
        self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is no HTTP, or what failed where no handler is responsible, in JSON and with one line."""
        self._stop()
        self._connections.count(status)
        kind = "" if exc is None else type(exc).__name__
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            log.error("unforeseen error of a connection", exc_info=exc)
            detail = "The server failed on this request; its log has the reason."
        else:
            log.info("%d from %s: no HTTP request that can be read (%s)", status, request.remote, kind)
            detail = f"This cannot be read as an HTTP request ({kind}): send HTTP/1.1 with headers of ordinary size."
        response = answer(status, None, detail, dict(HEADERS))
        response.force_close()
        return response

    def _start(self) -> None:
        self._rests_since = self._clock.time()
        self._timer = self._clock.call_later(self._connections.limits.header_s, self._headers_late)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_at_answer(self, left: int | None = None, answers: int = 0) -> None:
        """Close it where nothing was taken since `left` bytes after so many answers were left, else look again."""
        self._writing = None
        size = 0 if self.transport is None else self.transport.get_write_buffer_size()
        if self.transport is None or not size:
            return
        if left is not None and size >= left and answers == self._answers:
            log.info("an answer was not taken for %g s: its connection is closed", self._connections.limits.write_s)
            self.transport.abort()
            return
        self._writing = self._clock.call_later(
            self._connections.limits.write_s, self._look_at_answer, size, self._answers
        )

    def _headers_late(self) -> None:
        self._timer = None
        if self._heard and self.transport is not None:
            self._connections.count(HTTPStatus.REQUEST_TIMEOUT)
            peer = self.transport.get_extra_info("peername")
            told = f"the headers of a request did not come within {self._connections.limits.header_s:g} s"
            log.info("408 from %s: %s", peer[0] if peer else "a socket", told)
            self.transport.write(written(HTTPStatus.REQUEST_TIMEOUT, f"{told.capitalize()}: send it faster."))
        self.force_close()


@web.middleware
async def attended(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Tell the connection when a request begins and ends on it."""
    connection = request.protocol
    if not isinstance(connection, Connection):
        return await handler(request)
    connection.begins()
    try:
        response = await handler(request)
    finally:
        connection.ends(request)
    if connection.refused:
        response.force_close()
    return response


@web.middleware
async def turned_away(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Raise Busy on a connection that is one too many, but for those who ask whether the server lives."""
    connection = request.protocol
    if isinstance(connection, Connection) and connection.refused and not request.path.startswith(FREE):
        raise Busy("There are too many connections: send the request again in a moment.")
    return await handler(request)


async def listen(runner: web.AppRunner, sock: socket.socket, connections: Connections) -> asyncio.Server:
    """Accept connections on `sock` for a runner that is set up; closing what is returned ends that."""
    server = runner.server
    if server is None:
        raise RuntimeError("the runner is not set up")
    return await asyncio.get_running_loop().create_server(
        lambda: Connection(server, connections), sock=sock, backlog=BACKLOG
    )


def affordable(wanted: int) -> int:
    """Raise the limit of open files for `wanted` connections, if need be; return how many fit in the end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + FILES_BESIDE
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    raised = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
    fitting = max(1, raised - FILES_BESIDE)
    if fitting < wanted:
        log.warning(
            "only %d connections fit the limit of open files (%d), MACHINE_LEARNING_MAX_CONNECTIONS wants %d: raise "
            "it with `ulimit -n`",
            fitting,
            raised,
            wanted,
        )
        return fitting
    return wanted
