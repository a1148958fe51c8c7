"""Who is inside at the end: those in time leave, the others are told."""

import asyncio

import pytest

from server.door import Door
from server.errors import ShuttingDown


async def test_empty_waits_for_all_who_are_inside() -> None:
    door = Door()
    leave = asyncio.Event()

    async def visit() -> str:
        async with door.enter():
            await leave.wait()
            return "answered"

    visits = [asyncio.create_task(visit()) for _ in range(3)]
    await asyncio.sleep(0)
    assert door.inside == 3
    door.close_in(30)
    waiting = asyncio.create_task(door.empty())
    await asyncio.sleep(0)
    assert not waiting.done()
    leave.set()
    assert await asyncio.gather(*visits) == ["answered"] * 3
    await waiting
    assert door.inside == 0


async def test_at_the_end_of_the_grace_time_the_rest_is_told() -> None:
    door = Door()

    async def visit() -> None:
        async with door.enter():
            await asyncio.Event().wait()

    visit_task = asyncio.create_task(visit())
    await asyncio.sleep(0)
    door.close_in(30)
    door.close_in(0)
    with pytest.raises(ShuttingDown, match="shutting down"):
        await visit_task
    await door.empty()
    with pytest.raises(ShuttingDown):
        await visit()


async def test_a_time_out_of_the_block_itself_stays_what_it_is() -> None:
    door = Door()
    with pytest.raises(TimeoutError):
        async with door.enter(), asyncio.timeout(0):
            await asyncio.Event().wait()
    assert not door.closing


async def test_empty_is_at_once_where_nobody_is() -> None:
    door = Door()
    await door.empty()
    async with door.enter():
        assert door.inside == 1
    await door.empty()
