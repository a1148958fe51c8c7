"""What rides in the next batch: sizes, turns between flows, limits. A loop is only needed to make futures."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from server.observer import Cut, Dropped, Observer, Refused
from server.queue import Full, Lane, Limits, Queue, Waiter, cut_size


class Model:
    buckets: tuple[int, ...] = (1, 2, 4, 8)

    def collate(self, items: Sequence[Any]) -> Any:
        return list(items)

    def run(self, batch: Any) -> Sequence[Any]:
        return list(batch)


@pytest.fixture
async def loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


class Listener(Observer):
    def __init__(self) -> None:
        self.heard: list[tuple[object, ...]] = []

    def refused(self, reason: Refused) -> None:
        self.heard.append(("refused", reason))

    def dropped(self, items: int, reason: Dropped) -> None:
        self.heard.append(("dropped", items, reason))

    def cut(self, items: int, reason: Cut) -> None:
        self.heard.append(("cut", items, reason))

    def ran(self, seconds: float, errors: Sequence[Exception]) -> None:
        self.heard.append(("ran", seconds, [str(error) for error in errors]))


def queue(
    limits: Limits | None = None, buckets: tuple[int, ...] = Model.buckets, observer: Observer | None = None
) -> Queue:
    model = Model()
    model.buckets = buckets
    return Queue([model], "model", Lane.BULK, limits or Limits(), observer or Observer())


def push(q: Queue, loop: asyncio.AbstractEventLoop, item: Any, flow: str = "a", weight: int = 1) -> Waiter:
    waiter = Waiter(item, loop.create_future(), weight, flow=flow)
    q.push(waiter)
    return waiter


@pytest.mark.parametrize(
    ("waiting", "size"),
    [(1, 1), (2, 2), (3, 3), (4, 4), (5, 4), (6, 6), (7, 7), (8, 8), (9, 8), (1000, 8)],
)
def test_a_cut_fills_its_bucket_to_three_quarters_or_takes_the_bucket_below(waiting: int, size: int) -> None:
    assert cut_size(waiting, (1, 2, 4, 8)) == size


@pytest.mark.parametrize("waiting", range(1, 40))
def test_every_size_is_cut_as_it_is_when_every_size_is_a_bucket(waiting: int) -> None:
    assert cut_size(waiting, tuple(range(1, 33))) == min(waiting, 32)


async def test_items_of_one_flow_keep_their_order(loop: asyncio.AbstractEventLoop) -> None:
    q = queue()
    for item in range(10):
        push(q, loop, item)
    assert [waiter.item for waiter in q.cut(0)] == list(range(8))
    assert [waiter.item for waiter in q.cut(0)] == [8, 9]
    assert q.cut(0) == []


async def test_flows_take_turns_so_a_thousand_items_do_not_starve_ten(loop: asyncio.AbstractEventLoop) -> None:
    q = queue()
    for item in range(1000):
        push(q, loop, ("many", item), flow="many")
    for item in range(10):
        push(q, loop, ("few", item), flow="few")
    first_20 = [waiter.item for _ in range(3) for waiter in q.cut(0)][:20]
    assert [item for item in first_20 if item[0] == "few"] == [("few", i) for i in range(10)]
    assert [item for item in first_20 if item[0] == "many"] == [("many", i) for i in range(10)]


async def test_what_nobody_awaits_is_dropped_with_its_item(loop: asyncio.AbstractEventLoop) -> None:
    q = queue()
    waiters = [push(q, loop, item, flow=str(item % 3), weight=10) for item in range(8)]
    for waiter in waiters[::2]:
        q.drop(waiter)
        q.drop(waiter)
    assert (q.items, q.weight) == (4, 40)
    assert [waiter.item for waiter in waiters] == [None, 1, None, 3, None, 5, None, 7]
    assert sorted(waiter.item for waiter in q.cut(0)) == [1, 3, 5, 7]
    assert (q.items, q.weight) == (0, 0)


async def test_a_queue_of_dropped_items_only_is_empty(loop: asyncio.AbstractEventLoop) -> None:
    q = queue()
    for waiter in [push(q, loop, item) for item in range(20)]:
        q.drop(waiter)
    assert q.cut(0) == []
    assert (q.items, q.weight) == (0, 0)
    late = push(q, loop, "late")
    assert q.cut(0) == [late]


async def test_an_item_in_a_batch_is_no_longer_the_queue_s_to_drop(loop: asyncio.AbstractEventLoop) -> None:
    q = queue()
    waiter = push(q, loop, "item")
    assert q.cut(0) == [waiter]
    q.drop(waiter)
    assert (waiter.item, q.items, q.weight) == ("item", 0, 0)


async def test_a_batch_is_bounded_by_weight_but_one_heavy_item_always_goes(loop: asyncio.AbstractEventLoop) -> None:
    q = queue(Limits(batch_weight=10))
    for item, weight in enumerate([25, 4, 4, 4, 1]):
        push(q, loop, item, weight=weight)
    assert [[waiter.item for waiter in q.cut(0)] for _ in range(3)] == [[0], [1, 2], [3, 4]]


async def test_a_batch_is_full_by_count_or_by_weight(loop: asyncio.AbstractEventLoop) -> None:
    by_count, by_weight = queue(), queue(Limits(batch_weight=10))
    for item in range(7):
        push(by_count, loop, item)
        assert not by_count.is_full_batch(0)
    push(by_count, loop, 7)
    assert by_count.is_full_batch(0)
    push(by_weight, loop, 0, weight=9)
    assert not by_weight.is_full_batch(0)
    push(by_weight, loop, 1)
    assert by_weight.is_full_batch(0)


async def test_room_ends_by_count_and_says_when_to_come_again(loop: asyncio.AbstractEventLoop) -> None:
    q = queue(Limits(items=4))
    for item in range(4):
        q.check_room(1, flow="a")
        push(q, loop, item)
    q.note_batch(seconds=20.0, items=2, errors=[])
    with pytest.raises(Full) as full:
        q.check_room(1, flow="a")
    assert full.value.retry_after == pytest.approx(40.0)
    assert "full" in str(full.value)


async def test_room_ends_by_weight_but_an_empty_queue_takes_anything(loop: asyncio.AbstractEventLoop) -> None:
    q = queue(Limits(weight=10))
    q.check_room(1000, flow="a")
    push(q, loop, 0, weight=8)
    q.check_room(2, flow="a")
    with pytest.raises(Full):
        q.check_room(3, flow="a")


async def test_dropped_items_make_room(loop: asyncio.AbstractEventLoop) -> None:
    q = queue(Limits(items=4, weight=4))
    waiters = [push(q, loop, item, flow=str(item % 2)) for item in range(4)]
    with pytest.raises(Full):
        q.check_room(1, flow="0")
    q.drop(waiters[1])
    q.drop(waiters[3])
    q.check_room(2, flow="0")
    assert [waiter.item for waiter in q.drain("closed")] == [0, 2]


async def test_what_could_not_be_answered_in_time_is_refused(loop: asyncio.AbstractEventLoop) -> None:
    q = queue(Limits(seconds=100))
    q.note_batch(seconds=30.0, items=1, errors=[])
    for item in range(3):
        q.check_room(1, flow="a")
        push(q, loop, item)
    q.check_room(1, flow="a")
    with pytest.raises(Full) as full:
        q.check_room(1, ahead=1, flow="a")
    assert full.value.retry_after == pytest.approx(120.0)


async def test_who_fills_the_queue_turns_away_nobody_else(loop: asyncio.AbstractEventLoop) -> None:
    q = queue(Limits(items=8))
    for item in range(8):
        q.check_room(1, flow="many")
        push(q, loop, item, flow="many")
    with pytest.raises(Full):
        q.check_room(1, flow="many")
    for item in range(4):
        q.check_room(1, flow="few")
        push(q, loop, item, flow="few")
    with pytest.raises(Full):  # four are the even share of two
        q.check_room(1, flow="few")
    q.check_room(1, ahead=2, flow="third")
    with pytest.raises(Full):  # three of each of three flows would go before it
        q.check_room(1, ahead=3, flow="third")


async def test_what_a_flow_waits_for_is_what_goes_before_it(loop: asyncio.AbstractEventLoop) -> None:
    q = queue(Limits(seconds=100))
    q.note_batch(seconds=10.0, items=1, errors=[])
    for item in range(50):
        push(q, loop, item, flow="many")
    for item in range(5):
        q.check_room(1, flow="few")
        push(q, loop, item, flow="few")
    q.check_room(1, flow="few")  # ten go before it, five of each: 100 s
    with pytest.raises(Full) as full:
        q.check_room(1, ahead=1, flow="few")
    assert full.value.retry_after == pytest.approx(120.0)
    with pytest.raises(Full) as full:
        q.check_room(1, flow="many")
    assert full.value.retry_after == pytest.approx(550.0)  # all of them: it has far more than its turn


async def test_the_estimate_follows_the_last_batches(loop: asyncio.AbstractEventLoop) -> None:
    q = queue(Limits(items=1))
    push(q, loop, 0)
    for _ in range(60):
        q.note_batch(seconds=8.0, items=2, errors=[])
    for _ in range(60):
        q.note_batch(seconds=100.0, items=2, errors=[])
    with pytest.raises(Full) as full:
        q.check_room(1, flow="a")
    assert full.value.retry_after == pytest.approx(50.0, rel=0.01)


@pytest.mark.parametrize(
    ("waiting", "cuts"),
    [
        (8, [(8, "full")]),
        (5, [(4, "bucket"), (1, "all")]),
        (3, [(3, "all")]),
        (17, [(8, "full"), (8, "full"), (1, "all")]),
    ],
)
async def test_the_reason_of_each_cut_is_told(
    loop: asyncio.AbstractEventLoop, waiting: int, cuts: list[tuple[int, str]]
) -> None:
    listener = Listener()
    q = queue(observer=listener)
    for item in range(waiting):
        push(q, loop, item)
    while q.items:
        q.cut(0)
    assert q.cut(0) == []
    assert listener.heard == [("cut", *cut) for cut in cuts]


async def test_a_batch_that_would_be_too_heavy_is_told_as_cut_by_weight(loop: asyncio.AbstractEventLoop) -> None:
    listener = Listener()
    q = queue(Limits(batch_weight=10), observer=listener)
    for item in range(2):
        push(q, loop, item, weight=7)
    assert len(q.cut(0)) == 1
    assert listener.heard == [("cut", 1, "weight")]


async def test_what_is_refused_and_dropped_is_told_with_the_reason(loop: asyncio.AbstractEventLoop) -> None:
    listener = Listener()
    q = queue(Limits(items=2, weight=10, seconds=5), observer=listener)
    first = push(q, loop, 0, weight=4)
    with pytest.raises(Full):
        q.check_room(weight=8, flow="a")
    push(q, loop, 1)
    with pytest.raises(Full):
        q.check_room(weight=1, flow="a")
    q.drop(first)
    q.drop(first)
    q.note_batch(seconds=20.0, items=1, errors=[])
    with pytest.raises(Full):
        q.check_room(weight=1, flow="a")
    q.drain("unloaded")
    q.drain("closed")
    assert listener.heard == [
        ("refused", "weight"),
        ("refused", "items"),
        ("dropped", 1, "given_up"),
        ("ran", 20.0, []),
        ("refused", "seconds"),
        ("dropped", 1, "unloaded"),
    ]


async def test_batches_that_fail_in_a_row_are_counted_until_one_item_comes_out() -> None:
    listener = Listener()
    q = queue(observer=listener)
    for _ in range(2):
        q.note_batch(1.0, 2, [ValueError("a"), ValueError("b")])
    assert (q.failures, q.successes, q.last_error) == (2, 0, "ValueError: b")
    q.note_batch(1.0, 2, [ValueError("a")])
    assert (q.failures, q.successes) == (0, 1)
    assert listener.heard[-1] == ("ran", 1.0, ["a"])
