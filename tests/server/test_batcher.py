"""The scheduler with fakes: order, own answers, cancellation, failure, lanes, one batch ahead, shutdown."""

import asyncio
import functools
import gc
import logging
import random
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from server.batcher import BURST, Closed, Scheduler, WrongCount
from server.queue import Full, Lane, Limits, Queue


class Echo:
    """Returns each item; records its batches; can be held at a gate and told which items fail."""

    def __init__(self, buckets: tuple[int, ...] = (1, 2, 4, 8)) -> None:
        self.buckets = buckets
        self.batches: list[list[Any]] = []
        self.collated: list[list[Any]] = []
        self.guilty: Callable[[Any], bool] = lambda item: False
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.threads: set[str] = set()

    def collate(self, items: Sequence[Any]) -> list[Any]:
        self.collated.append(list(items))
        return list(items)

    def run(self, batch: list[Any]) -> list[Any]:
        self.threads.add(threading.current_thread().name)
        self.entered.release()
        assert self.gate.wait(20)
        self.batches.append(batch)
        if any(self.guilty(item) for item in batch):
            raise RuntimeError(f"cannot compute a batch of {len(batch)}")
        return list(batch)

    async def until_running(self) -> None:
        assert await asyncio.to_thread(self.entered.acquire, timeout=20)


@pytest.fixture
async def scheduler() -> AsyncIterator[Scheduler]:
    scheduler = Scheduler("fake")
    scheduler.start()
    yield scheduler
    assert await scheduler.close()


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until `condition` holds: other threads are at work."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what other threads do sets no asyncio event
            await asyncio.sleep(0)


async def hold(scheduler: Scheduler, model: Echo, queue: Queue) -> "asyncio.Future[Any]":
    """Occupy the device with one item until `model.gate` is set."""
    model.gate.clear()
    future = scheduler.submit(queue, "held")
    await model.until_running()
    return future


async def test_a_lone_item_goes_at_once_and_comes_back(scheduler: Scheduler) -> None:
    model = Echo()
    queue = scheduler.add(model, "echo", Lane.BULK)
    assert await scheduler.submit(queue, 7) == 7
    assert model.batches == [[7]]
    assert model.threads == {"fake-device"}


async def test_a_burst_fills_the_batch_while_the_one_before_runs(scheduler: Scheduler) -> None:
    model = Echo()
    queue = scheduler.add(model, "echo", Lane.BULK)
    held = await hold(scheduler, model, queue)
    burst = [scheduler.submit(queue, item) for item in range(6)]
    model.gate.set()
    assert await asyncio.gather(held, *burst) == ["held", 0, 1, 2, 3, 4, 5]
    assert model.batches == [["held"], [0, 1, 2, 3, 4, 5]]


async def test_one_full_batch_is_collated_ahead_never_more(scheduler: Scheduler) -> None:
    model = Echo()
    queue = scheduler.add(model, "echo", Lane.BULK)
    held = await hold(scheduler, model, queue)
    futures = [scheduler.submit(queue, item) for item in range(32)]
    await until(lambda: len(model.collated) == 2)
    assert model.collated[1] == list(range(8))
    assert queue.items == 24, "one batch left the queue, the others wait where later items and lanes can be weighed"
    assert model.batches == []
    model.gate.set()
    assert await asyncio.gather(*futures) == list(range(32))
    await held
    assert queue.items == 0


async def test_a_batch_that_is_not_full_is_not_cut_ahead(scheduler: Scheduler) -> None:
    model = Echo()
    queue = scheduler.add(model, "echo", Lane.BULK)
    held = await hold(scheduler, model, queue)
    first = [scheduler.submit(queue, item) for item in range(7)]
    await asyncio.sleep(0)
    assert queue.items == 7
    second = scheduler.submit(queue, 7)
    await until(lambda: queue.items == 0)  # the eighth made it full
    model.gate.set()
    assert await asyncio.gather(held, *first, second) == ["held", *range(8)]
    assert model.batches[1] == list(range(8))


async def test_texts_overtake_pictures_even_the_batch_collated_ahead(scheduler: Scheduler) -> None:
    pictures, texts = Echo(), Echo()
    bulk = scheduler.add(pictures, "pictures", Lane.BULK)
    interactive = scheduler.add(texts, "texts", Lane.INTERACTIVE)
    done: list[str] = []
    held = await hold(scheduler, pictures, bulk)
    for item in range(16):
        scheduler.submit(bulk, item).add_done_callback(lambda _: done.append("picture"))
    await until(lambda: len(pictures.collated) == 2)
    text = scheduler.submit(interactive, "text")
    text.add_done_callback(lambda _: done.append("text"))
    pictures.gate.set()
    await held
    await until(lambda: len(done) == 17)
    assert done[0] == "text"


async def test_a_flood_of_texts_lets_pictures_through(scheduler: Scheduler) -> None:
    pictures, texts = Echo(), Echo(buckets=(1,))
    bulk = scheduler.add(pictures, "pictures", Lane.BULK)
    interactive = scheduler.add(texts, "texts", Lane.INTERACTIVE)
    held = await hold(scheduler, texts, interactive)
    picture = scheduler.submit(bulk, "picture")
    order: list[str] = []
    picture.add_done_callback(lambda _: order.append("picture"))
    flood = [scheduler.submit(interactive, item) for item in range(3 * BURST)]
    for future in flood:
        future.add_done_callback(lambda _: order.append("text"))
    texts.gate.set()
    await asyncio.gather(held, picture, *flood)
    assert order.index("picture") <= BURST


async def test_queues_of_one_lane_take_turns(scheduler: Scheduler) -> None:
    one, other = Echo(buckets=(1,)), Echo(buckets=(1,))
    first, second = (scheduler.add(model, "echo", Lane.BULK) for model in (one, other))
    order: list[str] = []
    held = await hold(scheduler, one, first)
    futures = []
    for queue, name in ((first, "a"), (second, "b")):
        for _ in range(10):
            futures.append(scheduler.submit(queue, name))
            futures[-1].add_done_callback(functools.partial(lambda name, _: order.append(name), name))
    one.gate.set()
    await asyncio.gather(held, *futures)
    assert abs(order[:10].count("a") - 5) <= 1


async def test_only_the_guilty_item_fails(scheduler: Scheduler, caplog: pytest.LogCaptureFixture) -> None:
    model = Echo()
    model.guilty = lambda item: item == 3
    queue = scheduler.add(model, "echo", Lane.BULK)
    held = await hold(scheduler, model, queue)
    futures = [scheduler.submit(queue, item) for item in range(8)]
    model.gate.set()
    results = await asyncio.gather(*futures, return_exceptions=True)
    await held
    assert [result for result in results if not isinstance(result, Exception)] == [0, 1, 2, 4, 5, 6, 7]
    assert isinstance(results[3], RuntimeError)
    assert any("failed" in record.message for record in caplog.records)


async def test_an_item_that_cannot_be_collated_ahead_fails_alone(scheduler: Scheduler) -> None:
    class Picky(Echo):
        def collate(self, items: Sequence[Any]) -> list[Any]:
            if 5 in items:
                raise ValueError("5 does not fit")
            return super().collate(items)

    model = Picky()
    queue = scheduler.add(model, "picky", Lane.BULK)
    held = await hold(scheduler, model, queue)
    futures = [scheduler.submit(queue, item) for item in range(8)]
    await until(lambda: queue.items == 0)
    model.gate.set()
    results = await asyncio.gather(*futures, return_exceptions=True)
    await held
    assert [i for i, result in enumerate(results) if isinstance(result, ValueError)] == [5]
    assert [result for result in results if not isinstance(result, Exception)] == [0, 1, 2, 3, 4, 6, 7]


async def test_a_model_that_loses_a_result_never_shifts_answers(scheduler: Scheduler) -> None:
    class Lossy(Echo):
        def run(self, batch: list[Any]) -> list[Any]:
            return [item for item in super().run(batch) if item != 2]

    model = Lossy()
    queue = scheduler.add(model, "lossy", Lane.BULK)
    held = await hold(scheduler, model, queue)
    futures = [scheduler.submit(queue, item) for item in range(5)]
    model.gate.set()
    results = await asyncio.gather(*futures, return_exceptions=True)
    await held
    assert isinstance(results[2], WrongCount)
    assert [results[i] for i in (0, 1, 3, 4)] == [0, 1, 3, 4]


async def test_limits_turn_new_items_away_but_not_accepted_work(scheduler: Scheduler) -> None:
    model = Echo()
    queue = scheduler.add(model, "echo", Lane.BULK, Limits(items=3))
    held = await hold(scheduler, model, queue)
    futures = [scheduler.submit(queue, item) for item in range(3)]
    with pytest.raises(Full):
        scheduler.submit(queue, "too many")
    crops = scheduler.submit(queue, "crop", accepted=True)
    model.gate.set()
    assert await asyncio.gather(held, *futures, crops) == ["held", 0, 1, 2, "crop"]


async def test_an_item_cancelled_in_the_queue_is_never_computed(scheduler: Scheduler) -> None:
    model = Echo()
    queue = scheduler.add(model, "echo", Lane.BULK)
    held = await hold(scheduler, model, queue)
    futures = [scheduler.submit(queue, item) for item in range(4)]
    futures[1].cancel()
    model.gate.set()
    await asyncio.gather(held, *futures, return_exceptions=True)
    assert [item for batch in model.batches for item in batch] == ["held", 0, 2, 3]


async def test_a_picture_of_a_caller_who_hung_up_leaves_memory_at_once(scheduler: Scheduler) -> None:
    class Picture:
        pass

    model = Echo()
    queue = scheduler.add(model, "echo", Lane.BULK)
    held = await hold(scheduler, model, queue)
    picture = Picture()
    trace = weakref.ref(picture)
    waiting = scheduler.submit(queue, picture, weight=1000)
    del picture
    waiting.cancel()
    await until(lambda: queue.items == 0)
    gc.collect()
    assert trace() is None
    assert queue.weight == 0
    model.gate.set()
    await held


async def test_a_model_that_raises_stop_iteration_fails_that_item_alone(scheduler: Scheduler) -> None:
    class Stopping(Echo):
        def run(self, batch: list[Any]) -> list[Any]:
            if 2 in batch:
                raise StopIteration
            return super().run(batch)

    model = Stopping()
    queue = scheduler.add(model, "stopping", Lane.BULK)
    held = await hold(scheduler, model, queue)
    futures = [scheduler.submit(queue, item) for item in range(4)]
    model.gate.set()
    async with asyncio.timeout(20):
        results = await asyncio.gather(*futures, return_exceptions=True)
    await held
    assert [type(result) for result in results] == [int, int, RuntimeError, int]


async def test_10000_callers_each_get_their_own_answer(scheduler: Scheduler, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)  # 200 failed items are meant
    rng = random.Random(5)
    guilty = set(rng.sample(range(10_000), 200))
    models = [Echo(tuple(range(1, 33))), Echo((1, 2, 4, 8, 16))]
    for model in models:
        model.guilty = lambda item: item in guilty
    queues = [scheduler.add(models[0], "a", Lane.BULK, Limits(items=10_000))]
    queues.append(scheduler.add(models[1], "b", Lane.INTERACTIVE, Limits(items=10_000)))
    tasks: list[asyncio.Task[Any]] = []

    async def call(item: int) -> Any:
        for _ in range(rng.randrange(20)):
            await asyncio.sleep(0)
        return await scheduler.submit(rng.choice(queues), item, flow=item % 7)

    tasks = [asyncio.create_task(call(item)) for item in range(10_000)]
    cancelled = rng.sample(range(10_000), 1000)
    for item in cancelled:
        await asyncio.sleep(0)
        tasks[item].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    for item, result in enumerate(results):
        if isinstance(result, asyncio.CancelledError):
            assert item in cancelled
        elif isinstance(result, Exception):
            assert item in guilty
            assert isinstance(result, RuntimeError)
        else:
            assert result == item
            assert item not in guilty
    answered = sum(not isinstance(result, BaseException) for result in results)
    assert answered >= 10_000 - 1000 - 200
    assert all((queue.items, queue.weight) == (0, 0) for queue in queues)


async def test_no_wake_up_is_lost_over_many_lone_items(scheduler: Scheduler) -> None:
    queue = scheduler.add(Echo(), "echo", Lane.BULK)
    async with asyncio.timeout(20):
        for item in range(2000):
            assert await scheduler.submit(queue, item) == item


async def test_no_wake_up_is_lost_between_closed_loop_callers(scheduler: Scheduler) -> None:
    queue = scheduler.add(Echo(), "echo", Lane.BULK)

    async def caller(number: int) -> None:
        for turn in range(200):
            assert await scheduler.submit(queue, (number, turn), flow=number) == (number, turn)

    async with asyncio.timeout(60):
        await asyncio.gather(*(caller(number) for number in range(24)))


async def test_close_fails_what_waits_and_lets_the_running_batch_end() -> None:
    scheduler = Scheduler("closing")
    scheduler.start()
    model = Echo()
    queue = scheduler.add(model, "echo", Lane.BULK)
    held = await hold(scheduler, model, queue)
    waiting = [scheduler.submit(queue, item) for item in range(20)]
    await until(lambda: len(model.collated) == 2)
    assert not await scheduler.close(grace=0.01)
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(result, Closed) for result in results)
    model.gate.set()
    assert await held == "held"
    assert await scheduler.close()
    assert (queue.items, scheduler.alive) == (0, False)
    with pytest.raises(Closed):
        scheduler.submit(queue, "late")


async def test_a_batch_collated_while_the_scheduler_closes_is_failed_not_forgotten() -> None:
    class SlowCollate(Echo):
        may_collate = threading.Event()

        def collate(self, items: Sequence[Any]) -> list[Any]:
            if len(items) > 1:
                assert self.may_collate.wait(20)
            return super().collate(items)

    scheduler = Scheduler("closing")
    scheduler.start()
    model = SlowCollate()
    queue = scheduler.add(model, "echo", Lane.BULK)
    held = await hold(scheduler, model, queue)
    waiting = [scheduler.submit(queue, item) for item in range(8)]
    await until(lambda: queue.items == 0)
    closing = asyncio.create_task(scheduler.close())
    await asyncio.sleep(0)
    model.may_collate.set()
    model.gate.set()
    assert await closing
    assert await held == "held"
    assert all(isinstance(error, Closed) for error in await asyncio.gather(*waiting, return_exceptions=True))


async def test_a_removed_queue_fails_what_waits_in_it(scheduler: Scheduler) -> None:
    model = Echo()
    queue = scheduler.add(model, "echo", Lane.BULK)
    held = await hold(scheduler, model, queue)
    waiting = scheduler.submit(queue, 1)
    scheduler.remove(queue)
    with pytest.raises(Closed, match="unloaded"):
        await waiting
    with pytest.raises(Closed, match="unloaded"):
        scheduler.submit(queue, 2)
    model.gate.set()
    assert await held == "held"


async def test_a_thread_that_dies_is_seen_and_nobody_waits_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    class Deadly(Echo):
        def run(self, batch: list[Any]) -> list[Any]:
            super().run(batch)
            raise SystemExit("out of this thread")

    scheduler = Scheduler("dying")
    scheduler.start()
    model = Deadly()
    queue = scheduler.add(model, "deadly", Lane.BULK)
    held = await hold(scheduler, model, queue)
    waiting = scheduler.submit(queue, 1)
    model.gate.set()
    with pytest.raises(Closed, match="died"):
        await held
    with pytest.raises(Closed, match="died"):
        await waiting
    assert isinstance(scheduler.failure, SystemExit)
    assert not scheduler.alive
    assert any(record.levelno == logging.CRITICAL for record in caplog.records)
    with pytest.raises(Closed):
        scheduler.submit(queue, 2)
    assert await scheduler.close()


async def test_a_collating_thread_that_dies_leaves_nobody_waiting(caplog: pytest.LogCaptureFixture) -> None:
    class Deadly(Echo):
        def collate(self, items: Sequence[Any]) -> list[Any]:
            if len(items) > 1:
                raise SystemExit("out of this thread")
            return super().collate(items)

    scheduler = Scheduler("dying")
    scheduler.start()
    model = Deadly()
    queue = scheduler.add(model, "deadly", Lane.BULK)
    held = await hold(scheduler, model, queue)
    waiting = [scheduler.submit(queue, item) for item in range(12)]
    async with asyncio.timeout(20):
        results = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(result, Closed) for result in results)
    model.gate.set()
    assert await held == "held"
    assert not scheduler.alive
    assert await scheduler.close()
    assert "died" in caplog.text


async def test_an_idle_scheduler_holds_on_to_no_item_and_no_removed_model(scheduler: Scheduler) -> None:
    class Item:
        pass

    class Forgetful(Echo):
        def run(self, batch: list[Any]) -> list[Any]:
            return [None] * len(batch)

    model = Forgetful()
    queue = scheduler.add(model, "echo", Lane.BULK)
    item = Item()
    traces: list[weakref.ref[Any]] = [weakref.ref(item), weakref.ref(model), weakref.ref(queue)]
    await scheduler.submit(queue, item)
    model.collated.clear()
    scheduler.remove(queue)
    del item, model, queue
    gc.collect()
    assert [trace() for trace in traces] == [None, None, None]


async def test_an_unstarted_scheduler_says_so() -> None:
    scheduler = Scheduler("idle")
    queue = scheduler.add(Echo(), "echo", Lane.BULK)
    with pytest.raises(Closed, match="not started"):
        scheduler.submit(queue, 1)
    assert await scheduler.close()
