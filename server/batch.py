"""One batch on its way: which replica computes it, who waits for it, and how a failure finds the guilty item.

Knows neither threads nor in what order batches are cut: the scheduler of batcher.py does.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from server.queue import BatchModel, Queue, Waiter

log = logging.getLogger(__name__)

Outcome = tuple[Any, Exception | None]  # a result, or None and the error


class WrongCount(Exception):
    """A model returned another number of results than it was given items."""


@dataclass(slots=True, eq=False)
class Batch:
    """Items of one queue that ride together. `model` stays the one that cut them, whatever becomes of the queue."""

    queue: Queue
    model: BatchModel
    waiters: list[Waiter]
    items: list[Any]  # of the waiters when they were cut: who hangs up later does not empty a batch
    collated: Any = None  # None: not yet
    alone: bool = False  # its one item rides by itself, since a thread died under the batch that it was in

    def collate(self) -> None:
        """Put the items together, ahead of `compute`; raises what the model raises."""
        self.collated = self.model.collate(self.items)

    def compute(self) -> list[Outcome]:
        """Run the batch, on failure its halves, a single item twice; return a result or an error for each item."""
        began = time.perf_counter()
        for waiter in self.waiters:
            if waiter.rider is not None:
                waiter.rider.began(began)
        return _compute(self.model, self.items, self.collated)

    def give_up(self) -> list[Waiter]:
        """Return who waits for a batch that nobody computes any longer."""
        self.queue.observer.dropped(len(self.waiters), "closed")
        return self.waiters

    def apart(self) -> "list[Batch]":
        """Return its items as batches of their own, without those that nobody awaits any longer."""
        pairs = [(one, item) for one, item in zip(self.waiters, self.items, strict=True) if not one.future.done()]
        return [Batch(self.queue, self.model, [one], [item], alone=True) for one, item in pairs]


def _compute(model: BatchModel, items: Sequence[Any], collated: Any = None, again: bool = True) -> list[Outcome]:
    try:
        results = model.run(model.collate(items) if collated is None else collated)
        if len(results) != len(items):
            raise WrongCount(f"{len(results)} results for {len(items)} items")
    except Exception as error:  # noqa: BLE001 - a model may raise anything: whoever waits for the guilty item is told
        failure = str(error)
        if len(items) == 1 and not again:
            # Python forbids to raise StopIteration through a future.
            told = RuntimeError("the model raised StopIteration") if isinstance(error, StopIteration) else error
            return [(None, told)]
    else:
        return [(result, None) for result in results]
    if len(items) == 1:
        outcomes = _compute(model, items, again=False)  # a hiccup of the device is no fault of the item
        if outcomes[0][1] is None:
            log.warning("an input was computed at the second try only: %s", failure)
        return outcomes
    log.warning("a batch of %d failed, its halves are tried: %s", len(items), failure)
    half = len(items) // 2
    return _compute(model, items[:half]) + _compute(model, items[half:])


def deliver(waiters: Sequence[Waiter], outcomes: Sequence[Outcome], began: float, ended: float) -> None:
    """Give each waiter its result or its error, and the times of its batch. Runs on the event loop."""
    for waiter, (result, error) in zip(waiters, outcomes, strict=True):
        if error is not None and (waiter.rider is None or waiter.future.done()):
            # A request tells of it in its own line; of a proof, and for who has left, nobody else does.
            log.warning("a model failed on an input for which no request waits: %s", error, exc_info=error)
        if waiter.future.done():  # cancelled while the batch ran
            continue
        if waiter.rider is not None:
            waiter.rider.rode(waiter.queued, began, ended)
        if error is None:
            waiter.future.set_result(result)
        else:
            waiter.future.set_exception(error)


def fail(waiters: Sequence[Waiter], error: Exception) -> None:
    """Give `error` to all. Runs on the event loop."""
    for waiter in waiters:
        if not waiter.future.done():
            waiter.future.set_exception(error)
