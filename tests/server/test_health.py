"""The check that the images run: ready, not ready, not there."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import BaseTestServer, TestServer

from server import health
from server.routes import PRELOAD
from server.shelf import in_thread
from tests.server.fakes import FakeEngines, fake_app

ROOT = Path(__file__).parents[2]


async def checked(server: BaseTestServer, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return the exit code of a check of `server`."""
    monkeypatch.setenv("IMMICH_HOST", "[::]")
    monkeypatch.setenv("IMMICH_PORT", str(server.port))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nobody there: a check that asks a proxy fails
    return await in_thread(health.main, "check")


async def test_a_server_that_is_ready_is_healthy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    app = fake_app(FakeEngines())
    async with TestServer(app) as server:
        await app[PRELOAD]
        assert await checked(server, monkeypatch) == 0
    assert capsys.readouterr().out == '200 {"status":"ready"}\n'


async def test_a_server_that_is_not_ready_is_unhealthy_and_the_reason_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engines = FakeEngines()
    engines.broken = ImportError("a library is missing")
    app = fake_app(engines)
    async with TestServer(app) as server:
        await app[PRELOAD]
        assert await checked(server, monkeypatch) == 1
    out = capsys.readouterr().out
    assert out.startswith("503 ")
    assert "a library is missing" in out


async def test_a_server_that_hangs_is_unhealthy_in_time() -> None:
    async def hang(request: web.Request) -> web.Response:
        await request.app[released].wait()
        return web.Response()

    released = web.AppKey("released", asyncio.Event)
    app = web.Application()
    app[released] = asyncio.Event()
    app.router.add_get("/health/ready", hang)
    async with TestServer(app) as server:
        assert server.port is not None
        port = server.port
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            await in_thread(lambda: health.ask("127.0.0.1", port, timeout=0.2), "check")
        assert time.monotonic() - started < 5
        app[released].set()


def test_no_server_is_unhealthy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("IMMICH_PORT", "0")
    assert health.main() == 1
    assert "no answer from 127.0.0.1 port 0" in capsys.readouterr().err


def test_a_wrong_setting_is_unhealthy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MACHINE_LEARNING_MIN_FACE", "nothing")
    assert health.main() == 1
    assert "settings are wrong" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "address"),
    [("[::]", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("", "127.0.0.1"), ("[::1]", "::1"), ("10.0.0.7", "10.0.0.7")],  # noqa: S104 - compared only
)
def test_the_address_is_one_that_the_server_listens_on(host: str, address: str) -> None:
    assert health.reachable(host) == address


def test_it_is_light_and_its_exit_code_is_the_answer() -> None:
    code = "import sys, server.health as h; print({'torch', 'aiohttp', 'numpy'} & set(sys.modules)); sys.exit(h.main())"
    environ = {**os.environ, "IMMICH_HOST": "127.0.0.1", "IMMICH_PORT": "0"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environ, capture_output=True, text=True)  # noqa: S603 - our own interpreter
    assert done.returncode == 1
    assert done.stdout == "set()\n"
