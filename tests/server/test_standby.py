"""What becomes of a model whose batches fail: its proof, eager in its place, its return; and what a client sees."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from engines import catalog
from server.shelf import Loaded, Part, Shelf
from server.standby import Standby
from tests.server.fakes import FakeEngines, FakeModel, fake_app, serving, unit
from tests.server.test_app import TEXT, form

PART = Part("textual", catalog.clip("demo"))


class Engines(FakeEngines):
    """Loads compiled models that fail while `broken_now`, so many replicas of them; and eager ones that do not."""

    def __init__(self, replicas: int = 1) -> None:
        super().__init__()
        self.broken_now: Callable[[FakeModel, Any], bool] = lambda model, item: False
        self.replicas = replicas
        self.made: list[FakeModel] = []
        self.eager_error: Exception | None = None

    def load(self, part: Part) -> tuple[FakeModel, ...]:
        super().load(part)
        return tuple(self._model(part, "compiled", number) for number in range(self.replicas))

    def load_eager(self, part: Part) -> tuple[FakeModel, ...]:
        if self.eager_error is not None:
            raise self.eager_error
        return tuple(self._model(part, "eager", number) for number in range(self.replicas))

    def _model(self, part: Part, backend: str, number: int) -> FakeModel:
        model = FakeModel(part.kind, part.entry.name)
        model.info = replace(model.info, backend=backend, device=f"fake:{number}", built=backend == "compiled")
        model.fail = lambda item: model.info.backend == "compiled" and self.broken_now(model, item)
        self.made.append(model)
        return model


class Served:
    """A shelf with its standby, and one part in memory."""

    def __init__(self, engines: Engines, again_s: float, hangs_s: float) -> None:
        self.engines = engines
        self.shelf = Shelf(engines.load, engines.release, doubt=lambda part, replica: self.standby.doubt(part, replica))
        self.standby = Standby(self.shelf, engines.load, engines.load_eager, again_s, hangs_s)

    async def load(self) -> Loaded:
        async with self.shelf.use(PART) as loaded:
            return loaded

    async def ask(self, loaded: Loaded, *texts: str) -> list[Any]:
        items = [loaded.model.prepare(text) for text in texts]
        async with asyncio.timeout(20):
            return await asyncio.gather(
                *(loaded.scheduler.submit(loaded.queue, item) for item in items), return_exceptions=True
            )


@asynccontextmanager
async def served(engines: Engines, again_s: float = 0.01, hangs_s: float = 20.0) -> AsyncIterator[Served]:
    one = Served(engines, again_s, hangs_s)
    yield one
    one.standby.close()
    assert await one.shelf.close(grace=5)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - a state, no event
            await asyncio.sleep(0.001)


def right(results: list[Any], texts: list[str]) -> bool:
    return [result.tolist() for result in results] == [unit(("text", text, None)).tolist() for text in texts]


TEXTS = [f"text {number}" for number in range(70)]


async def test_eager_answers_what_a_broken_engine_could_not_and_the_engine_comes_back() -> None:
    engines = Engines()
    async with served(engines) as one:
        loaded = await one.load()
        engines.broken_now = lambda model, item: True
        assert right(await one.ask(loaded, *TEXTS), TEXTS)
        assert loaded.model.info.backend == "eager"
        assert "compiled float32 failed (RuntimeError: the fake was told to fail)" in loaded.model.info.reason
        await until(one.standby.remarks)
        (remark,) = one.standby.remarks()
        assert remark.startswith("demo (textual) runs on eager PyTorch, since compiled float32 failed")
        assert one.standby.reasons() == []
        await until(lambda: len(engines.loads) > 2)  # it was tried again, in vain
        assert loaded.model.info.backend == "eager"
        engines.broken_now = lambda model, item: False
        await until(lambda: loaded.model.info.backend == "compiled")
        await until(lambda: not one.standby.remarks())
        assert right(await one.ask(loaded, *TEXTS), TEXTS)


async def test_a_hiccup_and_a_broken_item_change_no_engine() -> None:
    engines = Engines()
    async with served(engines) as one:
        loaded = await one.load()
        calls = iter(range(1000))
        engines.broken_now = lambda model, item: next(calls) < 3
        assert right(await one.ask(loaded, *TEXTS), TEXTS)
        engines.broken_now = lambda model, item: item[1] == "broken"
        (error,) = await one.ask(loaded, "broken")
        assert isinstance(error, RuntimeError)
        assert right(await one.ask(loaded, *TEXTS), TEXTS)
        assert loaded.model.info.backend == "compiled"
        assert len(engines.made) == 1


async def test_where_eager_cannot_be_loaded_the_reason_stands_until_something_is_computed() -> None:
    engines = Engines()
    engines.eager_error = MemoryError("no room")
    async with served(engines, again_s=60) as one:
        loaded = await one.load()
        engines.broken_now = lambda model, item: True
        (error,) = await one.ask(loaded, "a")
        assert isinstance(error, RuntimeError)
        (reason,) = one.standby.reasons()
        assert reason == "demo (textual) fails on fake:0 (RuntimeError: the fake was told to fail): see the log"
        engines.broken_now = lambda model, item: False
        assert right(await one.ask(loaded, "b"), ["b"])
        assert one.standby.reasons() == []


async def test_a_replica_that_fails_leaves_the_work_to_the_other_and_returns_after_its_proof() -> None:
    engines = Engines(replicas=2)
    async with served(engines) as one:
        loaded = await one.load()
        engines.broken_now = lambda model, item: model is engines.made[1]
        engines.made[0].gate.clear()  # so that the other takes something
        asking = asyncio.create_task(one.ask(loaded, *TEXTS))
        await until(lambda: one.standby.remarks())
        engines.made[0].gate.set()
        assert right(await asking, TEXTS)
        assert one.standby.remarks() == [
            "demo (textual) fails on fake:1 (RuntimeError: the fake was told to fail): see the log"
        ]
        assert one.standby.reasons() == []
        engines.broken_now = lambda model, item: False
        await until(lambda: not one.standby.remarks())
        assert loaded.queue.takes(1)
        assert len(engines.made) == 2


async def test_where_all_replicas_fail_eager_takes_the_place_of_all() -> None:
    engines = Engines(replicas=2)
    async with served(engines, again_s=60) as one:
        loaded = await one.load()
        engines.broken_now = lambda model, item: True
        assert right(await one.ask(loaded, *TEXTS), TEXTS)
        assert [model.info.backend for model in loaded.models] == ["eager", "eager"]


async def test_a_client_sees_nothing_of_it_and_readiness_remarks_it() -> None:
    engines = Engines()
    async with serving(fake_app(engines)) as client:
        engines.broken_now = lambda model, item: True
        answers = await asyncio.gather(*(client.post("/predict", data=form(TEXT, text=text)) for text in TEXTS))
        assert [answer.status for answer in answers] == [200] * len(TEXTS)
        response = await client.get("/health/ready")
        assert response.status == 200
        body = await response.json()
        assert body["status"] == "ready"
        assert body["remarks"][0].startswith("demo (textual) runs on eager PyTorch")


async def test_unloading_a_doubted_part_ends_its_judgement() -> None:
    engines = Engines()
    async with served(engines) as one:
        loaded = await one.load()
        engines.broken_now = lambda model, item: True
        engines.made[0].gate.clear()
        asking = asyncio.create_task(one.ask(loaded, "a"))
        await until(lambda: engines.made[0].running.acquire(blocking=False))
        one.shelf._take_out(PART)
        engines.made[0].gate.set()
        (error,) = await asking
        assert isinstance(error, RuntimeError)
        assert one.standby.reasons() == []


async def test_what_cannot_be_judged_fails_and_holds_nobody_up(caplog: pytest.LogCaptureFixture) -> None:
    engines = Engines()
    async with served(engines) as one:
        loaded = await one.load()
        engines.broken_now = lambda model, item: True
        engines.replicas = 2  # so that eager PyTorch comes with more replicas than there are devices
        loaded.scheduler.name = "fake:0+1"
        (error,) = await one.ask(loaded, "a")
        assert isinstance(error, RuntimeError)
    assert "demo (textual) goes on as it is: it could not be judged" in caplog.text
