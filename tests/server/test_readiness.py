"""Readiness: what turns it false, the reason, and what makes it true again; proofs of idle and failing models."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from engines import catalog
from engines.model import Kind
from server import readiness
from server.batcher import Scheduler
from server.queue import Lane
from server.readiness import FAILURES, Readiness
from server.routes import READINESS
from server.shelf import Loaded, Part, Shelf
from tests.server.fakes import FakeEngines, FakeModel, fake_app, serving
from tests.server.test_app import CLIP, TEXT, form, png

DEMO = catalog.clip("demo")
KINDS: tuple[Kind, ...] = ("textual", "visual", "detection", "recognition")


class Watched:
    """A shelf of fakes, its readiness, and what its proofs came to."""

    def __init__(self, idle_s: float, hangs_s: float) -> None:
        self.engines = FakeEngines()
        self.shelf = Shelf(self.engines.load, self.engines.release)
        self.proofs: list[bool] = []
        self.readiness = Readiness(self.shelf, idle_s, self.proofs.append, poll_s=0.005, hangs_s=hangs_s)

    async def load(self, kind: Kind = "textual") -> tuple[Loaded, FakeModel]:
        entry = DEMO if kind in ("textual", "visual") else catalog.face("demo")
        async with self.shelf.use(Part(kind, entry)) as loaded:
            return loaded, self.engines.models[kind, "demo"]

    async def submit(self, loaded: Loaded, *items: Any) -> None:
        for item in items:
            await asyncio.gather(loaded.scheduler.submit(loaded.queue, item), return_exceptions=True)


@asynccontextmanager
async def watched(idle_s: float = 0.001, hangs_s: float = 20.0) -> AsyncIterator[Watched]:
    """Watch while the block runs."""
    one = Watched(idle_s, hangs_s)
    watching = asyncio.create_task(one.readiness.watch())
    yield one
    for model in one.engines.models.values():
        model.gate.set()
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert await one.shelf.close(grace=5)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - a state, no event
            await asyncio.sleep(0.001)


def fails(item: Any) -> bool:
    return True


def works(item: Any) -> bool:
    return False


@pytest.mark.parametrize("kind", KINDS)
async def test_an_idle_model_of_each_kind_proves_itself_through_its_queue(kind: Kind) -> None:
    async with watched() as one:
        _, model = await one.load(kind)
        await until(lambda: len(one.proofs) >= 2)
        assert len(model.batches) >= 2
        assert one.readiness.reasons() == []
    assert set(one.proofs) == {True}


async def test_the_models_of_a_device_prove_themselves_in_turn() -> None:
    async with watched() as one:
        models = [(await one.load(kind))[1] for kind in KINDS]
        await until(lambda: len(one.proofs) >= 8)
        assert all(len(model.batches) >= 1 for model in models)


async def test_a_model_proves_itself_when_nothing_ended_for_so_long_and_not_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = Watched(idle_s=60, hangs_s=20)
    now = 1000.0
    monkeypatch.setattr(readiness, "time", SimpleNamespace(monotonic=lambda: now))
    loaded, _ = await one.load()
    for _ in range(3):  # at work: a batch in each minute
        await one.submit(loaded, 1)
        assert one.readiness._due() == []
        now += 59
        assert one.readiness._due() == []
    now += 1
    assert one.readiness._due() == [loaded]
    assert await one.shelf.close(grace=5)


async def test_nothing_proves_itself_where_that_is_not_wanted(caplog: pytest.LogCaptureFixture) -> None:
    async with watched(idle_s=0) as one:
        loaded, model = await one.load()
        model.fail = fails
        await one.submit(loaded, *range(FAILURES))
        await until(lambda: "not ready: " in caplog.text)  # it went round
        assert sum(model.batches) == 2 * FAILURES  # each single item is tried twice
        assert len(one.readiness.reasons()) == 1
    assert one.proofs == []


async def test_a_model_whose_batches_fail_in_a_row_makes_it_false_until_one_succeeds() -> None:
    async with watched(idle_s=0) as one:
        loaded, model = await one.load()
        model.fail = fails
        await one.submit(loaded, *range(FAILURES - 1))
        assert one.readiness.reasons() == []
        await one.submit(loaded, 1)
        (reason,) = one.readiness.reasons()
        assert f"the last {FAILURES} batches of demo (textual) failed" in reason
        assert "RuntimeError: the fake was told to fail" in reason
        model.fail = works
        await one.submit(loaded, 1)
        assert one.readiness.reasons() == []


async def test_broken_inputs_between_good_ones_change_nothing() -> None:
    async with watched(idle_s=0) as one:
        loaded, model = await one.load()
        model.fail = lambda item: item == "broken"
        for _ in range(2 * FAILURES):
            await one.submit(loaded, "broken", "broken", "good")
        assert one.readiness.reasons() == []


async def test_a_model_that_was_only_fed_broken_inputs_proves_that_it_works() -> None:
    async with watched(idle_s=3600) as one:
        loaded, model = await one.load()
        model.fail = lambda item: item == "broken"
        await one.submit(loaded, *["broken"] * FAILURES)
        await until(lambda: one.proofs)
        assert one.readiness.reasons() == []
    assert one.proofs == [True]


async def test_a_proof_that_fails_makes_it_false_and_the_next_that_succeeds_true(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(readiness, "AGAIN_S", 0.01)
    async with watched() as one:
        _, model = await one.load()
        model.fail = fails
        await until(lambda: False in one.proofs)
        (reason,) = one.readiness.reasons()
        assert "told to fail" in reason
        await until(lambda: "not ready: " in caplog.text)
        model.fail = works
        await until(lambda: one.proofs[-1])
        assert one.readiness.reasons() == []
        caplog.set_level("INFO")
        model.fail = fails
        await until(lambda: not one.proofs[-1])
        await until(lambda: caplog.text.count("not ready: ") >= 2)
        model.fail = works
        await until(lambda: "ready again" in caplog.text)


async def test_an_input_that_cannot_be_prepared_is_a_failure_too() -> None:
    class Broken(FakeModel):
        def prepare(self, value: Any, option: Any = None) -> Any:
            raise LookupError("no tokenizer")

    class Engines(FakeEngines):
        def load(self, part: Part) -> tuple[FakeModel, ...]:
            return (Broken(part.kind, part.entry.name),)

    async with watched() as one:
        one.shelf = Shelf(Engines().load, one.engines.release)
        one.readiness._shelf = one.shelf
        async with one.shelf.use(Part("textual", DEMO)):
            pass
        await until(lambda: one.proofs)
        (reason,) = one.readiness.reasons()
    assert "demo (textual) could not prove itself (LookupError: no tokenizer)" in reason


async def test_a_device_that_hangs_makes_it_false_until_something_comes_back() -> None:
    async with watched(hangs_s=0.05) as one:
        loaded, model = await one.load()
        model.gate.clear()
        await until(lambda: one.readiness.reasons())
        (reason,) = one.readiness.reasons()
        assert reason.startswith("nothing has come back from worker 0 of cpu for ")
        await until(lambda: one.proofs[-1] is False)
        model.gate.set()
        await one.submit(loaded, 1)
        assert one.readiness.reasons() == []


async def test_a_device_that_hangs_is_told_of_where_nothing_proves_itself() -> None:
    async with watched(idle_s=0, hangs_s=0.05) as one:
        loaded, model = await one.load()
        model.gate.clear()
        running = asyncio.create_task(one.submit(loaded, 1))
        await until(lambda: one.readiness.reasons())
        model.gate.set()
        await running
        assert one.readiness.reasons() == []


async def test_a_device_that_hangs_is_told_of_while_another_works() -> None:
    async with watched(idle_s=0, hangs_s=0.05) as one:
        scheduler = Scheduler("two", replicas=2)
        scheduler.start()
        models = FakeModel("textual", "stuck"), FakeModel("textual", "works")
        queue = scheduler.add(models, "two", Lane.INTERACTIVE)
        models[0].gate.clear()
        stuck = scheduler.prove(queue, 0, "stuck")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(one.shelf, "schedulers", lambda: [scheduler])
            await scheduler.submit(queue, "works")
            await until(one.readiness.reasons)
            await scheduler.submit(queue, "works still")
            (reason,) = one.readiness.reasons()
            assert reason.startswith("nothing has come back from worker 0 of two for ")
            models[0].gate.set()
            await stuck
            assert one.readiness.reasons() == []
        assert await scheduler.close()


async def test_a_proof_that_is_merely_slow_behind_other_work_is_no_failure() -> None:
    async with watched(idle_s=3600, hangs_s=0.2) as one:
        loaded, model = await one.load()
        model.gate.clear()
        slow = asyncio.create_task(one.submit(loaded, "slow"))
        assert await asyncio.to_thread(model.running.acquire, timeout=20)
        proving = asyncio.create_task(one.readiness._prove(loaded))
        await until(lambda: loaded.queue.items == 1)
        loaded.scheduler.ended += 1  # as if another model's batch had come back meanwhile
        await proving
        model.gate.set()
        await slow
    assert one.proofs == []


async def test_unloading_a_model_under_its_proof_is_no_failure() -> None:
    async with watched(idle_s=3600) as one:
        loaded, model = await one.load()
        model.gate.clear()
        running = asyncio.create_task(one.submit(loaded, "runs"))
        assert await asyncio.to_thread(model.running.acquire, timeout=20)
        proving = asyncio.create_task(one.readiness._prove(loaded))
        await until(lambda: loaded.queue.items == 1)
        loaded.scheduler.remove(loaded.queue)
        await proving
        model.gate.set()
        await running
    assert one.proofs == []


async def test_a_proof_does_not_keep_a_model_in_memory() -> None:
    async with watched() as one:
        loaded, _ = await one.load()
        used = loaded.last_used
        await until(lambda: len(one.proofs) >= 2)
        assert loaded.last_used == used


Check = Callable[[], Awaitable[tuple[int, str]]]


@asynccontextmanager
async def ready(engines: FakeEngines, **settings: Any) -> AsyncIterator[tuple[Any, Check]]:
    async with serving(fake_app(engines, **settings)) as client:

        async def check() -> tuple[int, str]:
            response = await client.get("/health/ready")
            return response.status, (await response.json())["status"]

        yield client, check


async def test_without_preloads_a_server_is_ready_at_once() -> None:
    engines = FakeEngines()
    engines.gate.clear()
    async with ready(engines) as (_, check):
        assert await check() == (200, "ready")
        engines.gate.set()


async def test_the_route_tells_of_failing_batches_and_of_recovery() -> None:
    engines = FakeEngines()
    async with ready(engines, proof_s=0) as (client, check):
        await client.post("/predict", data=form(TEXT, text="warm"))
        engines.models["textual", "demo"].fail = fails
        for _ in range(FAILURES):
            assert (await client.post("/predict", data=form(TEXT, text="x"))).status == 500
        status, reason = await check()
        assert (status, "batches of demo (textual) failed" in reason) == (503, True)
        # Another model works all the while, and does not make up for it.
        assert (await client.post("/predict", data=form(CLIP, png()))).status == 200
        assert (await check())[0] == 503
        engines.models["textual", "demo"].fail = works
        await client.post("/predict", data=form(TEXT, text="x"))
        assert await check() == (200, "ready")


async def test_the_server_watches_by_itself() -> None:
    engines = FakeEngines()
    app = fake_app(engines, proof_s=0.001)
    app[READINESS]._poll_s = 0.005
    async with serving(app) as client:
        await client.post("/predict", data=form(TEXT, text="warm"))
        await until(lambda: len(engines.models["textual", "demo"].batches) >= 3)
        text = await (await client.get("/metrics")).text()
    proofs = re.search(r'^facet_proofs_total{outcome="passed"} (\S+)$', text, re.MULTILINE)
    assert proofs is not None
    assert float(proofs[1]) >= 2
