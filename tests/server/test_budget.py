"""The shared amount: flows in turn, never more than the capacity, nothing lost by cancellation."""

import asyncio
import random

from server.budget import Budget


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_fits_goes_at_once_and_the_rest_waits_in_order() -> None:
    budget = Budget(10)
    order: list[int] = []
    release = asyncio.Event()

    async def user(number: int, amount: int) -> None:
        async with budget.hold(amount):
            order.append(number)
            await release.wait()

    tasks = [asyncio.create_task(user(i, amount)) for i, amount in enumerate([6, 4, 1, 5])]
    await settle()
    assert order == [0, 1]
    assert budget.used == 10
    release.set()
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2, 3]
    assert budget.used == 0


async def test_a_small_one_does_not_overtake_a_large_one() -> None:
    budget = Budget(10)
    order: list[str] = []

    async def user(name: str, amount: int) -> None:
        async with budget.hold(amount):
            order.append(name)

    async with budget.hold(6):
        tasks = [asyncio.create_task(user(name, amount)) for name, amount in (("large", 8), ("small", 1))]
        await settle()
        assert order == []
    await asyncio.gather(*tasks)
    assert order == ["large", "small"]


async def test_it_tells_how_many_of_a_flow_wait() -> None:
    budget = Budget(1)
    async with budget.hold(1):
        tasks = [asyncio.create_task(budget.acquire(1, flow)) for flow in ("many", "few", "many")]
        await settle()
        assert [budget.waiting_of(flow) for flow in ("many", "few", "none")] == [2, 1, 0]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_flows_take_turns_so_many_of_one_do_not_starve_few_of_another() -> None:
    budget = Budget(1)
    order: list[str] = []

    async def user(flow: str) -> None:
        async with budget.hold(1, flow):
            order.append(flow)

    async with budget.hold(1):
        tasks = [asyncio.create_task(user(flow)) for flow in ["many"] * 100 + ["few"] * 5]
        await settle()
        assert budget.waiting == 105
    await asyncio.gather(*tasks)
    assert order[:10].count("few") == 5
    assert budget.waiting == 0


async def test_more_than_the_capacity_goes_alone() -> None:
    budget = Budget(10)
    async with budget.hold(1000):
        late = asyncio.create_task(_hold_once(budget, 1))
        await settle()
        assert not late.done()
    await late
    assert budget.used == 0


async def _hold_once(budget: Budget, amount: int) -> None:
    async with budget.hold(amount):
        assert budget.used >= amount


async def test_who_gives_up_waiting_makes_way_for_the_next() -> None:
    budget = Budget(10)
    async with budget.hold(5):
        large = asyncio.create_task(_hold_once(budget, 8))
        small = asyncio.create_task(_hold_once(budget, 2))
        await settle()
        assert not small.done()
        large.cancel()
        await small
    assert budget.used == 0


async def test_random_cancellations_lose_nothing() -> None:
    rng = random.Random(3)
    budget = Budget(100)
    most = 0

    async def user() -> None:
        nonlocal most
        async with budget.hold(rng.randrange(1, 60)):
            most = max(most, budget.used)
            for _ in range(rng.randrange(5)):
                await asyncio.sleep(0)

    tasks = [asyncio.create_task(user()) for _ in range(2000)]
    for task in rng.sample(tasks, 600):
        await asyncio.sleep(0)
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(result is None or isinstance(result, asyncio.CancelledError) for result in results)
    assert sum(result is None for result in results) >= 1400
    assert budget.used == 0
    assert 40 < most <= 100
    await _hold_once(budget, 100)
