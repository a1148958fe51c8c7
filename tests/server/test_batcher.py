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

from server.batch import WrongCount
from server.batcher import Closed, Scheduler
from server.queue import Full, Lane, Limits, Queue
from server.turns import BURST


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
    queue = scheduler.add([model], "echo", Lane.BULK)
    assert await scheduler.submit(queue, 7) == 7
    assert model.batches == [[7]]
    assert model.threads == {"fake-device-0"}


async def test_a_burst_fills_the_batch_while_the_one_before_runs(scheduler: Scheduler) -> None:
    model = Echo()
    queue = scheduler.add([model], "echo", Lane.BULK)
    held = await hold(scheduler, model, queue)
    burst = [scheduler.submit(queue, item) for item in range(6)]
    model.gate.set()
    assert await asyncio.gather(held, *burst) == ["held", 0, 1, 2, 3, 4, 5]
    assert model.batches == [["held"], [0, 1, 2, 3, 4, 5]]


async def test_one_full_batch_is_collated_ahead_never_more(scheduler: Scheduler) -> None:
    model = Echo()
    queue = scheduler.add([model], "echo", Lane.BULK)
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
    queue = scheduler.add([model], "echo", Lane.BULK)
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
    bulk = scheduler.add([pictures], "pictures", Lane.BULK)
    interactive = scheduler.add([texts], "texts", Lane.INTERACTIVE)
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
    bulk = scheduler.add([pictures], "pictures", Lane.BULK)
    interactive = scheduler.add([texts], "texts", Lane.INTERACTIVE)
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
    first, second = (scheduler.add([model], "echo", Lane.BULK) for model in (one, other))
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
    queue = scheduler.add([model], "echo", Lane.BULK)
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
    queue = scheduler.add([model], "picky", Lane.BULK)
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
    queue = scheduler.add([model], "lossy", Lane.BULK)
    held = await hold(scheduler, model, queue)
    futures = [scheduler.submit(queue, item) for item in range(5)]
    model.gate.set()
    results = await asyncio.gather(*futures, return_exceptions=True)
    await held
    assert isinstance(results[2], WrongCount)
    assert [results[i] for i in (0, 1, 3, 4)] == [0, 1, 3, 4]


async def test_limits_turn_new_items_away_but_not_accepted_work(scheduler: Scheduler) -> None:
    model = Echo()
    queue = scheduler.add([model], "echo", Lane.BULK, Limits(items=3))
    held = await hold(scheduler, model, queue)
    futures = [scheduler.submit(queue, item) for item in range(3)]
    with pytest.raises(Full):
        scheduler.submit(queue, "too many")
    crops = scheduler.submit(queue, "crop", accepted=True)
    model.gate.set()
    assert await asyncio.gather(held, *futures, crops) == ["held", 0, 1, 2, "crop"]


async def test_an_item_cancelled_in_the_queue_is_never_computed(scheduler: Scheduler) -> None:
    model = Echo()
    queue = scheduler.add([model], "echo", Lane.BULK)
    held = await hold(scheduler, model, queue)
    futures = [scheduler.submit(queue, item) for item in range(4)]
    futures[1].cancel()
    await until(lambda: queue.items == 3)
    model.gate.set()
    await asyncio.gather(held, *futures, return_exceptions=True)
    assert [item for batch in model.batches for item in batch] == ["held", 0, 2, 3]


async def test_a_picture_of_a_caller_who_hung_up_leaves_memory_at_once(scheduler: Scheduler) -> None:
    class Picture:
        pass

    model = Echo()
    queue = scheduler.add([model], "echo", Lane.BULK)
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
    queue = scheduler.add([model], "stopping", Lane.BULK)
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
    queues = [scheduler.add([models[0]], "a", Lane.BULK, Limits(items=10_000))]
    queues.append(scheduler.add([models[1]], "b", Lane.INTERACTIVE, Limits(items=10_000)))
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
    queue = scheduler.add([Echo()], "echo", Lane.BULK)
    async with asyncio.timeout(20):
        for item in range(2000):
            assert await scheduler.submit(queue, item) == item


async def test_no_wake_up_is_lost_between_closed_loop_callers(scheduler: Scheduler) -> None:
    queue = scheduler.add([Echo()], "echo", Lane.BULK)

    async def caller(number: int) -> None:
        for turn in range(200):
            assert await scheduler.submit(queue, (number, turn), flow=number) == (number, turn)

    async with asyncio.timeout(60):
        await asyncio.gather(*(caller(number) for number in range(24)))


async def test_close_fails_what_waits_and_lets_the_running_batch_end() -> None:
    scheduler = Scheduler("closing")
    scheduler.start()
    model = Echo()
    queue = scheduler.add([model], "echo", Lane.BULK)
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
    queue = scheduler.add([model], "echo", Lane.BULK)
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
    queue = scheduler.add([model], "echo", Lane.BULK)
    held = await hold(scheduler, model, queue)
    waiting = scheduler.submit(queue, 1)
    scheduler.remove(queue)
    with pytest.raises(Closed, match="unloaded"):
        await waiting
    with pytest.raises(Closed, match="unloaded"):
        scheduler.submit(queue, 2)
    model.gate.set()
    assert await held == "held"


class Deadly(Echo):
    """Ends its thread for the items that are poison, as often as told for all others."""

    def __init__(self, deaths: int = 0) -> None:
        super().__init__()
        self.deaths = deaths

    def run(self, batch: list[Any]) -> list[Any]:
        results = super().run(batch)
        if "poison" in batch or self.deaths > 0:
            self.deaths -= 1
            raise SystemExit("out of this thread")
        return results


async def test_a_thread_that_dies_is_replaced_and_every_item_gets_its_answer(
    scheduler: Scheduler, caplog: pytest.LogCaptureFixture
) -> None:
    model = Deadly(deaths=1)
    queue = scheduler.add([model], "deadly", Lane.BULK)
    held = await hold(scheduler, model, queue)
    waiting = [scheduler.submit(queue, item) for item in range(20)]
    model.gate.set()
    async with asyncio.timeout(20):
        assert await asyncio.gather(held, *waiting) == ["held", *range(20)]
    assert scheduler.alive
    assert isinstance(scheduler.failure, SystemExit)
    (record,) = [record for record in caplog.records if record.levelno == logging.CRITICAL]
    assert record.getMessage() == "a thread of fake died, and another takes its place"


async def test_only_the_item_under_which_the_thread_dies_again_fails(scheduler: Scheduler) -> None:
    model = Deadly()
    queue = scheduler.add([model], "deadly", Lane.BULK)
    held = await hold(scheduler, model, queue)
    waiting = [scheduler.submit(queue, "poison" if item == 5 else item) for item in range(8)]
    model.gate.set()
    async with asyncio.timeout(20):
        results = await asyncio.gather(held, *waiting, return_exceptions=True)
    assert isinstance(results.pop(6), Closed)
    assert results == ["held", 0, 1, 2, 3, 4, 6, 7]
    assert scheduler.alive


async def test_a_device_whose_thread_dies_every_time_is_not_alive_and_answers_all_the_same(
    scheduler: Scheduler,
) -> None:
    model = Deadly(deaths=5)
    queue = scheduler.add([model], "deadly", Lane.BULK)
    for item in range(2):
        with pytest.raises(Closed, match="a thread of fake died twice under it"):
            await scheduler.submit(queue, item)
        assert not scheduler.alive
        assert scheduler.restarted() == [0]
    assert await scheduler.submit(queue, 3) == 3
    assert scheduler.alive


async def test_a_collating_thread_that_dies_is_replaced_too(scheduler: Scheduler) -> None:
    class DeadlyCollate(Echo):
        def collate(self, items: Sequence[Any]) -> list[Any]:
            if len(items) > 1 and threading.current_thread().name.startswith("fake-collate"):
                raise SystemExit("out of this thread")
            return super().collate(items)

    model = DeadlyCollate()
    queue = scheduler.add([model], "deadly", Lane.BULK)
    held = await hold(scheduler, model, queue)
    waiting = [scheduler.submit(queue, item) for item in range(12)]
    await until(lambda: isinstance(scheduler.failure, SystemExit))
    assert not scheduler.alive
    model.gate.set()
    async with asyncio.timeout(20):
        assert await asyncio.gather(held, *waiting) == ["held", *range(12)]
    await until(lambda: scheduler.alive)


async def test_the_end_comes_while_a_thread_waits_to_take_the_place_of_another() -> None:
    scheduler = Scheduler("dying")
    scheduler.start()
    queue = scheduler.add([Deadly(deaths=100)], "deadly", Lane.BULK)
    for item in range(4):  # each of which takes twice as long as the one before
        with pytest.raises(Closed):
            await scheduler.submit(queue, item)
    late = scheduler.submit(queue, "late")
    assert await scheduler.close(grace=1)
    with pytest.raises(Closed):
        await late


async def test_an_idle_scheduler_holds_on_to_no_item_and_no_removed_model(scheduler: Scheduler) -> None:
    class Item:
        pass

    class Forgetful(Echo):
        def run(self, batch: list[Any]) -> list[Any]:
            return [None] * len(batch)

    model = Forgetful()
    queue = scheduler.add([model], "echo", Lane.BULK)
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
    queue = scheduler.add([Echo()], "echo", Lane.BULK)
    with pytest.raises(Closed, match="not started"):
        scheduler.submit(queue, 1)
    assert await scheduler.close()


@pytest.fixture
async def pair() -> AsyncIterator[Scheduler]:
    """A scheduler of two devices."""
    scheduler = Scheduler("pair", 2)
    scheduler.start()
    yield scheduler
    assert await scheduler.close()


class Replica(Echo):
    """Marks what it collates, takes nothing that another collated, and says who it is."""

    def __init__(self, name: str, buckets: tuple[int, ...] = (1, 2, 4, 8)) -> None:
        super().__init__(buckets)
        self.name = name

    def collate(self, items: Sequence[Any]) -> list[Any]:
        super().collate(items)
        return [(self, item) for item in items]

    def run(self, batch: list[Any]) -> list[Any]:
        assert all(by is self for by, _ in batch)
        return [(self.name, item) for item in super().run([item for _, item in batch])]


async def hold_both(scheduler: Scheduler, queue: Queue, replicas: Sequence[Echo]) -> "list[asyncio.Future[Any]]":
    """Occupy both devices with one item each until the gates of `replicas` are set."""
    held = []
    for replica in replicas:
        replica.gate.clear()
    for number in range(len(replicas)):
        held.append(scheduler.submit(queue, f"held {number}"))
        await until(lambda: queue.items == 0)
    for replica in replicas:
        await replica.until_running()
    return held


async def test_two_replicas_run_at_the_same_time(pair: Scheduler) -> None:
    replicas = [Replica("a"), Replica("b")]
    queue = pair.add(replicas, "echo", Lane.BULK)
    held = await hold_both(pair, queue, replicas)  # would not return if the second waited for the first
    for replica in replicas:
        replica.gate.set()
    results = await asyncio.gather(*held)
    assert {name for name, _ in results} == {"a", "b"}
    assert [item for _, item in results] == ["held 0", "held 1"]
    assert [len(replica.threads) for replica in replicas] == [1, 1]
    assert replicas[0].threads != replicas[1].threads


async def test_each_of_two_items_in_a_row_wakes_a_replica_of_its_own(pair: Scheduler) -> None:
    replicas = [Replica("a", buckets=(1,)), Replica("b", buckets=(1,))]
    queue = pair.add(replicas, "echo", Lane.BULK)
    for _ in range(20):
        for replica in replicas:
            replica.gate.clear()
        both = [pair.submit(queue, item) for item in range(2)]
        for replica in replicas:
            await replica.until_running()
        for replica in replicas:
            replica.gate.set()
        await asyncio.gather(*both)


async def test_a_burst_on_idle_replicas_is_collated_ahead_for_both(pair: Scheduler) -> None:
    for _ in range(20):
        replicas = [Replica("a"), Replica("b")]
        for replica in replicas:
            replica.gate.clear()
        queue = pair.add(replicas, "echo", Lane.BULK)
        burst = [pair.submit(queue, item) for item in range(40)]
        await until(functools.partial(lambda both: all(len(one.collated) == 2 for one in both), replicas))
        for replica in replicas:
            replica.gate.set()
        assert [item for _, item in await asyncio.gather(*burst)] == list(range(40))
        pair.remove(queue)


async def test_a_free_replica_takes_what_would_else_be_collated_ahead(pair: Scheduler) -> None:
    replicas = [Replica("a"), Replica("b")]
    queue = pair.add(replicas, "echo", Lane.BULK)
    for replica in replicas:
        replica.gate.clear()
    held = pair.submit(queue, "held")
    await until(lambda: any(replica.batches or replica.collated for replica in replicas))
    busy, free = sorted(replicas, key=lambda replica: not replica.collated)
    full = [pair.submit(queue, item) for item in range(8)]
    await free.until_running()
    await until(lambda: queue.items == 0)
    assert sum(len(batch) for batch in free.collated) == 8
    assert busy.collated == [["held"]]
    for replica in replicas:
        replica.gate.set()
    assert [item for _, item in await asyncio.gather(*full)] == list(range(8))
    await held


async def test_one_batch_is_collated_ahead_for_each_replica_never_more(pair: Scheduler) -> None:
    replicas = [Replica("a"), Replica("b")]
    queue = pair.add(replicas, "echo", Lane.BULK)
    held = await hold_both(pair, queue, replicas)
    futures = [pair.submit(queue, item) for item in range(32)]
    await until(lambda: all(len(replica.collated) == 2 for replica in replicas))
    assert queue.items == 16
    for replica in replicas:
        replica.gate.set()
    assert [item for _, item in await asyncio.gather(*futures)] == list(range(32))
    await asyncio.gather(*held)


async def test_texts_go_first_on_whichever_replica_is_free(pair: Scheduler) -> None:
    pictures, texts = [Replica("a"), Replica("b")], [Replica("a"), Replica("b")]
    bulk = pair.add(pictures, "pictures", Lane.BULK)
    interactive = pair.add(texts, "texts", Lane.INTERACTIVE)
    held = await hold_both(pair, bulk, pictures)
    waiting = [pair.submit(bulk, item) for item in range(40)]
    await until(lambda: all(len(replica.collated) == 2 for replica in pictures))
    text = pair.submit(interactive, "text")
    pictures[1].gate.set()
    assert await text == ("b", "text")
    assert not pictures[0].batches, "the other is busy all the time"
    pictures[0].gate.set()
    await asyncio.gather(*held, *waiting)


async def test_flows_take_turns_on_the_replica_that_is_free(pair: Scheduler) -> None:
    replicas = [Replica("a", buckets=(1,)), Replica("b", buckets=(1,))]
    queue = pair.add(replicas, "echo", Lane.BULK)
    held = await hold_both(pair, queue, replicas)
    futures = [pair.submit(queue, flow, flow=flow) for flow in ["many"] * 40 + ["few"] * 3]
    await until(lambda: len(replicas[1].collated) == 2)  # from now on nothing is cut for it
    replicas[0].gate.set()
    await until(lambda: len(replicas[0].batches) > 6)
    order = [batch[0] for batch in replicas[0].batches][1:]
    assert order[:6].count("few") >= 2
    replicas[1].gate.set()
    await asyncio.gather(*held, *futures)


async def test_a_failing_replica_fails_only_its_batch(pair: Scheduler, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    replicas = [Replica("a"), Replica("b")]
    queue = pair.add(replicas, "echo", Lane.BULK)
    held = await hold_both(pair, queue, replicas)
    replicas[1].guilty = lambda item: True
    for replica in replicas:
        replica.gate.set()
    results = await asyncio.gather(*held, return_exceptions=True)
    failed = [result for result in results if isinstance(result, RuntimeError)]
    assert len(failed) == 1
    assert [result[0] for result in results if isinstance(result, tuple)] == ["a"]
    assert pair.alive
    replicas[1].guilty = lambda item: False
    assert (await pair.submit(queue, 7))[1] == 7


async def test_no_wake_up_is_lost_between_three_replicas() -> None:
    scheduler = Scheduler("three", 3)
    scheduler.start()
    replicas = [Replica(name, buckets=(1, 2)) for name in "abc"]
    texts = [Replica(name, buckets=(1,)) for name in "abc"]
    queues = [scheduler.add(replicas, "echo", Lane.BULK), scheduler.add(texts, "texts", Lane.INTERACTIVE)]

    async def caller(number: int) -> None:
        for turn in range(150):
            queue = queues[(number + turn) % 3 == 0]
            assert (await scheduler.submit(queue, (number, turn), flow=number))[1] == (number, turn)

    async with asyncio.timeout(60):
        for callers in (1, 3, 24):
            await asyncio.gather(*(caller(number) for number in range(callers)))
    assert all(replica.batches for replica in replicas)
    assert await scheduler.close()


async def test_a_thread_of_one_replica_that_dies_holds_up_nobody(pair: Scheduler) -> None:
    class DeadlyReplica(Replica):
        def run(self, batch: list[Any]) -> list[Any]:
            super().run(batch)
            raise SystemExit("out of this thread")

    replicas = [DeadlyReplica("a"), Replica("b")]
    queue = pair.add(replicas, "deadly", Lane.BULK)
    held = await hold_both(pair, queue, replicas)
    replicas[1].gate.set()
    assert await held[1] == ("b", "held 1")
    replicas[0].gate.set()
    with pytest.raises(Closed, match="died twice"):
        await held[0]
    assert pair.restarted() == [0]
    assert not pair.alive


class Doubts:
    """Remembers which replicas were doubted; `told` is what a queue wants to call."""

    def __init__(self, queue: Queue) -> None:
        self.of: list[int] = []
        queue.doubt = self.of.append


def broken(item: Any) -> bool:
    return True


def sound(item: Any) -> bool:
    return False


async def test_where_nothing_comes_out_the_items_wait_until_the_model_has_proved_itself(scheduler: Scheduler) -> None:
    model = Echo()
    model.guilty = broken
    queue = scheduler.add([model], "echo", Lane.BULK)
    doubts = Doubts(queue)
    waiting = [scheduler.submit(queue, item) for item in range(12)]
    await until(lambda: bool(doubts.of))
    assert doubts.of == [0]
    assert queue.items == 12
    with pytest.raises(RuntimeError):
        await scheduler.prove(queue, 0, "proof")
    model.guilty = sound
    assert await scheduler.prove(queue, 0, "proof") == "proof"
    assert not any(future.done() for future in waiting)
    scheduler.trust(queue, 0)
    async with asyncio.timeout(20):
        assert await asyncio.gather(*waiting) == list(range(12))
    assert doubts.of == [0]


async def test_an_item_that_fails_again_after_the_proof_is_guilty(scheduler: Scheduler) -> None:
    model = Echo()
    model.guilty = lambda item: item == "guilty"
    queue = scheduler.add([model], "echo", Lane.BULK)
    doubts = Doubts(queue)
    guilty = scheduler.submit(queue, "guilty")
    await until(lambda: bool(doubts.of))
    assert await scheduler.prove(queue, 0, "proof") == "proof"
    scheduler.trust(queue, 0)
    with pytest.raises(RuntimeError):
        await guilty
    assert await scheduler.submit(queue, 1) == 1


async def test_what_is_known_to_be_broken_fails_at_once_where_nothing_takes_its_place(scheduler: Scheduler) -> None:
    model = Echo()
    model.guilty = broken
    queue = scheduler.add([model], "echo", Lane.BULK)
    doubts = Doubts(queue)
    first = scheduler.submit(queue, 1)
    await until(lambda: bool(doubts.of))
    scheduler.distrust(queue, 0)
    for future in (first, scheduler.submit(queue, 2)):
        with pytest.raises(RuntimeError):
            await future
    assert doubts.of == [0]


async def test_a_model_that_takes_the_place_of_a_doubted_one_computes_what_waits(scheduler: Scheduler) -> None:
    model = Replica("old")
    model.guilty = broken
    queue = scheduler.add([model], "echo", Lane.BULK)
    doubts = Doubts(queue)
    waiting = [scheduler.submit(queue, item) for item in range(40)]
    await until(lambda: bool(doubts.of))
    await scheduler.replace(queue, [Replica("new")])
    async with asyncio.timeout(20):
        assert await asyncio.gather(*waiting) == [("new", item) for item in range(40)]
    assert queue.items == 0


async def test_a_replica_that_fails_takes_no_work_while_another_one_is_there(pair: Scheduler) -> None:
    replicas = [Replica("a"), Replica("b")]
    replicas[1].guilty = broken
    queue = pair.add(replicas, "echo", Lane.BULK)
    doubts = Doubts(queue)
    held = await hold_both(pair, queue, replicas)
    waiting = [pair.submit(queue, item, flow=item % 3) for item in range(60)]
    replicas[1].gate.set()
    await until(lambda: doubts.of == [1])
    pair.distrust(queue, 1)
    replicas[0].gate.set()
    async with asyncio.timeout(20):
        assert {name for name, _ in await asyncio.gather(*held, *waiting)} == {"a"}
    replicas[1].guilty = sound
    assert await pair.prove(queue, 1, "proof") == ("b", "proof")
    pair.trust(queue, 1)
    held = await hold_both(pair, queue, replicas)
    for replica in replicas:
        replica.gate.set()
    assert {name for name, _ in await asyncio.gather(*held)} == {"a", "b"}


async def test_who_hangs_up_on_a_doubted_model_is_forgotten(scheduler: Scheduler) -> None:
    model = Echo()
    model.guilty = broken
    queue = scheduler.add([model], "echo", Lane.BULK)
    doubts = Doubts(queue)
    waiting = [scheduler.submit(queue, item) for item in range(4)]
    await until(lambda: bool(doubts.of))
    waiting.pop().cancel()
    await until(lambda: queue.items == 3)
    scheduler.remove(queue)
    for result in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(result, Closed)
    with pytest.raises(Closed, match="unloaded"):
        scheduler.prove(queue, 0, "late")


async def test_replicas_must_fit_the_devices(pair: Scheduler) -> None:
    with pytest.raises(ValueError, match="3 replicas do not fit pair"):
        pair.add([Echo(), Echo(), Echo()], "echo", Lane.BULK)


async def test_a_replaced_model_ends_its_batches_and_the_new_one_cuts_the_next(scheduler: Scheduler) -> None:
    old, new = [Replica("old")], Replica("new", buckets=(1, 2, 4))
    queue = scheduler.add(old, "echo", Lane.BULK)
    held = await hold(scheduler, old[0], queue)
    futures = [scheduler.submit(queue, item) for item in range(20)]
    await until(lambda: len(old[0].collated) == 2)
    replacing = asyncio.create_task(scheduler.replace(queue, [new]))
    await asyncio.sleep(0)
    assert not replacing.done()
    old[0].gate.set()
    assert await held == ("old", "held")
    assert await asyncio.gather(*futures) == [("old" if item < 8 else "new", item) for item in range(20)]
    assert max(len(batch) for batch in new.batches) == 4
    async with asyncio.timeout(20):
        await replacing
    trace = weakref.ref(old.pop())
    gc.collect()
    assert trace() is None


async def test_models_are_replaced_under_load_and_no_answer_is_wrong_or_lost(pair: Scheduler) -> None:
    pairs = [[Replica(name) for _ in range(2)] for name in ("old", "new")]
    for replica in pairs[1]:
        replica.buckets = (1, 2, 4, 8, 16)
    queue = pair.add(pairs[0], "echo", Lane.BULK, Limits(items=10_000))
    served: list[str] = []

    async def caller(number: int) -> None:
        for turn in range(60):
            name, item = await pair.submit(queue, (number, turn), flow=number % 5)
            assert item == (number, turn)
            served.append(name)

    async with asyncio.timeout(60):
        callers = asyncio.gather(*(caller(number) for number in range(50)))
        swaps = 0
        while not callers.done():
            await pair.replace(queue, pairs[(swaps + 1) % 2])
            swaps += 1
            await until(functools.partial(lambda count: callers.done() or len(served) > count, len(served)))
        await callers
    assert len(served) == 3000
    assert set(served) == {"old", "new"}
    assert swaps > 10


async def test_a_queue_runs_dry_before_it_goes(scheduler: Scheduler) -> None:
    model = Echo()
    queue = scheduler.add([model], "echo", Lane.BULK)
    held = await hold(scheduler, model, queue)
    futures = [scheduler.submit(queue, item) for item in range(20)]
    drying = asyncio.create_task(scheduler.run_dry(queue))
    futures.pop().cancel()
    model.gate.set()
    async with asyncio.timeout(20):
        assert await asyncio.gather(held, *futures) == ["held", *range(19)]
        await drying
    with pytest.raises(Closed, match="unloaded"):
        scheduler.submit(queue, "late")


async def test_nobody_waits_for_a_replaced_model_after_the_end(scheduler: Scheduler) -> None:
    model = Echo()
    queue = scheduler.add([model], "echo", Lane.BULK)
    held = await hold(scheduler, model, queue)
    replacing = asyncio.create_task(scheduler.replace(queue, [Echo()]))
    await asyncio.sleep(0)
    assert not await scheduler.close(grace=0.01)
    async with asyncio.timeout(20):
        await replacing
    model.gate.set()
    assert await held == "held"
