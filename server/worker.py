"""One device of a scheduler: what it computes, what is collated for it meanwhile, and what it computes first.

Knows no queue's policy and starts no thread: batcher.py does, which holds the lock around everything here.
"""

import threading
from collections import deque
from typing import Literal, get_args

from server.batch import Batch

Role = Literal["device", "collate"]  # the two threads of a worker
ROLES: tuple[Role, ...] = get_args(Role)

PAUSE_S = 0.05  # before a thread takes the place of one that died in its first batch, doubled with each further one
LONGEST_PAUSE_S = 5.0


class Worker:
    """The state of one device; its threads wait at `work` and at `spare`."""

    def __init__(self, number: int, lock: threading.Lock) -> None:
        self.number = number  # of the replicas that it runs
        self.work = threading.Condition(lock)  # its device thread waits here
        self.spare = threading.Condition(lock)  # its collating thread waits here
        self.waits = False  # the device thread waits, and nobody has woken it yet
        self.first: deque[Batch] = deque()  # proofs, and what rides alone since a thread died under it
        self.running: Batch | None = None
        self.began = 0.0  # when it began to run, by time.monotonic
        self.collating: Batch | None = None
        self.ahead: Batch | None = None
        self.burst = 0
        self.deaths = 0  # of its threads, since a batch last came back

    def batches(self) -> list[Batch]:
        """Return what runs, is collated, or is ready."""
        return [batch for batch in (self.running, self.collating, self.ahead, *self.first) if batch is not None]

    def lose(self, role: Role) -> Batch | None:
        """Return the batch that a thread had in hand when it died, which nobody has in hand from now on."""
        self.deaths += 1
        if role == "collate":
            batch, self.collating = self.collating, None
        else:
            batch, self.running = self.running, None
            self.waits = False
        return batch

    def pause(self) -> float:
        """Return the seconds that the next thread waits: none after a first death, else it might die without end."""
        return min(PAUSE_S * 2.0 ** (self.deaths - 2), LONGEST_PAUSE_S) if self.deaths > 1 else 0.0
