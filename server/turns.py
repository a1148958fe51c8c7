"""Which batch each device of a scheduler takes next: lanes and queues in turn, and what is left to others.

Knows no threads and no event loop: the scheduler of batcher.py calls everything here with its lock held. The policy
stands at the top of batcher.py.
"""

from collections import deque
from collections.abc import Sequence

from server.batch import Batch
from server.queue import Lane, Queue, Waiter
from server.worker import Role, Worker

BURST = 8  # interactive batches in a row while bulk waits: bounds how long a flood of texts holds pictures up


class Turns:
    """The queues of one scheduler by their lanes, and the workers that take from them."""

    def __init__(self, workers: list[Worker]) -> None:
        self.workers = workers
        self.queues: dict[Lane, deque[Queue]] = {lane: deque() for lane in Lane}

    def wake_all(self) -> None:
        """Wake all threads: what they may take has changed."""
        for worker in self.workers:
            worker.waits = False
            worker.work.notify()
            worker.spare.notify()

    def wake(self, queue: Queue) -> None:
        """Wake a worker that is free for `queue`; where none is, those that could collate ahead."""
        free = [worker for worker in self.workers if worker.waits and queue.takes(worker.number)]
        if free:
            worker = min(free, key=lambda worker: worker.collating is not None)  # such a one waits for its own batch
            worker.waits = False
            worker.work.notify()
            return
        for worker in self.workers:
            if worker.ahead is None and queue.is_full_batch(worker.number):
                worker.spare.notify()

    def next(self, worker: Worker) -> Batch | None:
        """Return what a device computes next, None if there is nothing for it."""
        if worker.first:
            return worker.first.popleft()
        bulk_waits = worker.ahead is not None or any(queue.items for queue in self.queues[Lane.BULK])
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

    def _cut(self, lane: Lane, worker: Worker) -> Batch | None:
        queues = self.queues[lane]
        for _ in range(len(queues)):
            queue = queues[0]
            queues.rotate(-1)
            if queue.takes(worker.number) and (waiters := queue.cut(worker.number)):
                return Batch(queue, queue.models[worker.number], waiters, [waiter.item for waiter in waiters])
        return None

    def cut_ahead(self, worker: Worker) -> Batch | None:
        """Cut the next bulk batch if all are busy, none is ahead, and the queue whose turn it is has it full."""
        if worker.ahead is not None or worker.running is None:
            return None
        turn = next((one for one in self.queues[Lane.BULK] if one.items and one.takes(worker.number)), None)
        if turn is None or any(one.running is None and turn.takes(one.number) for one in self.workers):
            return None
        return self._cut(Lane.BULK, worker) if turn.is_full_batch(worker.number) else None

    def settle(
        self, worker: Worker, batch: Batch, seconds: float, errors: Sequence[Exception]
    ) -> tuple[set[Waiter], bool]:
        """Note that a batch came back after `seconds`; return who waits again, and whether its replica is doubted now.

        Where nothing came out all wait again that may: not a proof, not who did so once for each replica already, and
        nobody where the replica is known to be broken and no other takes its place.
        """
        queue, number = batch.queue, worker.number
        worker.running = None
        worker.deaths = 0
        queue.note_batch(seconds, len(batch.waiters), errors)
        is_current = queue.models[number] is batch.model  # and not replaced meanwhile
        if len(errors) < len(batch.waiters):
            if is_current:
                queue.broken.discard(number)
            return set(), False
        is_hopeless = is_current and number in queue.broken and queue.takes(number)
        if queue.doubt is None or queue.removed or is_hopeless:
            return set(), False
        again = [one for one in batch.waiters if not one.proves and one.failures < len(queue.models)]
        for waiter in again:
            waiter.failures += 1
        queue.put_back(again)
        is_doubted = bool(again) and is_current and queue.takes(number)
        if is_doubted:
            queue.doubted.add(number)
            self._leave_to_others(worker, queue)
        self.wake_all()
        return set(again), is_doubted

    def lose(self, worker: Worker, role: Role, is_last: bool) -> list[Waiter]:
        """Let what a thread had in hand when it died ride again, each item alone; return who did so already.

        If `is_last`, nothing rides any longer: return all of them.
        """
        batch = worker.lose(role)
        if batch is None:
            return []
        if batch.alone or is_last:
            return batch.give_up()
        worker.first.extend(batch.apart())
        worker.waits = False
        worker.work.notify()
        return []

    def _leave_to_others(self, worker: Worker, queue: Queue) -> None:
        """Put back what is collated already for a replica in doubt."""
        if worker.ahead is not None and worker.ahead.queue is queue:
            queue.put_back(worker.ahead.waiters)
            worker.ahead = None
