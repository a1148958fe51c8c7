"""Many awaiting callers, one batched call: a queue per model, a scheduler per device.

Knows neither HTTP nor torch: a model is anything with `buckets`, `collate` and `run`. The whole policy stands here:

- No timer. The device thread cuts a batch the moment it is free, from what waits then. A lone item goes at once; a
  burst fills the batch while the one before runs.
- While a batch runs and a full one waits, a second thread collates that one ahead. Never more than one.
- Queues of the interactive lane go before those of the bulk lane, also before the batch collated ahead; after BURST
  interactive batches in a row a waiting bulk batch has its turn. Within a lane the queues take turns, and within a
  queue the flows do, item by item.
- What nobody waits for any longer is dropped. If a batch fails its halves are tried, so that only the guilty
  item fails.
- A queue is bounded by items and by weight. Beyond that `submit` raises Full, with an estimate of when to come again.

All state, the queues included, is guarded by one lock per scheduler. `submit` is called on the event loop; batches are
cut and run on the device thread; results come back to the loop with one wake-up per batch.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from server.queue import BatchModel, Lane, Limits, Queue, Waiter

log = logging.getLogger(__name__)

BURST = 8  # interactive batches in a row while bulk waits: bounds how long a flood of texts holds pictures up
DEFAULT_LIMITS = Limits()


class Closed(Exception):
    """The scheduler is closed or its thread died: nothing more is computed."""


class WrongCount(Exception):
    """A model returned another number of results than it was given items."""


@dataclass(slots=True, eq=False)
class _Batch:
    queue: Queue
    waiters: list[Waiter]
    items: list[Any]  # of the waiters when they were cut: who hangs up later does not empty a batch
    collated: Any = None  # None: not yet


class Scheduler:
    """Feeds one device: picks the next batch among its queues, runs it, brings the results back.

    `start` it on the event loop that submits; `await close()` it before the loop ends.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.failure: BaseException | None = None  # what a thread of ours died of
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)  # the device thread waits here
        self._spare = threading.Condition(self._lock)  # the collating thread waits here
        self._queues: dict[Lane, deque[Queue]] = {lane: deque() for lane in Lane}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._running = False
        self._collating = False
        self._ahead: _Batch | None = None
        self._burst = 0
        self._threads = [
            threading.Thread(target=self._guard, args=(turn,), name=f"{name}-{role}", daemon=True)
            for role, turn in (("device", self._device_turn), ("collate", self._collate_turn))
        ]

    # The event loop's side.

    def start(self) -> None:
        """Start the threads; results go to the running event loop."""
        self._loop = asyncio.get_running_loop()
        for thread in self._threads:
            thread.start()

    @property
    def alive(self) -> bool:
        """Whether both threads work."""
        return self.failure is None and all(thread.is_alive() for thread in self._threads)

    def add(self, model: BatchModel, name: str, lane: Lane, limits: Limits = DEFAULT_LIMITS) -> Queue:
        """Give `model` a queue on this device."""
        queue = Queue(model, name, lane, limits)
        with self._lock:
            self._queues[lane].append(queue)
        return queue

    def remove(self, queue: Queue) -> None:
        """Take a queue away; what still waits in it gets Closed."""
        with self._lock:
            self._queues[queue.lane].remove(queue)
            queue.removed = True
            left = queue.drain()
        _fail(left, Closed(f"{queue.name} was unloaded"))

    def submit(
        self, queue: Queue, item: Any, *, flow: Hashable = None, weight: int = 1, accepted: bool = False
    ) -> "asyncio.Future[Any]":
        """Queue `item` and return the future of its result. Call it on the event loop.

        `accepted` marks work of a request already let in (the crops of its faces): limits do not turn it away. Raises
        Full or Closed; the future raises what the model raised for this item, or Closed. Cancelling the future drops
        the item if it still waits.
        """
        if self._loop is None:
            raise Closed(f"the scheduler of {self.name} was not started")
        waiter = Waiter(item, self._loop.create_future(), weight)
        with self._lock:
            if self._closed:
                raise Closed(f"the scheduler of {self.name} is closed")
            if queue.removed:
                raise Closed(f"{queue.name} was unloaded")
            if not accepted:
                queue.check_room(weight)
            queue.push(waiter, flow)
            if not self._running:
                self._work.notify()
            elif self._ahead is None and queue.is_full_batch():
                self._spare.notify()
        waiter.future.add_done_callback(partial(self._forget, queue, waiter))
        return waiter.future

    def check_room(self, queue: Queue, ahead: int) -> None:
        """Raise Full if an item would find the queue full after `ahead` others that are on their way there already."""
        with self._lock:
            queue.check_room(0, ahead)

    def _forget(self, queue: Queue, waiter: Waiter, future: "asyncio.Future[Any]") -> None:
        if future.cancelled():
            with self._lock:
                queue.drop(waiter)

    async def close(self, grace: float = 5.0) -> bool:
        """Fail what waits with Closed and let the batch on the device end.

        Returns whether the threads ended within `grace` seconds: a batch on the device cannot be interrupted.
        """
        self._shut(Closed(f"the scheduler of {self.name} is closed"))
        deadline = time.monotonic() + grace
        for thread in self._threads:
            if thread.ident is not None:
                await asyncio.to_thread(thread.join, max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _shut(self, error: Exception) -> None:
        with self._lock:
            self._closed = True
            left = [waiter for lane in self._queues.values() for queue in lane for waiter in queue.drain()]
            if self._ahead is not None:
                left += self._ahead.waiters
                self._ahead = None
            self._work.notify()
            self._spare.notify()
        _fail(left, error)

    # The threads' side. A turn is a function of its own so that no thread holds on to a batch while it waits.

    def _guard(self, turn: Callable[[], bool]) -> None:
        try:
            while turn():
                pass
        except BaseException as error:
            self.failure = error
            log.critical("a thread of %s died: nothing more is computed there", self.name, exc_info=True)
            self._to_loop(self._shut, Closed(f"the scheduler of {self.name} died: see the log"))

    def _device_turn(self) -> bool:
        with self._lock:
            batch = self._wait(self._work, self._next)
            if batch is None:
                return False
            self._running = True
            self._spare.notify()
        started = time.perf_counter()
        try:
            outcomes = _compute(batch.queue.model, batch.items, batch.collated)
        except BaseException as error:
            self._die(batch, error)
            raise
        seconds = time.perf_counter() - started
        with self._lock:
            self._running = False
            batch.queue.note_batch(seconds, len(batch.waiters))
        waiters = batch.waiters
        del batch  # whoever gets the last answer may unload the model at once
        self._to_loop(_deliver, waiters, outcomes)
        return True

    def _wait(self, condition: threading.Condition, cut: "Callable[[], _Batch | None]") -> _Batch | None:
        while not self._closed:
            if (batch := cut()) is not None:
                return batch
            condition.wait()
        return None

    def _next(self) -> _Batch | None:
        bulk_waits = self._ahead is not None or any(queue.items for queue in self._queues[Lane.BULK])
        if not bulk_waits:
            self._burst = 0
        if self._burst < BURST and (batch := self._cut(Lane.INTERACTIVE)) is not None:
            self._burst += 1
            return batch
        if self._collating:  # what waits behind the batch that is about to be ready must not overtake it
            return None
        self._burst = 0
        ahead, self._ahead = self._ahead, None
        return ahead or self._cut(Lane.BULK) or self._cut(Lane.INTERACTIVE)

    def _cut(self, lane: Lane) -> _Batch | None:
        queues = self._queues[lane]
        for _ in range(len(queues)):
            queue = queues[0]
            queues.rotate(-1)
            if waiters := queue.cut():
                return _Batch(queue, waiters, [waiter.item for waiter in waiters])
        return None

    def _collate_turn(self) -> bool:
        with self._lock:
            batch = self._wait(self._spare, self._cut_ahead)
            if batch is None:
                return False
            self._collating = True
        try:
            batch.collated = batch.queue.model.collate(batch.items)
        except Exception:
            # Not lost: the device thread collates what is not collated, and finds the guilty item by halves.
            log.warning("a batch of %s could not be collated ahead", batch.queue.name, exc_info=True)
        except BaseException as error:
            self._die(batch, error)
            raise
        with self._lock:
            self._collating = False
            if not self._closed:
                self._ahead = batch
                self._work.notify()
                return True
        self._to_loop(_fail, batch.waiters, Closed(f"the scheduler of {self.name} is closed"))
        return False

    def _cut_ahead(self) -> _Batch | None:
        """Cut the next bulk batch if the device is busy, none is ahead, and the queue whose turn it is has it full."""
        if not self._running or self._ahead is not None:
            return None
        turn = next((queue for queue in self._queues[Lane.BULK] if queue.items), None)
        return self._cut(Lane.BULK) if turn is not None and turn.is_full_batch() else None

    def _die(self, batch: _Batch, error: BaseException) -> None:
        self.failure = error
        self._to_loop(_fail, batch.waiters, Closed(f"the scheduler of {self.name} died: see the log"))

    def _to_loop(self, callback: Callable[..., None], *args: Any) -> None:
        assert self._loop is not None, "threads run only after start()"  # noqa: S101 - an invariant of this class
        self._loop.call_soon_threadsafe(callback, *args)


def _compute(model: BatchModel, items: Sequence[Any], collated: Any = None) -> list[tuple[Any, Exception | None]]:
    """Run `items` as one batch, on failure as two halves; return a result or an error for each."""
    try:
        results = model.run(model.collate(items) if collated is None else collated)
        if len(results) != len(items):
            raise WrongCount(f"{len(results)} results for {len(items)} items")
    except Exception as error:  # a model may raise anything: whoever waits for the guilty item is told
        log.warning("a batch of %d failed: %s", len(items), error, exc_info=len(items) == 1)
        if len(items) == 1:
            # Python forbids to raise StopIteration through a future.
            told = RuntimeError("the model raised StopIteration") if isinstance(error, StopIteration) else error
            return [(None, told)]
    else:
        return [(result, None) for result in results]
    half = len(items) // 2
    return _compute(model, items[:half]) + _compute(model, items[half:])


def _deliver(waiters: Sequence[Waiter], outcomes: Sequence[tuple[Any, Exception | None]]) -> None:
    for waiter, (result, error) in zip(waiters, outcomes, strict=True):
        if waiter.future.done():  # cancelled while the batch ran
            continue
        if error is None:
            waiter.future.set_result(result)
        else:
            waiter.future.set_exception(error)


def _fail(waiters: Sequence[Waiter], error: Exception) -> None:
    for waiter in waiters:
        if not waiter.future.done():
            waiter.future.set_exception(error)
