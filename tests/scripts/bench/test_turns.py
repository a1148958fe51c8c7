"""Sides take turns, and clocks count what they say."""

import asyncio
import threading
import time

from scripts.bench.turns import closed_loop, in_turn, pace, processor_time


def test_sides_are_measured_in_turn() -> None:
    order: list[str] = []

    def side(name: str) -> int:
        order.append(name)
        return len(order)

    found = in_turn("title", {"a": lambda: side("a"), "b": lambda: side("b")}, 2)
    assert order == ["a", "b", "a", "b"]
    assert found == {"a": [1, 3], "b": [2, 4]}


def test_work_is_done_once_however_short_the_time() -> None:
    calls: list[int] = []
    assert pace(lambda: calls.append(1), 0) >= 0
    assert len(calls) == 1


def test_processor_time_counts_all_threads() -> None:
    def spin() -> None:
        end = time.thread_time() + 0.05
        while time.thread_time() < end:
            pass

    def two() -> None:
        threads = [threading.Thread(target=spin) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert processor_time(two, 0) >= 0.1


async def test_callers_who_ask_again_when_they_are_answered_ask_once_at_least() -> None:
    asked: list[int] = []

    async def answer(number: int) -> None:
        asked.append(number)
        await asyncio.sleep(0)

    rate = await closed_loop(answer, 3, 0.01)
    assert set(asked) == {0, 1, 2}
    assert 0 < rate <= len(asked) / 0.01
