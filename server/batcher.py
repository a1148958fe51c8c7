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
- Where nothing comes out of a batch, nobody knows whether its items or the replica are to blame: the items wait again,
  before all others, and the replica takes nothing of that queue until it has proved itself. See standby.py.
- A thread that dies is replaced. What it had in hand rides once more, each item alone.
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
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

from server.batch import Batch, Outcome, deliver, fail
from server.observer import Observer, Rider
from server.queue import BatchModel, Lane, Limits, Queue, Waiter
from server.turns import Turns
from server.worker import ROLES, Role, Worker

log = logging.getLogger(__name__)

DEFAULT_LIMITS = Limits()


class Closed(Exception):
    """The scheduler is closed, the model was unloaded, or the thread died under the item twice: it is not computed."""


class Scheduler:
    """Feeds one device, or several equal ones: picks the next batch among the queues, runs it, brings the results back.

    `start` it on the event loop that submits; `await close()` it before the loop ends.
    """

    def __init__(self, name: str, replicas: int = 1) -> None:
        self.name = name
        self.failure: BaseException | None = None  # what a thread of ours died of last
        self.failed_at = 0.0  # when, by time.monotonic
        self.ended = 0  # batches, ever
        self._lock = threading.Lock()
        self._workers = [Worker(number, self._lock) for number in range(replicas)]
        self._turns = Turns(self._workers)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._changed = asyncio.Event()  # a batch ended, or an item was given up
        self._threads = {
            (worker.number, role): self._thread(worker, role) for worker in self._workers for role in ROLES
        }

    # The event loop's side.

    def start(self) -> None:
        """Start the threads; results go to the running event loop."""
        self._loop = asyncio.get_running_loop()
        for thread in self._threads.values():
            thread.start()

    @property
    def alive(self) -> bool:
        """Whether all threads work: one that took the place of another does once a batch has come back from it."""
        return not self.restarted() and all(thread.is_alive() for thread in list(self._threads.values()))

    def restarted(self) -> list[int]:
        """Return the workers of which a thread died, and from which nothing has come back since."""
        return [worker.number for worker in self._workers if worker.deaths]

    def hung(self, seconds: float) -> list[int]:
        """Return the workers whose batch has been running for more than `seconds`."""
        since = time.monotonic() - seconds
        with self._lock:
            return [worker.number for worker in self._workers if worker.running is not None and worker.began < since]

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
            self._turns.queues[lane].append(queue)
        return queue

    async def replace(self, queue: Queue, models: Sequence[BatchModel]) -> None:
        """Let `models` compute what is cut from now on; return when the last batch of the old ones has ended.

        What runs or is collated already ends with the replica that cut it.
        """
        with self._lock:
            old, queue.models = queue.models, self._one_each(models)
            queue.doubted.clear()
            queue.broken.clear()
            self._turns.wake_all()
        await self._until(lambda: not any(batch.model is one for batch in self._batches() for one in old))

    async def run_dry(self, queue: Queue) -> None:
        """Compute what still waits in `queue`, to which nothing more is submitted, and take it away."""
        with self._lock:
            queue.doubt = None  # nothing else comes to its place: what fails here has failed
            queue.doubted.clear()
            queue.broken.clear()
            self._turns.wake_all()
        await self._until(lambda: not queue.items and not any(batch.queue is queue for batch in self._batches()))
        if not queue.removed:
            self.remove(queue)

    def _one_each(self, models: Sequence[BatchModel]) -> tuple[BatchModel, ...]:
        if len(models) != len(self._workers):
            raise ValueError(f"{len(models)} replicas do not fit {self.name}, which has {len(self._workers)} workers")
        return tuple(models)

    def _batches(self) -> list[Batch]:
        """Return what runs, is collated, or is ready, on all devices."""
        with self._lock:
            return [batch for worker in self._workers for batch in worker.batches()]

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not (self._closed or condition()):
            self._changed.clear()
            await self._changed.wait()

    def remove(self, queue: Queue) -> None:
        """Take a queue away; what still waits in it gets Closed."""
        with self._lock:
            self._turns.queues[queue.lane].remove(queue)
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
        waiter = Waiter(item, self._future(), weight, rider, flow)
        with self._lock:
            self._check_open(queue)
            if not accepted:
                queue.check_room(weight, flow=flow)
            queue.push(waiter)
            self._turns.wake(queue)
        waiter.future.add_done_callback(partial(self._forget, queue, waiter))
        return waiter.future

    def prove(self, queue: Queue, replica: int, item: Any) -> "asyncio.Future[Any]":
        """Let one replica compute `item` before all else, even in doubt; return the future of its result, as `submit`.

        Its error is nobody's but the replica's. Raises Closed.
        """
        waiter = Waiter(item, self._future(), 1, proves=True)
        with self._lock:
            self._check_open(queue)
            worker = self._workers[replica]
            worker.first.append(Batch(queue, queue.models[replica], [waiter], [item]))
            worker.waits = False
            worker.work.notify()
        return waiter.future

    def trust(self, queue: Queue, replica: int) -> None:
        """Let a replica that has proved itself take work again."""
        with self._lock:
            queue.doubted.discard(replica)
            queue.broken.discard(replica)
            self._turns.wake_all()

    def distrust(self, queue: Queue, replica: int) -> None:
        """Give a replica that could not prove itself no work while another one takes it."""
        with self._lock:
            queue.doubted.discard(replica)
            queue.broken.add(replica)
            self._turns.wake_all()

    def _future(self) -> "asyncio.Future[Any]":
        if self._loop is None:
            raise Closed(f"the scheduler of {self.name} was not started")
        return self._loop.create_future()

    def _check_open(self, queue: Queue) -> None:
        if self._closed:
            raise Closed(f"the scheduler of {self.name} is closed")
        if queue.removed:
            raise Closed(f"{queue.name} was unloaded")

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
        for thread in list(self._threads.values()):
            if thread.ident is not None:
                await asyncio.to_thread(thread.join, max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in list(self._threads.values()))

    def _shut(self, error: Exception) -> None:
        with self._lock:
            self._closed = True
            left: list[Waiter] = []
            for queue in (queue for lane in self._turns.queues.values() for queue in lane):
                queue.doubt = None  # nothing rides again
                left += queue.drain("closed")
            for worker in self._workers:
                for batch in (*worker.first, worker.ahead):
                    left += [] if batch is None else batch.give_up()
                worker.first.clear()
                worker.ahead = None
                worker.work.notify()
                worker.spare.notify()
        fail(left, error)
        self._changed.set()

    # The threads' side. A turn is a function of its own so that no thread holds on to a batch while it waits.

    def _thread(self, worker: Worker, role: Role, pause: float = 0.0) -> threading.Thread:
        name = f"{self.name}-{role}-{worker.number}"
        return threading.Thread(target=self._guard, args=(worker, role, pause), name=name, daemon=True)

    def _guard(self, worker: Worker, role: Role, pause: float) -> None:
        """Take turns until the end, in the place of a thread that died `pause` seconds ago."""
        if pause:
            with self._lock:
                (worker.work if role == "device" else worker.spare).wait_for(lambda: self._closed, pause)
        turn = self._device_turn if role == "device" else self._collate_turn
        try:
            while turn(worker):
                pass
        except BaseException as error:  # noqa: BLE001 - whatever ends a thread of ours, another takes its place
            self._replace_thread(worker, role, error)

    def _replace_thread(self, worker: Worker, role: Role, error: BaseException) -> None:
        log.critical("a thread of %s died, and another takes its place", self.name, exc_info=error)
        with self._lock:
            self.failure, self.failed_at = error, time.monotonic()
            left = self._turns.lose(worker, role, self._closed)
            if not self._closed:
                self._threads[worker.number, role] = thread = self._thread(worker, role, worker.pause())
                thread.start()
        if left:
            self._to_loop(self._fail, left, Closed(f"a thread of {self.name} died twice under it: see the log"))

    def _device_turn(self, worker: Worker) -> bool:
        with self._lock:
            batch = self._wait(worker.work, partial(self._take, worker))
            if batch is None:
                return False
            worker.running, worker.began = batch, time.monotonic()
            for one in self._workers:  # it may have been the last that was free
                one.spare.notify()
        began = time.perf_counter()
        outcomes = batch.compute()
        ended = time.perf_counter()
        errors = [error for _, error in outcomes if error is not None]
        with self._lock:
            self.ended += 1
            again, is_doubted = self._turns.settle(worker, batch, ended - began, errors)
            if is_doubted and batch.queue.doubt is not None:
                self._to_loop(batch.queue.doubt, worker.number)
        told = [pair for pair in zip(batch.waiters, outcomes, strict=True) if pair[0] not in again]
        del batch  # whoever gets the last answer may unload the model at once
        self._to_loop(self._deliver, [one for one, _ in told], [outcome for _, outcome in told], began, ended)
        return True

    def _wait(self, condition: threading.Condition, cut: Callable[[], Batch | None]) -> Batch | None:
        while not self._closed:
            if (batch := cut()) is not None:
                return batch
            condition.wait()
        return None

    def _take(self, worker: Worker) -> Batch | None:
        batch = self._turns.next(worker)
        worker.waits = batch is None
        return batch

    def _collate_turn(self, worker: Worker) -> bool:
        with self._lock:
            batch = self._wait(worker.spare, partial(self._turns.cut_ahead, worker))
            if batch is None:
                return False
            worker.collating = batch
        try:
            batch.collate()
        except Exception:
            # Not lost: the device thread collates what is not collated, and finds the guilty item by halves.
            log.warning("a batch of %s could not be collated ahead", batch.queue.name, exc_info=True)
        with self._lock:
            worker.collating = None
            if not self._closed:
                if batch.queue.takes(worker.number) or batch.queue.removed:
                    worker.ahead = batch
                else:
                    batch.queue.put_back(batch.waiters)
                worker.work.notify()
                return True
        self._to_loop(fail, batch.give_up(), Closed(f"the scheduler of {self.name} is closed"))
        return False

    def _deliver(self, waiters: Sequence[Waiter], outcomes: Sequence[Outcome], began: float, ended: float) -> None:
        deliver(waiters, outcomes, began, ended)
        self._changed.set()

    def _fail(self, waiters: Sequence[Waiter], error: Exception) -> None:
        fail(waiters, error)
        self._changed.set()

    def _to_loop(self, callback: Callable[..., None], *args: Any) -> None:
        assert self._loop is not None, "threads run only after start()"  # noqa: S101 - an invariant of this class
        self._loop.call_soon_threadsafe(callback, *args)
