"""Measuring in turn: A B A B, so that what else happens on a machine meets both alike. Knows clocks, nothing else."""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from scripts.bench.show import tell

T = TypeVar("T")


class Ended(Exception):
    """What is measured ended, or never began; the sentence says what happened."""


def in_turn(title: str, sides: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Return what each side returned in each of `rounds`, the sides one after the other in every round."""
    found: dict[str, list[T]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, measure in sides.items():
            tell(f"{title}: {name}, round {number + 1} of {rounds}")
            found[name].append(measure())
    return found


def pace(work: Callable[[], object], seconds: float) -> float:
    """Return the median of the seconds that one call of `work` takes, called for at least `seconds`, and once."""
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while not taken or time.perf_counter() < end:
        taken.append(timed(work))
    return statistics.median(taken)


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def processor_time(work: Callable[[], object], seconds: float) -> float:
    """Return the processor seconds of all threads of this process that one call of `work` takes, on average.

    `work` is called for at least `seconds`, and once.
    """
    calls = 0
    started, clock = time.process_time(), time.perf_counter()
    while not calls or time.perf_counter() - clock < seconds:
        work()
        calls += 1
    return (time.process_time() - started) / calls


def rate(work: Callable[[], object], seconds: float, threads: int = 1) -> float:
    """Return how often per second `work` was done by so many threads that each did it again and again."""
    end = time.perf_counter() + seconds

    def worker() -> int:
        done = 0
        while not done or time.perf_counter() < end:
            work()
            done += 1
        return done

    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        done = sum(one.result() for one in [pool.submit(worker) for _ in range(threads)])
    return done / (time.perf_counter() - started)


async def closed_loop(answer: Callable[[int], Awaitable[object]], callers: int, seconds: float) -> float:
    """Return the answers per second that so many callers get who each ask again when they are answered.

    `answer` takes the number of the caller.
    """
    answered = 0
    started = time.perf_counter()

    async def caller(number: int) -> None:
        nonlocal answered
        while time.perf_counter() - started < seconds:
            await answer(number)
            answered += 1

    await asyncio.gather(*(caller(number) for number in range(callers)))
    return answered / (time.perf_counter() - started)
