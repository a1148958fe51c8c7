"""Many awaiting callers, one batched call: a queue per model, a scheduler per device or set of equal devices.

Knows neither HTTP nor torch: a model is anything with `buckets`, `collate` and `run`. The whole policy stands here:

- No timer. A device thread cuts a batch the moment it is free, from what waits then. A lone item goes at once; a
  burst fills the batch while the one before runs.
- Several devices have one worker each, with a replica of each model; all share the queues, and whichever is free cuts.
- While all workers run and a full batch waits, a second thread of a worker collates it ahead. Never more than one each.
- Queues of the interactive lane go before those of the bulk lane, also before the batch collated ahead; after BURST
  interactive batches in a row a waiting bulk batch has its turn. Within a lane the queues take turns, and within a
  queue the flows do, item by item.
- What nobody waits for any longer is dropped. If a batch fails its halves are tried, so that only the guilty
  item fails.
- A queue is bounded by items and by weight. Beyond that `submit` raises Full, with an estimate of when to come again.
  Of items and of time each flow has its even share, so that a flood turns nobody away but itself.
- A batch stays with the replica that cut it, so the models of a queue can be replaced while it is in use.

All state, the queues included, is guarded by one lock per scheduler. `submit` is called on the event loop; batches are
cut and run on the device threads; results come back to the loop with one wake-up per batch.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

from server.batch import Batch, Outcome, deliver, fail
from server.observer import Observer, Rider
from server.queue import BatchModel, Lane, Limits, Queue, Waiter

log = logging.getLogger(__name__)

BURST = 8  # interactive batches in a row while bulk waits: bounds how long a flood of texts holds pictures up
DEFAULT_LIMITS = Limits()


class Closed(Exception):
    """The scheduler is closed or its thread died: nothing more is computed."""


class _Worker:
    """One device of a scheduler: what it computes, what is collated for it meanwhile, and what is ready."""

    def __init__(self, number: int, lock: threading.Lock) -> None:
        self.number = number  # of the replicas that it runs
        self.work = threading.Condition(lock)  # its device thread waits here
        self.spare = threading.Condition(lock)  # its collating thread waits here
        self.waits = False  # the device thread waits, and nobody has woken it yet
        self.running: Batch | None = None
        self.collating: Batch | None = None
        self.ahead: Batch | None = None
        self.burst = 0


class Scheduler:
    """Feeds one device, or several equal ones: picks the next batch among the queues, runs it, brings the results back.

    `start` it on the event loop that submits; `await close()` it before the loop ends.
    """

    def __init__(self, name: str, replicas: int = 1) -> None:
        self.name = name
        self.failure: BaseException | None = None  # what a thread of ours died of
        self.ended = 0  # batches, ever
        self._lock = threading.Lock()
        self._workers = [_Worker(number, self._lock) for number in range(replicas)]
        self._queues: dict[Lane, deque[Queue]] = {lane: deque() for lane in Lane}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._changed = asyncio.Event()  # a batch ended, or an item was given up
        self._threads = [
            threading.Thread(
                target=self._guard, args=(partial(turn, worker),), name=f"{name}-{role}-{worker.number}", daemon=True
            )
            for worker in self._workers
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
        """Whether all threads work."""
        return self.failure is None and all(thread.is_alive() for thread in self._threads)

    def add(
        self,
        models: Sequence[BatchModel],
        name: str,
        lane: Lane,
        limits: Limits = DEFAULT_LIMITS,
        observer: Observer | None = None,
    ) -> Queue:
        """Give `models`, one replica for each device, a queue, of which `observer` is told."""
        queue = Queue(self._one_each(models), name, lane, limits, observer or Observer())
        with self._lock:
            self._queues[lane].append(queue)
        return queue

    async def replace(self, queue: Queue, models: Sequence[BatchModel]) -> None:
        """Let `models` compute what is cut from now on; return when the last batch of the old ones has ended.

        What runs or is collated already ends with the replica that cut it.
        """
        with self._lock:
            old, queue.models = queue.models, self._one_each(models)
        await self._until(lambda: not any(batch.model is one for batch in self._batches() for one in old))

    async def run_dry(self, queue: Queue) -> None:
        """Compute what still waits in `queue`, to which nothing more is submitted, and take it away."""
        await self._until(lambda: not queue.items and not any(batch.queue is queue for batch in self._batches()))
        if not queue.removed:
            self.remove(queue)

    def _one_each(self, models: Sequence[BatchModel]) -> tuple[BatchModel, ...]:
        if len(models) != len(self._workers):
            raise ValueError(f"{len(models)} replicas do not fit {self.name}, which has {len(self._workers)} workers")
        return tuple(models)

    def _batches(self) -> list[Batch]:
        """Return what runs, is collated, or is ready."""
        with self._lock:
            held = [batch for one in self._workers for batch in (one.running, one.collating, one.ahead)]
        return [batch for batch in held if batch is not None]

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not (self._closed or condition()):
            self._changed.clear()
            await self._changed.wait()

    def remove(self, queue: Queue) -> None:
        """Take a queue away; what still waits in it gets Closed."""
        with self._lock:
            self._queues[queue.lane].remove(queue)
            queue.removed = True
            left = queue.drain("unloaded")
        fail(left, Closed(f"{queue.name} was unloaded"))

    def submit(
        self,
        queue: Queue,
        item: Any,
        *,
        flow: Hashable = None,
        weight: int = 1,
        accepted: bool = False,
        rider: Rider | None = None,
    ) -> "asyncio.Future[Any]":
        """Queue `item` and return the future of its result. Call it on the event loop.

        `accepted` marks work of a request already let in (the crops of its faces): limits do not turn it away. `rider`
        is told when it waited and ran. Raises Full or Closed; the future raises what the model raised for this item,
        or Closed. Cancelling the future drops the item if it still waits.
        """
        if self._loop is None:
            raise Closed(f"the scheduler of {self.name} was not started")
        waiter = Waiter(item, self._loop.create_future(), weight, rider)
        with self._lock:
            if self._closed:
                raise Closed(f"the scheduler of {self.name} is closed")
            if queue.removed:
                raise Closed(f"{queue.name} was unloaded")
            if not accepted:
                queue.check_room(weight, flow=flow)
            queue.push(waiter, flow)
            self._wake(queue)
        waiter.future.add_done_callback(partial(self._forget, queue, waiter))
        return waiter.future

    def _wake(self, queue: Queue) -> None:
        """Wake a worker that is free; where none is, those that could collate ahead."""
        free = [worker for worker in self._workers if worker.waits]
        if free:
            worker = min(free, key=lambda worker: worker.collating is not None)  # such a one waits for its own batch
            worker.waits = False
            worker.work.notify()
            return
        for worker in self._workers:
            if worker.ahead is None and queue.is_full_batch(worker.number):
                worker.spare.notify()

    def check_room(self, queue: Queue, ahead: int, flow: Hashable = None) -> None:
        """Raise Full if an item would find the queue full after `ahead` others of its flow that are on their way."""
        with self._lock:
            queue.check_room(0, ahead, flow)

    def _forget(self, queue: Queue, waiter: Waiter, future: "asyncio.Future[Any]") -> None:
        if future.cancelled():
            with self._lock:
                queue.drop(waiter)
            self._changed.set()

    async def close(self, grace: float = 5.0) -> bool:
        """Fail what waits with Closed and let the batches on the devices end.

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
            left = [waiter for lane in self._queues.values() for queue in lane for waiter in queue.drain("closed")]
            for worker in self._workers:
                if worker.ahead is not None:
                    left += worker.ahead.give_up()
                    worker.ahead = None
                worker.work.notify()
                worker.spare.notify()
        fail(left, error)
        self._changed.set()

    # The threads' side. A turn is a function of its own so that no thread holds on to a batch while it waits.

    def _guard(self, turn: Callable[[], bool]) -> None:
        try:
            while turn():
                pass
        except BaseException as error:
            self.failure = error
            log.critical("a thread of %s died: nothing more is computed there", self.name, exc_info=True)
            self._to_loop(self._shut, Closed(f"the scheduler of {self.name} died: see the log"))

    def _device_turn(self, worker: _Worker) -> bool:
        with self._lock:
            batch = self._wait(worker.work, partial(self._take, worker))
            if batch is None:
                return False
            worker.running = batch
            for one in self._workers:  # it may have been the last that was free
                one.spare.notify()
        began = time.perf_counter()
        try:
            outcomes = batch.compute()
        except BaseException as error:
            self._die(batch, error)
            raise
        ended = time.perf_counter()
        errors = [error for _, error in outcomes if error is not None]
        with self._lock:
            worker.running = None
            self.ended += 1
            batch.queue.note_batch(ended - began, len(batch.waiters), errors)
        waiters = batch.waiters
        del batch  # whoever gets the last answer may unload the model at once
        self._to_loop(self._deliver, waiters, outcomes, began, ended)
        return True

    def _wait(self, condition: threading.Condition, cut: Callable[[], Batch | None]) -> Batch | None:
        while not self._closed:
            if (batch := cut()) is not None:
                return batch
            condition.wait()
        return None

    def _take(self, worker: _Worker) -> Batch | None:
        batch = self._next(worker)
        worker.waits = batch is None
        return batch

    def _next(self, worker: _Worker) -> Batch | None:
        bulk_waits = worker.ahead is not None or any(queue.items for queue in self._queues[Lane.BULK])
        if not bulk_waits:
            worker.burst = 0
        if worker.burst < BURST and (batch := self._cut(Lane.INTERACTIVE, worker)) is not None:
            worker.burst += 1
            return batch
        if worker.collating is not None:  # what waits behind the batch about to be ready must not overtake it
            return None
        worker.burst = 0
        ahead, worker.ahead = worker.ahead, None
        return ahead or self._cut(Lane.BULK, worker) or self._cut(Lane.INTERACTIVE, worker)

    def _cut(self, lane: Lane, worker: _Worker) -> Batch | None:
        queues = self._queues[lane]
        for _ in range(len(queues)):
            queue = queues[0]
            queues.rotate(-1)
            if waiters := queue.cut(worker.number):
                return Batch(queue, queue.models[worker.number], waiters, [waiter.item for waiter in waiters])
        return None

    def _collate_turn(self, worker: _Worker) -> bool:
        with self._lock:
            batch = self._wait(worker.spare, partial(self._cut_ahead, worker))
            if batch is None:
                return False
            worker.collating = batch
        try:
            batch.collate()
        except Exception:
            # Not lost: the device thread collates what is not collated, and finds the guilty item by halves.
            log.warning("a batch of %s could not be collated ahead", batch.queue.name, exc_info=True)
        except BaseException as error:
            self._die(batch, error)
            raise
        with self._lock:
            worker.collating = None
            if not self._closed:
                worker.ahead = batch
                worker.work.notify()
                return True
        self._to_loop(fail, batch.give_up(), Closed(f"the scheduler of {self.name} is closed"))
        return False

    def _cut_ahead(self, worker: _Worker) -> Batch | None:
        """Cut the next bulk batch if all are busy, none is ahead, and the queue whose turn it is has it full."""
        if worker.ahead is not None or any(one.running is None for one in self._workers):
            return None
        turn = next((queue for queue in self._queues[Lane.BULK] if queue.items), None)
        return self._cut(Lane.BULK, worker) if turn is not None and turn.is_full_batch(worker.number) else None

    def _deliver(self, waiters: Sequence[Waiter], outcomes: Sequence[Outcome], began: float, ended: float) -> None:
        deliver(waiters, outcomes, began, ended)
        self._changed.set()

    def _die(self, batch: Batch, error: BaseException) -> None:
        self.failure = error
        self._to_loop(fail, batch.give_up(), Closed(f"the scheduler of {self.name} died: see the log"))

    def _to_loop(self, callback: Callable[..., None], *args: Any) -> None:
        assert self._loop is not None, "threads run only after start()"  # noqa: S101 - an invariant of this class
        self._loop.call_soon_threadsafe(callback, *args)
