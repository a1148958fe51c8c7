"""locustfile.py as a person runs it: Locust and the server as processes of their own, on the loopback.

Locust changes the standard library of its process, so that nothing of it may be imported here.
"""

import asyncio
import csv
import itertools
import json
import os
import re
import sys
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer
from aiohttp.typedefs import Handler

from server.app import create_app
from server.settings import Settings
from server.shelf import Part
from tests.server.fakes import FakeModel, unit

ROOT = Path(__file__).parents[1]
DIM = 256  # of the demo
TEXTS = 100  # that the right answers are learnt of
README = (ROOT / "README.md").read_text(encoding="utf-8")


Door = Callable[[web.Request], Awaitable[web.Response | None]]


@dataclass(frozen=True)
class Ended:
    """What a run of Locust left: its exit code, what it wrote, and its statistics by kind of request."""

    code: int
    out: str
    log: str
    stats: dict[str, dict[str, Any]]


@asynccontextmanager
async def real_server(cache: Path) -> AsyncIterator[int]:
    """Run the server as a user does, with eager PyTorch on a free port, and give that."""
    environ = {
        **os.environ,
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
        async with asyncio.timeout(60):
            while not (listens := re.search(rb"listening on http://127.0.0.1:(\d+)", await process.stderr.readline())):
                assert process.returncode is None
        rest = asyncio.create_task(process.stderr.read())  # a full pipe would hold the server up
        yield int(listens[1])
    finally:
        process.terminate()
        await process.wait()
    assert b"Traceback" not in await rest


async def locust(port: int | None, folder: Path, *arguments: str) -> Ended:
    command = [sys.executable, "-m", "locust", "--headless", "--only-summary", "--host", f"http://127.0.0.1:{port}"]
    command += ["--image-size", "320", "--csv", str(folder / "run"), "--json-file", str(folder / "run"), *arguments]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(150):
            out, log = (part.decode() for part in await process.communicate())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert "Traceback" not in log, log
    stats = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return Ended(process.returncode or 0, out, log, {one["name"]: one for one in stats})


class Right(FakeModel):
    """Vectors as long as the demo's."""

    def __init__(self, part: Part) -> None:
        super().__init__(part.kind, part.entry.name)

    def run(self, batch: list[Any]) -> list[Any]:
        return [unit(item, length=DIM) for item in batch]


class MixedUp(Right):
    """Gives each its own vector while it comes alone, and those of the others in a batch to each other."""

    def run(self, batch: list[Any]) -> list[Any]:
        vectors = super().run(batch)
        return vectors[1:] + vectors[:1]


def fake(model: Callable[[Part], FakeModel], **settings: Any) -> web.Application:
    return create_app(Settings(**settings), lambda part: (model(part),), lambda: None)


def behind(app: web.Application, door: Door) -> web.Application:
    """Return an application that asks `door` about each request, None being that it may pass on to `app`."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        return await door(request) or await handler(request)

    app.middlewares.insert(0, middleware)
    return app


async def test_a_mixed_load_of_twenty_seconds_gets_right_answers_alone(tmp_path: Path) -> None:
    async with real_server(tmp_path / "cache") as port:
        ended = await locust(port, tmp_path, "--users", "6", "--spawn-rate", "6", "--run-time", "20s", "Mix")
    assert ended.code == 0, ended.log
    assert ended.stats.keys() == {"clip text", "clip image", "faces"}
    assert all(one["num_failures"] == 0 and one["num_requests"] > 10 for one in ended.stats.values())
    with (tmp_path / "run_stats.csv").open(encoding="utf-8") as file:
        failures = {row["Name"]: row["Failure Count"] for row in csv.DictReader(file)}
    assert failures == dict.fromkeys(["clip text", "clip image", "faces", "Aggregated"], "0")


async def test_a_vector_of_another_photo_fails_its_request(tmp_path: Path) -> None:
    async with TestServer(fake(MixedUp)) as served:
        many = ["--users", "8", "--spawn-rate", "8", "--run-time", "2s"]
        ended = await locust(served.port, tmp_path, *many, "ClipImage")
    assert ended.code == 1
    assert ended.stats["clip image"]["num_failures"] > 10
    with (tmp_path / "run_failures.csv").open(encoding="utf-8") as file:
        reasons = [row["Error"] for row in csv.DictReader(file)]
    assert reasons == ["WrongAnswer('it is nearer to the vector of another input than to its own')"]


async def test_whatever_is_not_200_fails_its_request(tmp_path: Path) -> None:
    (tmp_path / "never").mkdir()
    learning = itertools.count(1)

    async def empty(request: web.Request) -> web.Response | None:
        return None if next(learning) <= TEXTS else web.Response(status=204)

    async with TestServer(behind(fake(Right), empty)) as served:
        ended = await locust(served.port, tmp_path, "--run-time", "1s", "ClipText")
        from_the_start = await locust(served.port, tmp_path / "never", "--run-time", "60s", "ClipText")
    assert from_the_start.code == 1
    assert "its status is 204, not 200" in from_the_start.log
    assert ended.code == 1
    assert ended.stats["clip text"]["num_failures"] == ended.stats["clip text"]["num_requests"] > 10
    with (tmp_path / "run_failures.csv").open(encoding="utf-8") as file:
        assert [row["Error"] for row in csv.DictReader(file)] == ["WrongAnswer('its status is 204, not 200')"]


async def told(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    return out.decode()


async def test_the_readme_has_all_options_that_the_page_of_locust_asks_for() -> None:
    code = "import locustfile; from locust.argument_parser import ui_extra_args_dict as page; print(*page([]))"
    ours = {f"--{name.replace('_', '-')}" for name in (await told("-c", code)).split()}
    rows = re.findall(r"^\| (`--[^|]*`) \|", README, re.MULTILINE)
    assert {option for row in rows for option in re.findall(r"--[a-z-]+", row)} == ours
    # Locust's own --help comes before it reads the file.
    known = ours | set(re.findall(r"--[a-z-]+", await told("-m", "locust", "--help")))
    users = (await told("-m", "locust", "--list")).split()
    commands = re.findall(r"^\.venv/bin/locust (.*)$", README, re.MULTILINE)
    assert len(commands) >= 4
    for command in commands:
        assert set(re.findall(r"--[a-z-]+", command)) <= known
        assert command.split()[-1] in users


async def test_wrong_lengths_end_the_test_before_it_begins(tmp_path: Path) -> None:
    async with TestServer(fake(lambda part: FakeModel(part.kind, part.entry.name))) as served:
        ended = await locust(served.port, tmp_path, "--run-time", "60s", "ClipImage")
    assert ended.code == 1
    assert "a vector has not 256 numbers" in ended.log
    assert not ended.stats


async def test_a_server_that_asks_for_a_key_gets_the_one_that_is_named(tmp_path: Path) -> None:
    key = "key-of-the-load-test"
    async with TestServer(fake(Right, api_keys=key)) as served:
        ended = await locust(served.port, tmp_path, "--run-time", "1s", "--api-key", key, "ClipText")
    assert ended.code == 0, ended.log
    assert ended.stats["clip text"]["num_failures"] == 0
    assert key not in ended.log + ended.out


async def test_no_server_and_wrong_names_end_the_test_with_a_sentence(tmp_path: Path) -> None:
    ended = await locust(9, tmp_path, "--run-time", "60s", "ClipText")
    assert ended.code == 1
    assert "no answer from http://127.0.0.1:9" in ended.log
    ended = await locust(9, tmp_path, "--run-time", "60s", "--clip-model", "ViT-B-33__openai", "ClipText")
    assert ended.code == 1
    assert "Did you mean" in ended.log


async def test_the_highest_load_within_a_latency_is_found_and_told(tmp_path: Path) -> None:
    last: deque[object] = deque(maxlen=40)  # whom the last requests came from: users keep their connections

    async def for_four(request: web.Request) -> web.Response | None:
        last.append(request.transport)
        return web.Response(status=503) if len(set(last)) > 4 else None

    async with TestServer(behind(fake(Right), for_four)) as served:
        search = ["--within-ms", "400", "--percentile", "90", "--step-s", "1"]
        ended = await locust(served.port, tmp_path, *search, "ClipText")
    assert ended.code == 1, ended.log  # requests failed
    *_, sentence, line = ended.out.strip().splitlines()
    report = json.loads(line)
    assert "4 users at a time" in sentence
    assert report["best"]["users"] == 4
    assert report["best"]["late_ms"] <= 400
    assert [step["users"] for step in report["steps"]] == [1, 2, 4, 8, 6, 5]
    assert [step["users"] for step in report["steps"] if step["failures"]] == [8, 6, 5]
