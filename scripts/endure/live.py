"""The server under trial: a process of its own with the demo models or untrained ones, and a client that counts.

Knows how such a server is started and ended, and that a request is lost where the connection ends without an answer.
Does not know what is asked, nor which answers are right.
"""

import asyncio
import io
import os
import re
import resource
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import aiohttp

from scripts.bench.record import ROOT
from scripts.bench.served import Served, free_port

LOOPBACK = "127.0.0.1"
PATIENCE_S = 300.0  # clients of the protocol give up then
LOG = ROOT / "build" / "endure"
_TIMING = re.compile(r"(\w+);dur=([\d.]+)")
_BAD_LINE = re.compile(r"Traceback|\"traceback\":|\"level\":\"(?:error|critical)\"")


class Lost(Exception):
    """A request ended without an answer."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer. `seconds` are those of the client, `phases` those that the server tells, by name."""

    status: int
    body: bytes
    seconds: float
    phases: Mapping[str, float]


class Client:
    """Sends requests to the server on `port` from `source`, an address of the loopback: another one is another flow."""

    def __init__(self, port: int, source: str = LOOPBACK) -> None:
        self._url = f"http://{LOOPBACK}:{port}"
        self._source = source
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "Client":
        connector = aiohttp.TCPConnector(limit=0, local_addr=(self._source, 0))
        timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def post(self, body: bytes, content_type: str, path: str = "/predict") -> Reply:
        """Send a body; raises Lost if no answer comes."""
        return await self.request("POST", path, body, content_type)

    async def get(self, path: str) -> Reply:
        """Ask for a page; raises Lost if no answer comes."""
        return await self.request("GET", path)

    async def request(self, method: str, path: str, body: bytes | None = None, content_type: str = "") -> Reply:
        """Send any request; raises Lost if no answer comes."""
        if self._session is None:
            raise RuntimeError("enter the client before it sends anything")
        headers = {"Content-Type": content_type} if content_type else {}
        data = None if body is None else io.BytesIO(body)  # aiohttp warns of large bodies as bytes
        began = time.perf_counter()
        try:
            async with self._session.request(method, self._url + path, data=data, headers=headers) as response:
                answer = await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Lost(f"{method} {path}: {error!r}") from error
        phases = {name: float(ms) / 1000 for name, ms in _TIMING.findall(response.headers.get("Server-Timing", ""))}
        return Reply(response.status, answer, time.perf_counter() - began, phases)


@asynccontextmanager
async def live(name: str, **settings: str) -> AsyncIterator[Served]:
    """Start `python -m server` with `settings`, ready, and end it; its log is build/endure/<name>.log."""
    allow_many_files()
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            "HF_HUB_OFFLINE": "1",
            "IMMICH_HOST": LOOPBACK,
            "IMMICH_PORT": str(port := free_port()),
            "MACHINE_LEARNING_CACHE_FOLDER": folder,
            "MACHINE_LEARNING_LOG_FORMAT": "json",
            **settings,
        }
        server = Served([sys.executable, "-m", "server"], inherited() | environment, port, LOG / f"{name}.log")
        try:
            await asyncio.to_thread(server.wait_ready)
            yield server
        finally:
            await asyncio.to_thread(server.close)


def inherited() -> dict[str, str]:
    """Return the environment without settings of the person who runs this: every run is measured alike."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("MACHINE_LEARNING_", "IMMICH_"))}


def allow_many_files() -> None:
    """Raise the soft limit of open files, which processes started from here on have too, to the hard one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def bad_lines(name: str) -> list[str]:
    """Return the lines of a server's log that tell of an error of its own."""
    return [line for line in log_of(name).read_text("utf-8", "replace").splitlines() if _BAD_LINE.search(line)]


def log_of(name: str) -> Path:
    """Return where the log of a server lies."""
    return LOG / f"{name}.log"
