"""The bench of the queue measures what it says, in rounds far too short for figures."""

import asyncio

import pytest

from scripts.bench import queue
from scripts.bench.ceiling import Ceiling
from scripts.bench.options import Options


async def test_lone_items_all_come_back() -> None:
    seconds = await queue.lone_items(200)
    assert len(seconds) == 200
    assert all(0 < each < 1 for each in seconds)


async def test_many_may_wait_and_share_the_time() -> None:
    assert 0 < await queue.many_waiting(500) < 0.01


def test_callers_get_a_part_of_what_the_model_does_alone() -> None:
    model = queue.Timed(0.002, 0.001)
    alone = queue.own_rate(model, object, 0.1)
    assert 100 < alone < 950  # 32 items in 34 ms at the best
    assert 100 < asyncio.run(queue.closed_loop(model, object, 0.1)) < 1000  # 64 in 66 ms


def test_every_figure_has_a_row(options: Options, most: Ceiling, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "LONE_ITEMS", 100)
    monkeypatch.setattr(queue, "WAITING", 200)
    rows = queue.measure(options, most)
    assert [one.unit for one in rows] == ["µs", "µs", "µs", "items/s", "items/s"]
    assert rows[0].ours <= rows[1].ours
    assert [one.goal for one in rows[2:]] == ["ours <= 50", "", ""]
    assert all(one.ratio is not None for one in rows[3:])
