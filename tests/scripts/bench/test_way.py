"""Callers of the way without HTTP ask again when they are answered, until the time is over."""

import asyncio

from scripts.bench.way import closed_loop


async def test_every_caller_asks_at_least_once() -> None:
    asked: list[int] = []

    async def answer(number: int) -> None:
        asked.append(number)
        await asyncio.sleep(0)

    rate = await closed_loop(answer, 3, 0.01)
    assert set(asked) == {0, 1, 2}
    assert 0 < rate <= len(asked) / 0.01
