"""Models that meet the protocol without torch, and an application that serves them."""

import hashlib
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from numpy.typing import NDArray

from engines.errors import EngineMissing
from engines.model import Info, Kind
from server import connections
from server.__main__ import listen
from server.app import create_app
from server.connections import Limits
from server.routes import METRICS
from server.settings import Settings
from server.shelf import Part


def unit(*seed: object, length: int = 8) -> NDArray[np.float32]:
    """Return a unit vector that depends on `seed` alone."""
    digest = hashlib.sha256(repr(seed).encode()).digest()
    vector = np.random.default_rng(int.from_bytes(digest[:8], "little")).standard_normal(length)
    return np.asarray(vector / np.linalg.norm(vector), dtype=np.float32)


@dataclass(frozen=True)
class FakeItem:
    value: Any
    weight: int = 1


@dataclass(frozen=True)
class FakeFaces:
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]


class FakeModel:
    """Vectors from hashes. A gate can hold its batches; `fail` makes them fail."""

    def __init__(self, kind: Kind, name: str, size: int = 1000) -> None:
        self.kind = kind
        self.info = Info(name, kind, "cpu", "fake", "float32", "a fake", untrained=True, bytes=size)
        self.buckets: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
        self.enough_pixels = 0
        self.jpegs: list[int] = []  # bytes of those that came undecoded
        self.takes_jpegs = False
        self.reads_jpegs = True
        self.batches: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.running = threading.Semaphore(0)
        self.fail: Callable[[Any], bool] = lambda item: False

    def prepare(self, value: NDArray[np.uint8] | str, option: Any = None) -> Any:
        if isinstance(value, str):
            return ("text", value, option)
        height, width = value.shape[:2]
        if self.kind == "detection":
            return FakeItem(((width, height), tuple(value[0, 0].tolist()), option), width * height)
        return ("image", (width, height), value[:8, :8].tobytes())

    def takes_jpeg(self, header: Any, data: bytes) -> bool:
        return self.takes_jpegs and header.format == "JPEG"

    def crops(self, picture: NDArray[np.uint8], boxes: NDArray[np.float32]) -> list[Any]:
        return [("crop", picture.shape, tuple(box)) for box in boxes.tolist()]

    def collate(self, items: Sequence[Any]) -> list[Any]:
        return list(items)

    def run(self, batch: list[Any]) -> list[Any]:
        self.running.release()
        assert self.gate.wait(30)
        self.batches.append(len(batch))
        if any(self.fail(item) for item in batch):
            raise RuntimeError("the fake was told to fail")
        if self.kind == "detection":
            return [self._faces(item) for item in batch]
        return [self._vector(item) for item in batch]

    def _vector(self, item: Any) -> NDArray[np.float32] | None:
        if isinstance(item, np.ndarray):
            self.jpegs.append(len(item))
            return unit("jpeg", item.tobytes()) if self.reads_jpegs else None
        return unit(item, length=512 if self.kind == "recognition" else 8)

    @staticmethod
    def _faces(item: FakeItem) -> FakeFaces:
        """One face per score of 0.95, 0.8 and 0.6 that reaches the threshold; none in a black picture."""
        _, pixel, min_score = item.value
        scores = np.array([score for score in (0.95, 0.8, 0.6) if score >= min_score and any(pixel)], np.float32)
        boxes = np.array([[i - 0.6, 2.4, 30.5 + i, 40.0] for i in range(len(scores))], np.float32).reshape(-1, 4)
        return FakeFaces(boxes, scores)


class FakeEngines:
    """A `load` that makes fakes and remembers them; `gate` and `error` make loading slow or fail."""

    def __init__(self) -> None:
        self.models: dict[tuple[Kind, str], FakeModel] = {}
        self.loads: list[tuple[Kind, str]] = []
        self.released = 0
        self.gate = threading.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.broken: Exception | None = None

    def warm_up(self) -> None:
        if self.broken is not None:
            raise self.broken

    def load(self, part: Part) -> tuple[FakeModel, ...]:
        key = (part.kind, part.entry.name)
        self.loads.append(key)
        assert self.gate.wait(30)
        if self.error is not None:
            raise self.error
        self.models[key] = FakeModel(part.kind, part.entry.name)
        return (self.models[key],)

    def load_eager(self, part: Part) -> tuple[FakeModel, ...]:
        raise EngineMissing("the fakes have no eager PyTorch")

    def release(self) -> None:
        self.released += 1

    def gpu_bytes(self) -> dict[str, dict[str, int]]:
        return {"fake:0": {"total": 100, "used": 60}}


def fake_app(engines: FakeEngines, **settings: Any) -> web.Application:
    return create_app(
        Settings(**settings),
        engines.load,
        engines.release,
        engines.warm_up,
        gpu_bytes=engines.gpu_bytes,
        load_eager=engines.load_eager,
    )


@asynccontextmanager
async def listening(app: web.Application, limits: Limits | None = None) -> AsyncIterator[int]:
    """Serve `app` as python -m server does, with its limits on connections; yield the port on 127.0.0.1."""
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1.0)
    await runner.setup()
    sock = listen("127.0.0.1", 0)
    server = await connections.listen(runner, sock, connections.Connections(limits or Limits(), app[METRICS].unread))
    try:
        yield sock.getsockname()[1]
    finally:
        server.close()
        await runner.cleanup()


@asynccontextmanager
async def serving(app: web.Application) -> AsyncIterator[TestClient[web.Request, web.Application]]:
    """Serve `app` on a socket of the loopback, as python -m server does."""
    server = TestServer(app)
    await server.start_server(auto_decompress=False)
    async with TestClient(server) as client:
        yield client
