"""What waits for one model, and which of it rides in the next batch.

Knows neither threads nor the event loop: the scheduler of batcher.py calls everything here with its lock held.
"""

import asyncio
import enum
from collections import OrderedDict, deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

FILL = 0.75  # a batch that fills this share of its bucket is padded rather than cut down to the bucket below


class BatchModel(Protocol):
    """What a queue needs of a model."""

    @property
    def buckets(self) -> tuple[int, ...]:
        """Ascending batch sizes; the first is 1, the last is the largest batch that is ever cut."""

    def collate(self, items: Sequence[Any]) -> Any:
        """Put items together into a batch."""

    def run(self, batch: Any) -> Sequence[Any]:
        """Return one result per item, in their order."""


class Lane(enum.Enum):
    """Who goes first when the device is free."""

    INTERACTIVE = "interactive"
    BULK = "bulk"


class Full(Exception):
    """The queue is at its limit of items or weight; `retry_after` is in seconds."""

    def __init__(self, name: str, retry_after: float) -> None:
        super().__init__(f"the queue of {name} is full: try again in {retry_after:.0f} s")
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may wait in one queue, and how heavy a batch of several items may be."""

    items: int = 4096
    weight: int = 1 << 62
    batch_weight: int = 1 << 62


@dataclass(slots=True, eq=False)
class Waiter:
    """One item and the future that its caller awaits."""

    item: Any
    future: "asyncio.Future[Any]"
    weight: int


def cut_size(waiting: int, buckets: Sequence[int]) -> int:
    """Return how many of `waiting` (at least 1) items to cut: all that fill a bucket well, else the bucket below."""
    if waiting >= buckets[-1]:
        return buckets[-1]
    above = next(bucket for bucket in buckets if bucket >= waiting)
    if waiting >= FILL * above:
        return waiting
    return max(bucket for bucket in buckets if bucket <= waiting)


class Queue:
    """The items that wait for one model, in turn between flows; made by `Scheduler.add`."""

    def __init__(self, model: BatchModel, name: str, lane: Lane, limits: Limits) -> None:
        self.model = model
        self.name = name
        self.lane = lane
        self.items = 0  # waiting; those that nobody awaits any longer count until they are met
        self.weight = 0
        self._limits = limits
        self._flows: OrderedDict[Hashable, deque[Waiter]] = OrderedDict()
        self._seconds_per_item = 0.0  # moving average over batches

    def push(self, waiter: Waiter, flow: Hashable) -> None:
        """Add one item to its flow."""
        self._flows.setdefault(flow, deque()).append(waiter)
        self.items += 1
        self.weight += waiter.weight

    def check_room(self, weight: int) -> None:
        """Raise Full if an item of `weight` is more than may wait."""
        if not self._has_room(weight):
            self._sweep()
        if not self._has_room(weight):
            raise Full(self.name, max(1.0, self.items * self._seconds_per_item))

    def is_full_batch(self) -> bool:
        """Whether what waits fills the largest batch, so that waiting longer gains nothing."""
        return self.items >= self.model.buckets[-1] or self.weight >= self._limits.batch_weight

    def cut(self) -> list[Waiter]:
        """Take the items of the next batch, one of each flow in turn; empty if nobody awaits anything here."""
        batch: list[Waiter] = []
        weight = 0
        size = cut_size(self.items, self.model.buckets) if self.items else 0
        while self.items and len(batch) < size:
            head = next(iter(self._flows.values()))[0]
            if batch and weight + head.weight > self._limits.batch_weight:
                break
            waiter = self._pop()
            if not waiter.future.done():
                batch.append(waiter)
                weight += waiter.weight
        return batch

    def drain(self) -> list[Waiter]:
        """Take everything."""
        return [self._pop() for _ in range(self.items)]

    def note_batch(self, seconds: float, items: int) -> None:
        """Remember how long a batch took, for the estimate in Full."""
        per_item = seconds / items
        self._seconds_per_item = 0.8 * self._seconds_per_item + 0.2 * per_item if self._seconds_per_item else per_item

    def _has_room(self, weight: int) -> bool:
        # One item alone is always let in, however heavy: it would never be served otherwise.
        return self.items == 0 or (self.items < self._limits.items and self.weight + weight <= self._limits.weight)

    def _pop(self) -> Waiter:
        flow, waiters = next(iter(self._flows.items()))
        waiter = waiters.popleft()
        if waiters:
            self._flows.move_to_end(flow)
        else:
            del self._flows[flow]
        self.items -= 1
        self.weight -= waiter.weight
        return waiter

    def _sweep(self) -> None:
        """Drop what nobody awaits any longer."""
        for flow, waiters in list(self._flows.items()):
            alive = deque(waiter for waiter in waiters if not waiter.future.done())
            self.items -= len(waiters) - len(alive)
            self.weight -= sum(waiter.weight for waiter in waiters) - sum(waiter.weight for waiter in alive)
            if alive:
                self._flows[flow] = alive
            else:
                del self._flows[flow]
