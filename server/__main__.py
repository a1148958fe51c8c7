"""python -m server: read the settings, build the application, run it until Ctrl-C or SIGTERM.

Knows signals, sockets and exit codes.
"""

import asyncio
import logging
import os
import signal
import socket
import sys

from aiohttp import web
from pydantic import ValidationError

from engines import heap
from engines.errors import EngineMissing, UnknownModel
from server import connections, logs, tracing
from server.app import create_app
from server.connections import Connections, affordable
from server.door import Door
from server.keys import KeyFileError
from server.loading import Engines, engine_config, preload_parts
from server.routes import DOOR, METRICS
from server.settings import Settings, advice, problems
from server.shelf import in_thread

log = logging.getLogger("server")

QUIET_S = 0.25
FLUSH_S = 2.0


def main() -> int:
    """Run the server; return 1 if it cannot listen, 2 for a wrong setting or a required device that is not there.

    After a signal the process exits with 0.
    """
    heap.keep_in_one_piece()
    try:
        settings = Settings()
        preload_parts(settings)
    except ValidationError as error:
        sys.stderr.writelines(f"{sentence}\n" for sentence in problems(error))
        return 2
    except UnknownModel as error:
        sys.stderr.write(f"MACHINE_LEARNING_PRELOAD__…: {error}\n")
        return 2
    logs.set_up(settings.log_level, settings.log_format)
    for sentence in advice():
        log.warning(sentence)
    if settings.untrained:
        log.warning("MACHINE_LEARNING_UNTRAINED is set: all models but demo have RANDOM WEIGHTS, for load tests only")
    engines = Engines(engine_config(settings))
    if settings.require_device:  # this imports torch, so it is not done in all cases before the server can answer
        try:
            engines.find_devices()
        except EngineMissing as error:
            log.critical("MACHINE_LEARNING_REQUIRE_DEVICE is %s: %s", settings.require_device, error)
            return 2
    try:
        traces = tracing.set_up(settings.tracing) if settings.tracing else None
    except tracing.TracingMissing as error:
        log.critical("%s", error)
        return 2
    try:
        sock = listen(settings.host, settings.port)
    except OSError as error:
        log.error("cannot listen on %s port %d: %s", settings.host, settings.port, error.strerror)
        return 1
    try:
        asyncio.run(serve(settings, engines, sock, traces))
    except KeyFileError as error:
        log.critical("MACHINE_LEARNING_API_KEY_FILE: %s", error)
        return 2
    logging.shutdown()
    # Leave at once. A thread may be busy with a download, a picture or a batch; Python would wait for some of them, and
    # unwinding the interpreter under one that is inside a native library aborts the process. All answers are written.
    os._exit(0)


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; `[::]` and the empty host mean every address, IPv6 and IPv4 alike."""
    host = host.strip("[]")
    if host in ("", "::"):
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, backlog=1024, dualstack_ipv6=True)
        host = "0.0.0.0"  # noqa: S104 - every address is what was asked for
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=1024)


async def serve(
    settings: Settings, engines: Engines, sock: socket.socket, traces: tracing.Tracing | None = None
) -> None:
    """Serve on `sock` until a signal comes and the grace time is over."""
    app = create_app(
        settings,
        engines.load,
        engines.release,
        engines.warm_up,
        gpu_bytes=engines.gpu_bytes,
        tracing=traces,
        load_eager=engines.load_eager,
    )
    runner = web.AppRunner(
        app,
        handler_cancellation=True,  # a client that hangs up costs nothing more
        shutdown_timeout=1.0,  # for the last answers to be written: the grace time is over by then
    )
    limits = connections.Limits(
        affordable(settings.max_connections),
        settings.header_timeout_s,
        settings.http_keepalive_timeout_s,
        settings.body_timeout_s,
    )
    stop = asyncio.Event()
    hurry = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, lambda: hurry.set() if stop.is_set() else stop.set())
    await runner.setup()
    site = await connections.listen(runner, sock, Connections(limits, app[METRICS].unread))
    address, port = sock.getsockname()[:2]
    log.info("listening on http://%s:%d", f"[{address}]" if ":" in address else address, port)
    await stop.wait()
    await drain(app, site, settings.shutdown_grace_s, hurry)
    await runner.cleanup()
    if traces is not None:
        await flush(traces)
    log.info("ended")


async def flush(traces: tracing.Tracing) -> None:
    """Send the last spans, if the collector takes them in time."""
    try:
        async with asyncio.timeout(FLUSH_S):
            await in_thread(traces.close, "send the last traces")
    except TimeoutError:
        log.warning("the last traces could not be sent within %.0f s", FLUSH_S)


async def drain(app: web.Application, site: asyncio.Server, grace: float, hurry: asyncio.Event) -> None:
    """Refuse new connections; answer what comes on open ones for `grace` seconds, or until all is quiet or `hurry`."""
    door = app[DOOR]
    door.close_in(grace)
    log.info("shutting down: %d requests have %.0f s to end; press Ctrl-C again to end them now", door.inside, grace)
    site.close()
    quiet = asyncio.create_task(_quiet(door))
    hurried = asyncio.create_task(hurry.wait())
    await asyncio.wait({quiet, hurried}, return_when=asyncio.FIRST_COMPLETED, timeout=grace)
    door.close_in(0)  # who comes from now on is told at once
    for task in (quiet, hurried):
        task.cancel()
    await door.empty()


async def _quiet(door: Door) -> None:
    """Wait until nobody is inside and nobody came for a moment: a client may have sent its next request already."""
    visits = -1
    while visits != door.visits:
        visits = door.visits
        await door.empty()
        await asyncio.sleep(QUIET_S)


if __name__ == "__main__":
    sys.exit(main())
