"""Whether the server can answer: what /health/ready says, and how an idle model proves itself.

Knows what can be wrong: a preload that failed, a thread that died, a model whose batches all fail, a device from which
nothing comes back. A device on which nothing was computed for a while gets a small input through its queue, so that it
is known before the next client comes; a model that fails gets one too, so that it is known when it works again. What
becomes of a model that fails is standby.py's affair. Does not know HTTP. Everything here runs on the event loop.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator

from server.batcher import Closed, Scheduler
from server.proof import AGAIN_S, HANGS_S, sample
from server.shelf import Loaded, Proof, Shelf, in_thread
from server.standby import Standby

log = logging.getLogger(__name__)

FAILURES = 3  # batches in a row without a single result: one broken input is not taken for a broken model
POLL_S = 5.0
REMARKED_S = 300.0  # for which a thread that died is spoken of


class Readiness:
    """Says what keeps the server from answering. `watch` runs as long as the server does."""

    def __init__(
        self,
        shelf: Shelf,
        idle_s: float,
        proved: Callable[[bool], None],
        poll_s: float = POLL_S,
        hangs_s: float = HANGS_S,
        standby: Standby | None = None,
    ) -> None:
        """After `idle_s` seconds without a batch a device has to prove itself, 0 is never; `proved` is told how."""
        self.loading = False  # the preloaded models are not in yet
        self.problems: list[str] = []  # why they are not
        self._shelf = shelf
        self._idle_s = idle_s
        self._proved = proved
        self._poll_s = poll_s
        self._hangs_s = hangs_s
        self._standby = standby
        self._seen: dict[Scheduler, tuple[int, float]] = {}  # batches that had ended, and when that was new
        self._turns: dict[Scheduler, int] = {}
        self._told: list[str] = []

    def reasons(self) -> list[str]:
        """Return a sentence for each thing that is wrong, none if requests are answered."""
        reasons = [*self.problems]
        if self.loading and not reasons:
            reasons.append("loading the preloaded models")
        for scheduler in self._shelf.schedulers():
            if not scheduler.alive:
                reasons.append(
                    f"a thread of {scheduler.name} died ({scheduler.failure!r}), and nothing has come from the one in "
                    "its place: see the log"
                )
            reasons.extend(
                f"nothing has come back from worker {worker} of {scheduler.name} for {self._hangs_s:.0f} s: see the "
                "log, then restart the server"
                for worker in scheduler.hung(self._hangs_s)
            )
        return [*reasons, *(self._standby.reasons() if self._standby else ()), *self._failures()]

    def remarks(self) -> list[str]:
        """Return a sentence for each thing that is not as it should be while requests are answered."""
        now = time.monotonic()
        deaths = [
            f"a thread of {one.name} died {now - one.failed_at:.0f} s ago ({one.failure!r}), and another took its place"
            for one in self._shelf.schedulers()
            if one.failure is not None and one.alive and now - one.failed_at < REMARKED_S
        ]
        return [*deaths, *(self._standby.remarks() if self._standby else ())]

    def _failures(self) -> Iterator[str]:
        for loaded in self._shelf.loaded():
            queue = loaded.queue
            if queue.failures >= FAILURES:
                yield f"the last {queue.failures} batches of {loaded.part} failed ({queue.last_error}): see the log"
            elif loaded.proof is not None and _stands(loaded, loaded.proof):
                yield f"{loaded.part} could not prove itself ({loaded.proof.failure}): see the log"

    async def watch(self) -> None:
        """Let idle and failing models prove themselves, and log what changes."""
        while True:
            if self._idle_s:
                await asyncio.gather(
                    *(self._prove(loaded) for loaded in self._due()),
                    *(self._prove_thread(loaded, replica) for loaded, replica in self._restarted()),
                )
            self._tell()
            await asyncio.sleep(self._poll_s)

    def _due(self) -> list[Loaded]:
        """Return what has to prove itself now: all that fail, and one model of each idle device, in turn."""
        now = time.monotonic()
        loaded = self._shelf.loaded()
        due = [one for one in loaded if _fails(one) and (one.proof is None or now - one.proof.at >= AGAIN_S)]
        for scheduler in self._shelf.schedulers():
            ended, since = self._seen.get(scheduler, (-1, now))
            if ended != scheduler.ended:
                self._seen[scheduler] = (scheduler.ended, now)
            elif now - since >= self._idle_s and (there := [one for one in loaded if one.scheduler is scheduler]):
                turn = self._turns[scheduler] = self._turns.get(scheduler, -1) + 1
                chosen = there[turn % len(there)]
                if chosen not in due:
                    due.append(chosen)
        return due

    async def _prove(self, loaded: Loaded) -> None:
        scheduler, queue = loaded.scheduler, loaded.queue
        ended = scheduler.ended
        try:
            async with asyncio.timeout(self._hangs_s):
                item, weight = await in_thread(
                    lambda: sample(loaded.model, loaded.part.kind), f"sample for {loaded.part}"
                )
                await scheduler.submit(queue, item, flow=Readiness, weight=weight, accepted=True)
        except Closed:
            return  # it was unloaded, or the thread died, which shows by itself
        except TimeoutError:
            if ended == scheduler.ended:  # else there is merely much to do
                self._proved(False)
            return
        except Exception as error:  # noqa: BLE001 - a model may raise anything: readiness tells
            reason = f"{type(error).__name__}: {error}"
            loaded.proof = Proof(time.monotonic(), reason, queue.successes)
            self._proved(False)
            return
        loaded.proof = Proof(time.monotonic())
        self._proved(True)

    def _restarted(self) -> list[tuple[Loaded, int]]:
        """Return where a thread took the place of another and has computed nothing yet, with a model that it can."""
        there = {loaded.scheduler: loaded for loaded in self._shelf.loaded()}
        return [(loaded, replica) for scheduler, loaded in there.items() for replica in scheduler.restarted()]

    async def _prove_thread(self, loaded: Loaded, replica: int) -> None:
        try:
            async with asyncio.timeout(self._hangs_s):
                item, _ = await in_thread(lambda: sample(loaded.model, loaded.part.kind), f"sample for {loaded.part}")
                await loaded.scheduler.prove(loaded.queue, replica, item)
        except Exception as error:  # noqa: BLE001 - a model may raise anything: readiness tells of the thread
            log.warning("%s cannot prove itself with %s: %r", loaded.scheduler.name, loaded.part, error)
            self._proved(False)
        else:
            self._proved(True)

    def _tell(self) -> None:
        """Log what is wrong, once for as long as it stays the same."""
        reasons = [] if self.loading else self.reasons()
        if reasons != self._told:
            if reasons:
                log.error("not ready: %s", "; ".join(reasons))
            else:
                log.info("ready again")
            self._told = reasons


def _stands(loaded: Loaded, proof: Proof) -> bool:
    """Return whether `proof` failed and nothing succeeded since."""
    return bool(proof.failure) and proof.successes == loaded.queue.successes


def _fails(loaded: Loaded) -> bool:
    return loaded.queue.failures >= FAILURES or (loaded.proof is not None and _stands(loaded, loaded.proof))
