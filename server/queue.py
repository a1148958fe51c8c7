"""What waits for one model, and which of it rides in the next batch.

Knows neither threads nor the event loop: the scheduler of batcher.py calls everything here with its lock held.
"""

import asyncio
import enum
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from server.observer import Cut, Dropped, Observer, Refused, Rider

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
    """How much may wait in one queue, how long that may take, and how heavy a batch of several items may be."""

    items: int = 4096
    weight: int = 1 << 62
    seconds: float = 290.0  # clients give up after 300
    batch_weight: int = 1 << 62


@dataclass(slots=True, eq=False)
class Waiter:
    """One item and the future that its caller awaits; `waits` until it rides in a batch or nobody awaits it."""

    item: Any
    future: "asyncio.Future[Any]"
    weight: int
    rider: Rider | None = None
    flow: Hashable = None
    proves: bool = False  # a small input that only tells whether a model works
    failures: int = 0  # batches that it rode in and of which nothing came out
    waits: bool = True
    queued: float = field(default_factory=time.perf_counter)  # seconds


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

    def __init__(self, models: Sequence[BatchModel], name: str, lane: Lane, limits: Limits, observer: Observer) -> None:
        self.models = tuple(models)  # replicas, one for each device
        self.observer = observer
        self.name = name
        self.lane = lane
        self.items = 0  # that wait
        self.weight = 0
        self.removed = False
        self.successes = 0  # batches of which at least one item came out
        self.failures = 0  # batches in a row of which none did
        self.last_error = ""
        self.doubt: Callable[[int], None] | None = None  # told on the event loop of a replica that has to prove itself
        self.doubted: set[int] = set()  # replicas that have failed and not proved themselves yet
        self.broken: set[int] = set()  # replicas whose proof failed
        self._limits = limits
        self._flows: OrderedDict[Hashable, deque[Waiter]] = OrderedDict()
        self._seconds_per_item = 0.0  # moving average over batches

    def push(self, waiter: Waiter) -> None:
        """Add one item to its flow."""
        self._flows.setdefault(waiter.flow, deque()).append(waiter)
        self.items += 1
        self.weight += waiter.weight

    def put_back(self, waiters: Sequence[Waiter]) -> None:
        """Let items that were cut wait again, before all others, but for those that nobody awaits any longer."""
        for waiter in reversed(waiters):
            if not waiter.future.done():
                waiter.waits = True
                self._flows.setdefault(waiter.flow, deque()).appendleft(waiter)
                self._flows.move_to_end(waiter.flow, last=False)
                self.items += 1
                self.weight += waiter.weight

    def takes(self, replica: int) -> bool:
        """Whether a replica computes what waits here: not in doubt, and not broken while another one is not."""
        return replica not in self.doubted and (replica not in self.broken or len(self.broken) == len(self.models))

    def check_room(self, weight: int, ahead: int = 0, flow: Hashable = None) -> None:
        """Raise Full if an item of `weight` would find the queue full, `ahead` others of its flow being on their way.

        What counts is what is computed before it. Flows take turns, so that is no more than what its own flow has here,
        once for each flow: a thousand items of one turn none of another away.
        """
        own = len(self._flows.get(flow, ())) + ahead
        before = min(self.items + ahead, own * len(self._flows.keys() | {flow}))
        seconds = before * self._seconds_per_item / len(self.models)
        # One item alone is always let in, however heavy: it would never be served otherwise.
        if self.items + ahead and (reason := self._excess(before, self.weight + weight, seconds)) is not None:
            self.observer.refused(reason)
            raise Full(self.name, max(1.0, seconds))

    def _excess(self, items: int, weight: int, seconds: float) -> Refused | None:
        if items >= self._limits.items:
            return "items"
        if weight > self._limits.weight:
            return "weight"
        return "seconds" if seconds > self._limits.seconds else None

    def is_full_batch(self, replica: int) -> bool:
        """Whether what waits fills the replica's largest batch, so that waiting longer gains nothing."""
        return self.items >= self.models[replica].buckets[-1] or self.weight >= self._limits.batch_weight

    def cut(self, replica: int) -> list[Waiter]:
        """Take the items of the replica's next batch, one of each flow in turn; empty if nobody waits here."""
        if not self.items:
            return []
        batch: list[Waiter] = []
        weight = 0
        buckets = self.models[replica].buckets
        size = cut_size(self.items, buckets)
        reason: Cut = "full" if size == buckets[-1] else "bucket" if size < self.items else "all"
        while len(batch) < size:
            head = self._head()
            if batch and weight + head.weight > self._limits.batch_weight:
                reason = "weight"
                break
            batch.append(self._pop())
            weight += head.weight
        self.observer.cut(len(batch), reason)
        return batch

    def drain(self, reason: Dropped) -> list[Waiter]:
        """Take everything, since it is not going to be computed."""
        if self.items:
            self.observer.dropped(self.items, reason)
        return [self._pop() for _ in range(self.items)]

    def drop(self, waiter: Waiter) -> None:
        """Forget an item that nobody awaits any longer, if it still waits; its empty shell goes at a later cut."""
        if waiter.waits:
            self._leave(waiter)
            waiter.item = None
            self.observer.dropped(1, "given_up")

    def note_batch(self, seconds: float, items: int, errors: Sequence[Exception]) -> None:
        """Remember how long a batch took, for the estimate in Full, and whether the model still computes anything."""
        self.observer.ran(seconds, errors)
        if len(errors) < items:
            self.successes += 1
            self.failures = 0
        else:
            self.failures += 1
            self.last_error = f"{type(errors[-1]).__name__}: {errors[-1]}"
        per_item = seconds / items
        self._seconds_per_item = 0.8 * self._seconds_per_item + 0.2 * per_item if self._seconds_per_item else per_item

    def _head(self) -> Waiter:
        """Return the next item that waits, with nothing but it left before it; there must be one."""
        while True:
            flow, waiters = next(iter(self._flows.items()))
            while waiters and not waiters[0].waits:
                waiters.popleft()
            if waiters:
                return waiters[0]
            del self._flows[flow]

    def _pop(self) -> Waiter:
        waiter = self._head()
        flow, waiters = next(iter(self._flows.items()))
        waiters.popleft()
        if waiters:
            self._flows.move_to_end(flow)
        else:
            del self._flows[flow]
        self._leave(waiter)
        return waiter

    def _leave(self, waiter: Waiter) -> None:
        waiter.waits = False
        self.items -= 1
        self.weight -= waiter.weight
        if not self.items:
            self._flows.clear()
