"""One batch: its results in order, its failure by halves, those who hung up."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import pytest

from server.batch import Batch, WrongCount, deliver, fail
from server.observer import Observer
from server.queue import Lane, Limits, Queue, Waiter
from server.stopwatch import Stopwatch


class Model:
    """Doubles numbers; fails on any batch with an odd one, and counts its runs."""

    buckets: tuple[int, ...] = (1, 2, 4, 8)

    def __init__(self) -> None:
        self.runs: list[list[int]] = []

    def collate(self, items: Sequence[Any]) -> list[Any]:
        return list(items)

    def run(self, batch: list[int]) -> list[int]:
        self.runs.append(batch)
        if any(number % 2 for number in batch):
            raise ValueError("odd")
        return [2 * number for number in batch]


def batch(items: list[int], model: Model) -> Batch:
    loop = asyncio.get_running_loop()
    waiters = [Waiter(item, loop.create_future(), 1) for item in items]
    return Batch(Queue([model], "model", Lane.BULK, Limits(), Observer()), model, waiters, items)


async def test_what_was_collated_ahead_is_run_as_it_is() -> None:
    model = Model()
    one = batch([2, 4], model)
    one.collate()
    one.collated = [6, 8]
    assert one.compute() == [(12, None), (16, None)]


async def test_halves_find_the_guilty_item() -> None:
    model = Model()
    outcomes = batch([2, 4, 5, 6], model).compute()
    assert [result for result, _ in outcomes] == [4, 8, None, 12]
    assert [type(error) for _, error in outcomes] == [type(None), type(None), ValueError, type(None)]
    assert model.runs == [[2, 4, 5, 6], [2, 4], [5, 6], [5], [5], [6]]


async def test_the_log_tells_of_a_batch_and_leaves_the_error_of_an_item_to_its_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    one = batch([2, 5], Model())
    for waiter in one.waiters:
        waiter.rider = Stopwatch().ride()
    deliver(one.waiters, one.compute(), 0.0, 1.0)
    assert [record.getMessage() for record in caplog.records] == ["a batch of 2 failed, its halves are tried: odd"]
    assert isinstance(one.waiters[1].future.exception(), ValueError)


async def test_an_error_that_no_request_tells_of_is_told_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    one = batch([5, 7], Model())
    left, proof = one.waiters
    left.rider = Stopwatch().ride()
    left.future.cancel()
    outcomes = one.compute()
    caplog.clear()
    deliver(one.waiters, outcomes, 0.0, 1.0)
    assert isinstance(proof.future.exception(), ValueError)
    assert [record.getMessage() for record in caplog.records] == 2 * [
        "a model failed on an input for which no request waits: odd"
    ]
    assert all(record.exc_info for record in caplog.records)


async def test_who_rides_is_told_when_the_batch_began() -> None:
    class Noted:
        def __init__(self) -> None:
            self.times: list[float] = []

        def began(self, at: float) -> None:
            self.times.append(at)

        def rode(self, queued: float, began: float, ended: float) -> None:
            self.times += [queued, began, ended]

    one = batch([2], Model())
    rider = one.waiters[0].rider = Noted()
    before = time.perf_counter()
    outcomes = one.compute()
    assert before <= rider.times[0] <= time.perf_counter()
    deliver(one.waiters, outcomes, 5.0, 6.0)
    assert rider.times[1:] == [one.waiters[0].queued, 5.0, 6.0]


async def test_a_wrong_number_of_results_is_an_error_of_all_of_them() -> None:
    class Lossy(Model):
        def run(self, batch: list[int]) -> list[int]:
            return batch[1:]

    assert [type(error) for _, error in batch([1, 2], Lossy()).compute()] == [WrongCount, WrongCount]


async def test_outcomes_reach_those_who_still_wait() -> None:
    one = batch([1, 2, 3], Model())
    first, second, third = (waiter.future for waiter in one.waiters)
    second.cancel()
    deliver(one.waiters, [("a", None), ("b", None), (None, ValueError("no"))], 0.0, 1.0)
    assert (first.result(), second.cancelled()) == ("a", True)
    with pytest.raises(ValueError, match="no"):
        third.result()
    fail(one.waiters, RuntimeError("too late"))
    assert first.result() == "a"
