"""Builds beside the server, with a small script in place of the real one: order, swap, failure, the end."""

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from engines import catalog
from engines.errors import EngineMissing
from scripts import build_engines
from server.builds import Builds, When, _reasons, command
from server.shelf import Part, Shelf
from tests.server.fakes import FakeEngines, FakeModel

ROOT = Path(__file__).parents[2]
VISUAL = Part("visual", catalog.clip("demo"))
TEXTUAL = Part("textual", catalog.clip("demo"))

# What the real script does, as far as the server sees it: it notes that it ran, waits until it may go on, makes an
# engine or does not, and tells. Its last argument is a folder.
SCRIPT = """
import json, os, sys, time
from pathlib import Path
name, kind, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
with open(folder / "runs", "a") as runs:
    runs.write(f"{kind} {os.getpid()}\\n")
print("50 %\\r100 %", file=sys.stderr, flush=True)
while not (folder / "go").exists():
    time.sleep(0.01)
if (folder / "crash").exists():
    sys.exit("the compiler lost its way")
passed = not (folder / "fail").exists()
if passed:
    (folder / f"{kind}.engine").touch()
print("a table")
record = {"model": name, "kind": kind, "network": "tower", "precision": "bfloat16"}
print(json.dumps([
    record | {"backend": "openvino", "passed": passed, "reason": "" if passed else "its lowest cosine is 0.9"},
    record | {"backend": "inductor", "passed": False, "reason": "there is no compiler"},
]))
sys.exit(not passed)
"""


class Engines(FakeEngines):
    """Fakes that are eager as long as no engine lies in the folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def load(self, part: Part) -> tuple[FakeModel, ...]:
        (model,) = super().load(part)
        if (self.folder / f"{part.kind}.engine").exists():
            model.info = replace(model.info, backend="openvino", built=True, reason="2.6 x eager float32")
        return (model,)

    def command(self, part: Part) -> list[str]:
        return [sys.executable, "-c", SCRIPT, part.entry.name, part.kind, str(self.folder)]

    def runs(self) -> list[tuple[str, int]]:
        if not (self.folder / "runs").exists():
            return []
        lines = (self.folder / "runs").read_text().splitlines()
        return [(kind, int(number)) for kind, number in (line.split() for line in lines)]


class Pair(Engines):
    """Two replicas, the second on a device that has engines once `second` lies in the folder."""

    def load(self, part: Part) -> tuple[FakeModel, ...]:
        (model,) = super().load(part)
        twin = FakeModel(part.kind, part.entry.name)
        twin.info = replace(model.info, device="cuda:1")
        if not (self.folder / "second").exists():
            twin.info = replace(twin.info, backend="fake", built=False)
        return model, twin


@pytest.fixture
def engines(tmp_path: Path) -> Engines:
    return Engines(tmp_path)


@asynccontextmanager
async def building(engines: Engines, when: When) -> AsyncIterator[tuple[Builds, Shelf]]:
    builds = Builds(when, engines.load, engines.command)
    shelf = Shelf(builds.load, engines.release, placed=lambda loaded: builds.look_at(loaded, shelf))
    yield builds, shelf
    (engines.folder / "go").touch()
    await builds.close(grace=20)
    assert await shelf.close(grace=5)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - another process is at work
            await asyncio.sleep(0.005)


async def backend(shelf: Shelf, part: Part) -> str:
    async with shelf.use(part) as loaded:
        return str(loaded.model.info.backend)


async def test_eager_serves_at_once_and_the_engine_takes_its_place(
    engines: Engines, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "server.builds")
    async with building(engines, "background") as (builds, shelf):
        assert await backend(shelf, VISUAL) == "fake"
        await until(lambda: bool(engines.runs()))
        assert builds.state(VISUAL) == "running"
        assert await backend(shelf, VISUAL) == "fake"
        (engines.folder / "go").touch()
        await until(lambda: shelf.loaded()[0].model.info.built)
        assert await backend(shelf, VISUAL) == "openvino"
        await until(lambda: engines.released == 1)
        assert builds.state(VISUAL) is None
    assert "building an engine for demo (visual) in the background" in caplog.text
    assert "100 %" in caplog.text
    assert "demo (visual) now runs on openvino float32: 2.6 x eager float32" in caplog.text


async def test_builds_take_turns(engines: Engines) -> None:
    async with building(engines, "background") as (builds, shelf):
        await backend(shelf, VISUAL)
        await until(lambda: len(engines.runs()) == 1)
        await backend(shelf, TEXTUAL)
        assert (builds.state(VISUAL), builds.state(TEXTUAL)) == ("running", "waiting")
        (engines.folder / "go").touch()
        await until(lambda: all(loaded.model.info.built for loaded in shelf.loaded()))
        assert [kind for kind, _ in engines.runs()] == ["visual", "textual"]


async def test_what_is_built_or_not_to_be_built_starts_no_child(engines: Engines) -> None:
    (engines.folder / "visual.engine").touch()
    async with building(engines, "background") as (builds, shelf):
        assert await backend(shelf, VISUAL) == "openvino"
        assert builds.state(VISUAL) is None
    async with building(engines, "never") as (builds, shelf):
        assert await backend(shelf, TEXTUAL) == "fake"
        assert builds.state(TEXTUAL) is None
    assert engines.runs() == []


@pytest.mark.parametrize("when", ["background", "require"])
async def test_a_replica_without_an_engine_is_built_for_too(tmp_path: Path, when: When) -> None:
    pair = Pair(tmp_path)
    (tmp_path / "visual.engine").touch()
    async with building(pair, when) as (_, shelf):
        asking = asyncio.create_task(backend(shelf, VISUAL))
        await until(lambda: bool(pair.runs()))
        for name in ("second", "go"):
            (tmp_path / name).touch()
        assert await asking == "openvino"
        await until(lambda: all(model.info.built for model in shelf.loaded()[0].models))


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("fail", "openvino bfloat16: its lowest cosine is 0.9; inductor bfloat16: there is no compiler"),
        ("crash", "exit code 1: the compiler lost its way"),
    ],
)
async def test_a_build_that_fails_is_told_once_and_not_tried_again(
    engines: Engines, caplog: pytest.LogCaptureFixture, how: str, why: str
) -> None:
    for name in (how, "go"):
        (engines.folder / name).touch()
    builds = Builds("background", engines.load, engines.command)
    shelf = Shelf(builds.load, engines.release, placed=lambda loaded: builds.look_at(loaded, shelf), ttl=1e-9)
    await backend(shelf, VISUAL)
    await until(lambda: str(builds.state(VISUAL)).startswith("failed"))
    assert builds.state(VISUAL) == f"failed: {why}"
    await until(lambda: "goes on as it is" in caplog.text)
    await shelf.unload_idle()
    assert await backend(shelf, VISUAL) == "fake"
    assert builds.state(VISUAL) == f"failed: {why}"
    await builds.close(grace=5)
    assert len(engines.runs()) == 1
    assert caplog.text.count("no engine could be built") == 1
    assert await shelf.close(grace=5)


async def test_a_part_that_was_unloaded_meanwhile_is_not_loaded_again(engines: Engines) -> None:
    builds = Builds("background", engines.load, engines.command)
    shelf = Shelf(builds.load, engines.release, placed=lambda loaded: builds.look_at(loaded, shelf), ttl=1e-9)
    await backend(shelf, VISUAL)
    await shelf.unload_idle()
    assert shelf.loaded() == []
    (engines.folder / "go").touch()
    await until(lambda: builds.state(VISUAL) is None)
    await builds.close(grace=20)
    assert len(engines.loads) == 1
    assert await backend(shelf, VISUAL) == "openvino"
    assert await shelf.close(grace=5)


async def test_an_engine_that_load_does_not_choose_changes_nothing(
    engines: Engines, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with building(engines, "background") as (_, shelf):
        await backend(shelf, VISUAL)
        before = shelf.loaded()[0].model
        await until(lambda: bool(engines.runs()))
        engines.folder = engines.folder / "elsewhere"  # so that load does not see it
        (engines.folder.parent / "go").touch()
        await until(lambda: "demo (visual) stays on fake float32" in caplog.text)
        assert shelf.loaded()[0].model is before
        engines.folder = engines.folder.parent


async def test_an_engine_that_cannot_be_loaded_leaves_what_serves(
    engines: Engines, caplog: pytest.LogCaptureFixture
) -> None:
    async with building(engines, "background") as (builds, shelf):
        await backend(shelf, VISUAL)
        engines.error = ValueError("an odd engine")
        (engines.folder / "go").touch()
        await until(lambda: builds.state(VISUAL) == "failed: an odd engine")
        assert await backend(shelf, VISUAL) == "fake"
    assert "cannot be loaded" in caplog.text


async def test_required_engines_are_built_before_anybody_is_served(engines: Engines) -> None:
    async with building(engines, "require") as (builds, shelf):
        asking = [asyncio.create_task(backend(shelf, VISUAL)) for _ in range(5)]
        await until(lambda: bool(engines.runs()))
        assert (shelf.loaded(), builds.state(VISUAL)) == ([], "running")
        (engines.folder / "go").touch()
        assert await asyncio.gather(*asking) == ["openvino"] * 5
        assert len(engines.runs()) == 1


async def test_a_model_that_cannot_be_loaded_without_an_engine_is_built_too(engines: Engines) -> None:
    load = engines.load

    def load_built_alone(part: Part) -> tuple[FakeModel, ...]:
        (model,) = load(part)
        if not model.info.built:
            raise EngineMissing("no engine of openvino is built")
        return (model,)

    (engines.folder / "go").touch()
    builds = Builds("require", load_built_alone, engines.command)
    assert (await asyncio.to_thread(builds.load, VISUAL))[0].info.built


async def test_a_required_engine_that_cannot_be_built_is_an_error_that_says_why(engines: Engines) -> None:
    for name in ("fail", "go"):
        (engines.folder / name).touch()
    async with building(engines, "require") as (_, shelf):
        for _ in range(3):
            with pytest.raises(EngineMissing, match=r"lowest cosine is 0\.9.*set it to background"):
                await backend(shelf, VISUAL)
        assert shelf.loaded() == []
        assert len(engines.runs()) == 1
        assert len(engines.loads) == 1


async def test_the_end_of_the_server_ends_the_child_and_starts_no_other(
    engines: Engines, caplog: pytest.LogCaptureFixture
) -> None:
    builds = Builds("background", engines.load, engines.command)
    shelf = Shelf(builds.load, engines.release, placed=lambda loaded: builds.look_at(loaded, shelf))
    await backend(shelf, VISUAL)
    await until(lambda: len(engines.runs()) == 1)
    await backend(shelf, TEXTUAL)  # waits for its turn
    child = psutil.Process(engines.runs()[0][1])
    await builds.close(grace=20)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert len(engines.runs()) == 1
    assert not shelf.loaded()[0].model.info.built
    assert "no engine could be built" not in caplog.text
    assert await shelf.close(grace=5)


def test_a_server_that_is_killed_leaves_no_child(engines: Engines) -> None:
    code = f"""
import sys
from pathlib import Path
from tests.server.test_builds import VISUAL, Engines
from server.builds import Builds
engines = Engines(Path({str(engines.folder)!r}))
Builds("require", engines.load, engines.command).load(VISUAL)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as server:  # noqa: S603 - our own interpreter
        asyncio.run(until(lambda: bool(engines.runs())))
        child = psutil.Process(engines.runs()[0][1])
        os.kill(server.pid, signal.SIGKILL)
        _, alive = psutil.wait_procs([child], timeout=20)
    assert [one for one in alive if one.status() != psutil.STATUS_ZOMBIE] == []


async def test_500_requests_while_the_engine_takes_over_get_right_answers(engines: Engines) -> None:
    """Eager and built answer alike here but for a mark, so that each answer shows whose it is."""
    load = engines.load

    def marked(part: Part) -> tuple[FakeModel, ...]:
        (model,) = load(part)
        mark, model_run = model.info.backend, model.run
        model.run = lambda batch: [(mark, item) for item, _ in zip(batch, model_run(batch), strict=True)]  # type: ignore[method-assign]  # a fake that says who it is
        return (model,)

    builds = Builds("background", marked, engines.command)
    shelf = Shelf(builds.load, engines.release, placed=lambda loaded: builds.look_at(loaded, shelf))
    answers: list[str] = []

    async def ask(number: int) -> None:
        async with shelf.use(VISUAL) as loaded:
            await asyncio.sleep(0)
            mark, item = await loaded.scheduler.submit(loaded.queue, ("image", number), flow=number % 3)
        assert item == ("image", number)
        answers.append(mark)

    async def caller(number: int) -> None:
        turn = 0
        while not shelf.loaded() or not shelf.loaded()[0].model.info.built or turn < 25:
            await ask(1000 * number + turn)
            turn += 1

    await ask(-1)
    asking = asyncio.gather(*(caller(number) for number in range(32)))
    await until(lambda: len(answers) > 200)
    (engines.folder / "go").touch()
    async with asyncio.timeout(60):
        await asking
        await ask(-2)
    assert len(answers) > 500
    assert (answers[0], answers[-1]) == ("fake", "openvino")
    assert set(answers) == {"fake", "openvino"}
    await builds.close(grace=5)
    assert await shelf.close(grace=5)


def test_the_command_is_understood_by_the_script_and_names_what_is_wanted() -> None:
    words = command(Part("detection", catalog.face("demo")), engine="openvino", precision="auto")
    assert words[:3] == [sys.executable, "-m", "scripts.build_engines"]
    options = build_engines._parser().parse_args(words[3:])
    assert (options.names, options.kind, options.low_priority) == (["demo"], "detection", True)
    assert (options.backend, options.precision) == ("openvino", "auto")


def test_a_model_that_cannot_be_had_is_a_reason_too() -> None:
    record = {"model": "demo", "kind": "visual", "passed": False, "reason": "no weights in /cache"}
    assert _reasons(f"a table\n{json.dumps([record, record])}\n") == "no weights in /cache"
    assert _reasons("") == _reasons("not JSON") == _reasons("[1]") == ""
