"""python -m server as a process: it starts, answers, and ends on signals without losing a request."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import orjson
import pytest

from server.__main__ import listen

ROOT = Path(__file__).parents[2]
# The real process with fake models: texts that begin with "slow" stay on the device for the seconds that follow.
PROGRAM = """
import sys, time
import server.__main__ as main
from tests.server.fakes import FakeEngines, FakeModel

class Slow(FakeModel):
    def run(self, batch):
        time.sleep(max(float(item[1].split()[1]) if item[1].startswith("slow") else 0 for item in batch))
        return super().run(batch)

class Engines(FakeEngines):
    def __init__(self, config):
        super().__init__()

    def load(self, part):
        if part.kind == "visual":
            time.sleep(60)  # a download that takes its time
        return (Slow(part.kind, part.entry.name),)

main.Engines = Engines
sys.exit(main.main())
"""
Ask = Callable[[str], Awaitable[int]]


class Process:
    """A running server."""

    def __init__(self, process: "asyncio.subprocess.Process", port: int, log: list[str]) -> None:
        self.process = process
        self.port = port
        self.log = log

    async def ask(self, text: str) -> int:
        """Send a text for embedding; return the status."""
        data = {"entries": '{"clip":{"textual":{"modelName":"demo"}}}', "text": text}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"http://127.0.0.1:{self.port}/predict", data=data) as response,
        ):
            body = await response.json()
            assert "clip" in body if response.status == 200 else "detail" in body
            return response.status

    async def end(self, number: int = signal.SIGTERM) -> tuple[int, float]:
        """Send a signal; return exit code and seconds until the process was gone."""
        started = time.monotonic()
        self.process.send_signal(number)
        async with asyncio.timeout(30):
            return await self.process.wait(), time.monotonic() - started

    async def until_logged(self, pattern: str) -> re.Match[str]:
        async with asyncio.timeout(30):
            while True:
                if match := re.search(pattern, "\n".join(self.log)):
                    return match
                await asyncio.sleep(0.01)


@asynccontextmanager
async def server(**settings: str) -> AsyncIterator[Process]:
    environ = {**os.environ, "IMMICH_HOST": "127.0.0.1", "IMMICH_PORT": "0", **settings}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, cwd=ROOT, env=environ, stderr=asyncio.subprocess.PIPE
    )
    log: list[str] = []

    async def read() -> None:
        assert process.stderr is not None
        async for line in process.stderr:
            log.append(line.decode().rstrip())  # noqa: PERF401 - it is read while it grows

    reading = asyncio.create_task(read())
    running = Process(process, 0, log)
    try:
        running.port = int((await running.until_logged(r"listening on http://127.0.0.1:(\d+)"))[1])
        yield running
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await reading
    assert "Traceback" not in "\n".join(log)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_an_idle_server_at_once_with_code_0(number: signal.Signals) -> None:
    async with server() as running:
        assert await running.ask("hello") == 200
        code, seconds = await running.end(number)
    assert code == 0
    assert seconds < 5


async def test_what_fits_into_the_grace_time_is_answered_and_new_connections_are_refused() -> None:
    async with server() as running:
        assert await running.ask("warm") == 200
        slow = asyncio.create_task(running.ask("slow 1.5"))
        await asyncio.sleep(0.3)
        ending = asyncio.create_task(running.end())
        await running.until_logged("shutting down: 1 requests")
        with pytest.raises(aiohttp.ClientConnectorError):
            await running.ask("too late")
        assert await slow == 200
        code, seconds = await ending
    assert code == 0
    assert seconds < 5


async def closed_loop(running: Process, number: int) -> list[int]:
    """Send text after text on one connection that is kept open; return the statuses until the server says close."""
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    body = f'entries={{"clip":{{"textual":{{"modelName":"demo"}}}}}}&text=slow 0.02 {number}'.encode()
    kind = "application/x-www-form-urlencoded"
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    statuses = []
    while True:
        writer.write(head.encode() + body)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:] if line)
        await reader.readexactly(int(headers["content-length"]))
        statuses.append(int(lines[0].split()[1]))
        if headers.get("connection") == "close":
            writer.close()
            return statuses


async def test_clients_on_open_connections_lose_no_request_at_the_end() -> None:
    async with server() as running:
        assert await running.ask("warm") == 200
        clients = [asyncio.create_task(closed_loop(running, number)) for number in range(32)]
        await asyncio.sleep(0.5)
        code, _ = await running.end()
        async with asyncio.timeout(20):
            statuses = await asyncio.gather(*clients)  # raises where a connection ends without an answer
    assert code == 0
    assert {status for client in statuses for status in client} == {200}


async def test_a_load_under_way_does_not_hold_the_end_up() -> None:
    async with server(MACHINE_LEARNING_PRELOAD__CLIP__VISUAL="demo") as running:
        await running.until_logged("loading demo")
        code, seconds = await running.end()
    assert (code, seconds < 5) == (0, True)


async def test_a_native_thread_under_way_does_not_abort_the_process() -> None:
    """With torch for real: unwinding the interpreter under one of its threads would end in SIGABRT."""
    environ = {**os.environ, "IMMICH_HOST": "127.0.0.1", "IMMICH_PORT": "0", "MACHINE_LEARNING_UNTRAINED": "true"}
    environ["MACHINE_LEARNING_PRELOAD__CLIP__VISUAL"] = "ViT-L-14__openai"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "server", cwd=ROOT, env=environ, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    async with asyncio.timeout(120):
        while b"loading ViT-L-14__openai" not in await process.stderr.readline():
            pass
        await asyncio.sleep(0.7)  # into the building of the network, which takes seconds
        process.send_signal(signal.SIGTERM)
        rest = await process.stderr.read()
        assert await process.wait() == 0, rest
    assert b"loaded ViT-L-14__openai" not in rest, "the signal must come while the load is under way"


async def test_what_does_not_fit_gets_503_and_the_process_ends_even_with_a_batch_on_the_device() -> None:
    async with server(MACHINE_LEARNING_SHUTDOWN_GRACE_S="0.5") as running:
        assert await running.ask("warm") == 200
        stuck = [asyncio.create_task(running.ask(f"slow 20 {i}")) for i in range(3)]
        await asyncio.sleep(0.5)
        code, seconds = await running.end()
        assert [await task for task in stuck] == [503, 503, 503]
    assert code == 0
    assert seconds < 5


async def test_a_body_that_never_ends_gets_its_503_too() -> None:
    async with server(MACHINE_LEARNING_SHUTDOWN_GRACE_S="0.5") as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(
            b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
            b"Content-Type: multipart/form-data; boundary=XX\r\n\r\n--XX\r\n"
        )
        await writer.drain()
        await asyncio.sleep(0.3)
        code, _ = await running.end()
        assert (await reader.readline()).startswith(b"HTTP/1.1 503 Shutting down")
        writer.close()
    assert code == 0


async def test_a_second_signal_ends_the_grace_time() -> None:
    async with server(MACHINE_LEARNING_SHUTDOWN_GRACE_S="60") as running:
        assert await running.ask("warm") == 200
        slow = asyncio.create_task(running.ask("slow 20"))
        await asyncio.sleep(0.3)
        running.process.send_signal(signal.SIGINT)
        await running.until_logged("shutting down")
        code, seconds = await running.end(signal.SIGINT)
        assert await slow == 503
    assert (code, seconds < 5) == (0, True)


async def test_settings_without_effect_and_untrained_models_are_told_at_the_start() -> None:
    async with server(MACHINE_LEARNING_WORKERS="4", MACHINE_LEARNING_UNTRAINED="true") as running:
        await running.end()
    log = "\n".join(running.log)
    assert "MACHINE_LEARNING_WORKERS has no effect" in log
    assert "RANDOM WEIGHTS" in log


async def test_where_there_is_no_terminal_every_line_of_the_log_is_json() -> None:
    async with server(MACHINE_LEARNING_WORKERS="4", MACHINE_LEARNING_SLOW_REQUEST_S="0.001") as running:
        assert await running.ask("slow 0.01") == 200
        await running.end()
    lines = [orjson.loads(line) for line in running.log]
    assert all(line.keys() >= {"time", "level", "logger", "message"} for line in lines)
    (slow,) = [line for line in lines if line["message"].startswith("slow: ")]
    assert re.fullmatch("[0-9a-f]{16}", slow["request_id"])
    assert slow["phases"]["run"] >= 0.01


async def test_lines_for_people_can_be_had_without_a_terminal() -> None:
    async with server(MACHINE_LEARNING_LOG_FORMAT="human") as running:
        await running.end()
    assert re.match(r"\d\d:\d\d:\d\d INFO     listening on ", running.log[0])


async def test_a_collector_that_is_not_there_holds_nothing_up() -> None:
    async with server(MACHINE_LEARNING_TRACING="http://127.0.0.1:9") as running:
        assert await running.ask("hello") == 200
        code, seconds = await running.end()
    assert (code, seconds < 8) == (0, True)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("IMMICH_PORT", "99999", "IMMICH_PORT is '99999'"),
        ("MACHINE_LEARNING_MIN_FACE", "tiny", "MACHINE_LEARNING_MIN_FACE is 'tiny'"),
        ("MACHINE_LEARNING_PRELOAD__CLIP__VISUAL", "ViT-B-33__openai", "ViT-B-32__openai"),
        ("MACHINE_LEARNING_TRACING", "localhost:4318", "give the URL of a collector, such as http://localhost:4318"),
        ("MACHINE_LEARNING_LOG_FORMAT", "xml", "MACHINE_LEARNING_LOG_FORMAT is 'xml'"),
    ],
)
def test_a_wrong_setting_ends_the_start_with_code_2_and_a_sentence(name: str, value: str, told: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "server"], cwd=ROOT, env={**os.environ, name: value}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_required_device_that_is_not_there_ends_the_start_with_code_2_and_a_sentence() -> None:
    environ = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "MACHINE_LEARNING_REQUIRE_DEVICE": "cuda", "IMMICH_PORT": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "server"], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert "MACHINE_LEARNING_REQUIRE_DEVICE is cuda: The settings want the device cuda" in done.stderr
    assert "listening" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_in_use_ends_the_start_with_code_1_and_a_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        environ = {**os.environ, "IMMICH_HOST": "127.0.0.1", "IMMICH_PORT": str(taken.getsockname()[1])}
        done = subprocess.run([sys.executable, "-m", "server"], cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 1
    assert "cannot listen on 127.0.0.1" in done.stderr


@pytest.mark.parametrize("host", ["[::]", "", "::", "127.0.0.1", "0.0.0.0"])  # noqa: S104 - what users set
def test_every_way_to_write_an_address_listens_for_ipv4(host: str) -> None:
    with listen(host, 0) as sock:
        socket.create_connection(("127.0.0.1", sock.getsockname()[1]), timeout=5).close()


async def test_it_works_where_nothing_but_the_cache_folder_can_be_written(tmp_path: Path) -> None:
    cache, temporary = tmp_path / "cache", tmp_path / "tmp"
    cache.mkdir()
    temporary.mkdir()
    nowhere = "/dev/null/nowhere"  # can be made by nobody, root included
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": nowhere,
        "XDG_CACHE_HOME": nowhere,
        "XDG_CONFIG_HOME": nowhere,
        "HF_HUB_OFFLINE": "1",
        "TMPDIR": str(temporary),
        "PYTHONDONTWRITEBYTECODE": "1",
        "IMMICH_HOST": "127.0.0.1",
        "IMMICH_PORT": "0",
        "MACHINE_LEARNING_CACHE_FOLDER": str(cache),
        "MACHINE_LEARNING_ENGINE": "eager",
        "MACHINE_LEARNING_PRECISION": "float32",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "server", cwd=ROOT, env=environ, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(120):
            log = (await process.stderr.readuntil(b"listening on http://127.0.0.1:")).decode()
            port = int(re.match(r"\d+", (await process.stderr.readline()).decode())[0])  # type: ignore[index]  # else it fails here
            running = Process(process, port, [])
            assert await running.ask("a red circle") == 200
            code, _ = await running.end()
            log += (await process.stderr.read()).decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert code == 0
    assert "error" not in log.lower()
    assert "nowhere" not in log
    assert [path for path in temporary.rglob("*") if path.is_file()] == []


def test_a_file_of_keys_that_is_not_there_ends_the_start_with_2_and_a_sentence(tmp_path: Path) -> None:
    environ = {**os.environ, "IMMICH_PORT": "0", "MACHINE_LEARNING_API_KEY_FILE": str(tmp_path / "keys")}
    done = subprocess.run(
        [sys.executable, "-m", "server"], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert "MACHINE_LEARNING_API_KEY_FILE: The file of keys" in done.stderr
    assert "Traceback" not in done.stderr
