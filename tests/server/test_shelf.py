"""Which models are in memory: loaded once, held while used, gone when idle or over budget."""

import asyncio
import gc
import sys
import weakref
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from engines import catalog
from engines.model import Kind
from server.batcher import Closed
from server.shelf import Part, Shelf, devices, in_thread
from tests.server.fakes import FakeEngines, FakeModel, unit

DEMO, B32 = catalog.clip("demo"), catalog.clip("ViT-B-32__openai")


def part(kind: Kind = "visual", entry: catalog.Clip = DEMO) -> Part:
    return Part(kind, entry)


@pytest.fixture
def engines() -> FakeEngines:
    return FakeEngines()


@pytest.fixture
async def shelf(engines: FakeEngines) -> AsyncIterator[Shelf]:
    shelf = Shelf(engines.load, engines.release, ttl=0.001)
    yield shelf
    assert await shelf.close(grace=5)


async def use(shelf: Shelf, wanted: Part) -> str:
    async with shelf.use(wanted) as loaded:
        return loaded.part.entry.name


async def test_a_hundred_who_ask_at_once_share_one_load(shelf: Shelf, engines: FakeEngines) -> None:
    engines.gate.clear()
    asking = [asyncio.create_task(use(shelf, part())) for _ in range(100)]
    await asyncio.sleep(0)
    engines.gate.set()
    assert await asyncio.gather(*asking) == ["demo"] * 100
    assert engines.loads == [("visual", "demo")]


async def test_who_hangs_up_does_not_end_the_load_of_others(shelf: Shelf, engines: FakeEngines) -> None:
    engines.gate.clear()
    first, second = (asyncio.create_task(use(shelf, part())) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    engines.gate.set()
    assert await second == "demo"
    assert len(engines.loads) == 1


async def test_a_load_that_fails_is_told_to_all_and_tried_again(shelf: Shelf, engines: FakeEngines) -> None:
    engines.error = ValueError("no luck")
    results = await asyncio.gather(*(use(shelf, part()) for _ in range(3)), return_exceptions=True)
    assert all(isinstance(result, ValueError) for result in results)
    assert shelf.loaded() == []
    engines.error = None
    assert await use(shelf, part()) == "demo"


async def test_a_failed_load_that_nobody_waits_for_any_longer_is_quiet(shelf: Shelf, engines: FakeEngines) -> None:
    engines.gate.clear()
    engines.error = ValueError("no luck")
    asking = asyncio.create_task(use(shelf, part()))
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    engines.gate.set()
    with pytest.raises(ValueError, match="no luck"):
        await use(shelf, part())
    gc.collect()  # an exception that nobody retrieved would be reported here, and fail this test


async def test_idle_models_leave_and_their_memory_is_given_back(shelf: Shelf, engines: FakeEngines) -> None:
    await use(shelf, part())
    trace = weakref.ref(engines.models.pop(("visual", "demo")))
    await asyncio.sleep(0.002)  # the time to live of this shelf is 1 ms
    await shelf.unload_idle()
    assert shelf.loaded() == []
    assert engines.released == 1
    gc.collect()
    assert trace() is None
    assert await use(shelf, part()) == "demo"
    assert len(engines.loads) == 2


async def test_what_is_in_use_or_preloaded_stays(shelf: Shelf, engines: FakeEngines) -> None:
    await shelf.preload([part("textual")])
    async with shelf.use(part()):
        await asyncio.sleep(0.002)
        await shelf.unload_idle()
        assert {loaded.part for loaded in shelf.loaded()} == {part(), part("textual")}
    await asyncio.sleep(0.002)
    await shelf.unload_idle()
    assert [loaded.part for loaded in shelf.loaded()] == [part("textual")]


async def test_a_preload_that_fails_is_logged_and_does_not_stop_the_next(
    shelf: Shelf, engines: FakeEngines, caplog: pytest.LogCaptureFixture
) -> None:
    load = engines.load

    def load_all_but_texts(wanted: Part) -> object:
        if wanted.kind == "textual":
            raise ValueError("no luck")
        return load(wanted)

    shelf._load = load_all_but_texts  # type: ignore[assignment]  # a fake model
    await shelf.preload([part("textual"), part("visual")])
    assert [loaded.part for loaded in shelf.loaded()] == [part("visual")]
    assert "demo (textual) could not be preloaded" in caplog.text


async def test_nothing_leaves_without_a_time_to_live(engines: FakeEngines) -> None:
    shelf = Shelf(engines.load, engines.release, ttl=0)
    await use(shelf, part())
    await shelf.unload_idle()
    assert len(shelf.loaded()) == 1
    assert await shelf.close(grace=5)


async def test_over_budget_the_least_recently_used_leaves_first(
    engines: FakeEngines, caplog: pytest.LogCaptureFixture
) -> None:
    shelf = Shelf(engines.load, engines.release, budget=2500)  # a fake has 1000 bytes
    first, second, third = part("visual"), part("textual"), part("visual", B32)
    for wanted in (first, second, first, third):
        await use(shelf, wanted)
    assert [loaded.part for loaded in shelf.loaded()] == [first, third]
    async with shelf.use(first), shelf.use(third), shelf.use(second):
        assert len(shelf.loaded()) == 3
    assert "over MACHINE_LEARNING_MEMORY_BUDGET_MB" in caplog.text
    assert await shelf.close(grace=5)


async def test_what_somebody_waits_for_does_not_leave_before_they_have_it(engines: FakeEngines) -> None:
    """Two loads end together, and each would push the other out."""
    shelf = Shelf(engines.load, engines.release, budget=1)
    engines.gate.clear()
    asking = [asyncio.create_task(use(shelf, part(kind))) for kind in ("visual", "textual") for _ in range(5)]
    await asyncio.sleep(0)
    engines.gate.set()
    async with asyncio.timeout(20):
        assert await asyncio.gather(*asking) == ["demo"] * 10
    assert sorted(engines.loads) == [("textual", "demo"), ("visual", "demo")]
    assert await shelf.close(grace=5)


async def test_memory_that_cannot_be_given_back_fails_nobody(
    engines: FakeEngines, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise OSError("no malloc_trim")

    shelf = Shelf(engines.load, fail, budget=1500)
    assert await use(shelf, part("visual")) == "demo"
    assert await use(shelf, part("textual")) == "demo"
    assert [loaded.part.kind for loaded in shelf.loaded()] == ["textual"]
    assert "could not be given back" in caplog.text
    assert await shelf.close(grace=5)


async def test_texts_are_interactive_and_pictures_bulk(shelf: Shelf) -> None:
    lanes = {}
    for kind in ("visual", "textual"):
        async with shelf.use(part(kind)) as loaded:
            lanes[kind] = loaded.queue.lane.value
    assert lanes == {"visual": "bulk", "textual": "interactive"}


class Replicas(FakeEngines):
    """A load of one replica on each of `names`."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.names = names

    def load(self, part: Part) -> tuple[FakeModel, ...]:
        return tuple(on(name, super(Replicas, self).load(part)[0]) for name in self.names)


def on(device: str, model: FakeModel) -> FakeModel:
    model.info = replace(model.info, device=device)
    return model


@pytest.mark.parametrize(
    ("names", "short"),
    [(("cpu",), "cpu"), (("cuda:0",), "cuda:0"), (("cuda:0", "cuda:1"), "cuda:0+1"), (("xpu:1", "cpu"), "xpu:1+cpu")],
)
def test_devices_have_a_short_name(names: tuple[str, ...], short: str) -> None:
    assert devices([on(name, FakeModel("visual", "demo")) for name in names]) == short


async def test_replicas_share_a_queue_and_count_with_all_their_weights() -> None:
    engines = Replicas("cuda:0", "cuda:1")
    shelf = Shelf(engines.load, engines.release, budget=3000)
    async with shelf.use(part()) as loaded:
        assert len(loaded.models) == 2
        assert loaded.bytes == 2000
        await asyncio.gather(*(loaded.scheduler.submit(loaded.queue, ("image", i)) for i in range(50)))
    await use(shelf, part("textual"))
    assert [loaded.part for loaded in shelf.loaded()] == [part("textual")]
    assert [(scheduler.name, scheduler.alive) for scheduler in shelf.schedulers()] == [("cuda:0+1", True)]
    assert await shelf.close(grace=5)


async def test_another_model_takes_the_place_of_one_in_use(shelf: Shelf, engines: FakeEngines) -> None:
    async with shelf.use(part()) as loaded:
        old = engines.models.pop(("visual", "demo"))
        old.gate.clear()
        running = loaded.scheduler.submit(loaded.queue, ("image", 1))
        assert await asyncio.to_thread(old.running.acquire, timeout=20)
        waiting = loaded.scheduler.submit(loaded.queue, ("image", 2))
        new = FakeModel("visual", "demo", size=5)
        swapping = asyncio.create_task(shelf.swap(part(), [new]))
        await asyncio.sleep(0)
        assert loaded.model is new, "who holds it prepares with the new one at once"
        assert engines.released == 0
        old.gate.set()
        results = await asyncio.gather(running, waiting)
        assert [result.tolist() for result in results] == [unit(("image", i)).tolist() for i in (1, 2)]
        assert await swapping
        assert (old.batches, new.batches) == ([1], [1])
        assert (engines.released, loaded.bytes) == (1, 5)
        trace = weakref.ref(old)
        del old
        gc.collect()
        assert trace() is None
    await asyncio.sleep(0.002)
    await shelf.unload_idle()
    assert shelf.loaded() == []


async def test_what_is_not_in_memory_is_not_swapped(shelf: Shelf, engines: FakeEngines) -> None:
    assert not await shelf.swap(part(), [FakeModel("visual", "demo")])
    assert (shelf.loaded(), engines.released) == ([], 0)


async def test_on_another_device_what_waits_is_still_computed_where_it_waits(
    shelf: Shelf, engines: FakeEngines
) -> None:
    async with shelf.use(part()) as loaded:
        old = engines.models["visual", "demo"]
        old.gate.clear()
        running = loaded.scheduler.submit(loaded.queue, ("image", 1))
        assert await asyncio.to_thread(old.running.acquire, timeout=20)
        waiting = loaded.scheduler.submit(loaded.queue, ("image", 2))
        new = on("xpu:0", FakeModel("visual", "demo"))
        swapping = asyncio.create_task(shelf.swap(part(), [new]))
        await asyncio.sleep(0)
        assert loaded.scheduler.name == "xpu:0"
        await loaded.scheduler.submit(loaded.queue, ("image", 3))
        assert not swapping.done()
        old.gate.set()
        await asyncio.gather(running, waiting)
        assert await swapping
    assert (old.batches, new.batches) == ([1, 1], [1])


async def test_a_larger_model_that_takes_a_place_makes_room(engines: FakeEngines) -> None:
    shelf = Shelf(engines.load, engines.release, budget=2500)
    await shelf.preload([part("textual")])
    await use(shelf, part("visual"))
    await use(shelf, part("visual", B32))
    await use(shelf, part("visual"))
    assert await shelf.swap(part("visual"), [FakeModel("visual", "demo", size=1500)])
    assert [loaded.part for loaded in shelf.loaded()] == [part("textual"), part("visual")], "preloaded ones stay"
    assert await shelf.close(grace=5)


async def test_whatever_is_loaded_is_told(engines: FakeEngines) -> None:
    told: list[Part] = []
    shelf = Shelf(engines.load, engines.release, placed=lambda loaded: told.append(loaded.part))
    for _ in range(2):
        await use(shelf, part())
    assert told == [part()]
    assert await shelf.close(grace=5)


async def test_models_of_one_device_share_a_scheduler(shelf: Shelf) -> None:
    async with shelf.use(part("visual")) as one, shelf.use(part("textual")) as other:
        assert one.scheduler is other.scheduler
    assert [scheduler.name for scheduler in shelf.schedulers()] == ["cpu"]


async def test_after_close_what_waits_is_told(engines: FakeEngines) -> None:
    shelf = Shelf(engines.load, engines.release)
    async with shelf.use(part()) as loaded:
        model = engines.models["visual", "demo"]
        model.gate.clear()
        running = loaded.scheduler.submit(loaded.queue, ("image", 1))
        assert await asyncio.to_thread(model.running.acquire, timeout=20)
        waiting = loaded.scheduler.submit(loaded.queue, ("image", 2))
        assert not await shelf.close(grace=0.01), "a batch on the device cannot be interrupted"
        with pytest.raises(Closed):
            await waiting
        model.gate.set()
        await running


async def test_a_thread_hands_on_what_its_function_raises() -> None:
    with pytest.raises(ValueError, match="lost"):
        await in_thread(lambda: int("lost"), "failing")
    assert await in_thread(lambda: 7, "working") == 7


async def test_a_library_that_wants_to_end_the_process_only_fails_its_load(shelf: Shelf, engines: FakeEngines) -> None:
    shelf._load = lambda part: sys.exit("a library gave up")
    with pytest.raises(RuntimeError, match="a library gave up"):
        await use(shelf, part())
