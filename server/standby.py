"""What becomes of a model whose batches fail: it proves itself, or eager PyTorch takes its place until it can.

Knows a shelf, and how a model is loaded on eager PyTorch. A replica of whose batch nothing came out takes no work of
its queue until its proof is in. If that fails, another replica does the work alone; where there is none, the same model
on eager PyTorch takes the place of all, and what waits is computed by it. The engine is loaded anew after a while, and
comes back once a fresh one has proved itself. Does not know how batches are cut (batcher.py). Everything here runs on
the event loop.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace

from engines.model import Model
from server.batcher import Closed
from server.proof import AGAIN_S, HANGS_S, compute, sample
from server.queue import Queue
from server.shelf import Loaded, Part, Shelf, in_thread

log = logging.getLogger(__name__)

LONGEST_PAUSE_S = 600.0  # between two tries to bring an engine back, each of which loads it
Load = Callable[[Part], Sequence[Model]]


class Standby:
    """Judges what is doubted. `doubt` is what the shelf wants to call; `close` ends all that is under way."""

    def __init__(
        self,
        shelf: Shelf,
        load: Load,
        load_eager: Load | None,
        again_s: float = AGAIN_S,
        hangs_s: float = HANGS_S,
    ) -> None:
        """`load` loads as at the first time, `load_eager` on eager PyTorch; None where nothing can take a place.

        What failed is tried again after `again_s` seconds, a proof that takes longer than `hangs_s` has failed.
        """
        self._shelf = shelf
        self._load = load
        self._load_eager = load_eager
        self._again_s = again_s
        self._hangs_s = hangs_s
        self._pauses: dict[Part, float] = {}  # seconds, doubled each time: what comes and goes is left alone for longer
        self._failing: dict[tuple[Queue, int], str] = {}  # a sentence for each replica that could not prove itself
        self._eager: dict[Part, str] = {}  # a sentence for each part in whose place eager PyTorch is
        self._tasks: set[asyncio.Task[None]] = set()

    def reasons(self) -> list[str]:
        """Return a sentence for each model that computes nothing."""
        return [told for (queue, replica), told in self._failing.items() if _stands(queue, replica)]

    def remarks(self) -> list[str]:
        """Return a sentence for each model that is computed, and otherwise than it was to be."""
        failing = (told for (queue, replica), told in self._failing.items() if _is_spared(queue, replica))
        return [*self._eager.values(), *failing]

    def doubt(self, part: Part, replica: int) -> None:
        """Judge a replica of a part: nothing came out of its last batch."""
        loaded = next((one for one in self._shelf.loaded() if one.part == part), None)
        if loaded is not None:  # else it was unloaded
            self._start(self._judge(loaded, loaded.queue, replica), f"judge {part}")

    def close(self) -> None:
        """End all that is under way."""
        for task in self._tasks:
            task.cancel()

    def _start(self, work: Coroutine[None, None, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _judge(self, loaded: Loaded, queue: Queue, replica: int) -> None:
        try:
            failure = await self._proof(loaded, queue, replica)
            if failure and not await self._takes_its_place(loaded, queue, replica, failure):
                loaded.scheduler.distrust(queue, replica)
                await self._until_it_proves_itself(loaded, queue, replica, failure)
            if queue is loaded.queue:
                loaded.scheduler.trust(queue, replica)
        except Closed:
            pass  # it was unloaded, and whoever asks next loads it anew
        except Exception:  # whatever goes wrong here, nobody may wait for ever
            log.exception("%s goes on as it is: it could not be judged", loaded.part)
            loaded.scheduler.distrust(queue, replica)
        finally:
            self._failing.pop((queue, replica), None)

    async def _proof(self, loaded: Loaded, queue: Queue, replica: int) -> str:
        """Let a replica compute a small input; return why it could not, "" if it could. Raises Closed."""
        try:
            async with asyncio.timeout(self._hangs_s):
                model = queue.models[replica]
                item, _ = await in_thread(lambda: sample(model, loaded.part.kind), f"sample for {loaded.part}")
                await loaded.scheduler.prove(queue, replica, item)
        except Closed:
            raise
        except TimeoutError:
            return f"nothing came back for {self._hangs_s:.0f} s"
        except Exception as error:  # noqa: BLE001 - a model may raise anything: readiness tells
            return f"{type(error).__name__}: {error}"
        return ""

    async def _takes_its_place(self, loaded: Loaded, queue: Queue, replica: int, failure: str) -> bool:
        """Put eager PyTorch in the place of all replicas, if all fail and it is not there already; return whether."""
        part, info = loaded.part, loaded.model.info
        engine = f"{info.backend} {info.precision}"
        others = set(range(len(loaded.models))) - {replica}
        if self._load_eager is None or engine == "eager float32" or not others <= queue.broken:
            return False
        load = self._load_eager
        self._failing[queue, replica] = (
            f"{part} fails on {engine} ({failure}): eager PyTorch is being loaded in its place"
        )
        log.error("%s fails on %s (%s): eager PyTorch is loaded in its place", part, engine, failure)
        before = loaded.models
        try:
            eager = await in_thread(lambda: tuple(load(part)), f"load {part} on eager PyTorch")
        except Exception:  # loading runs foreign code; readiness tells of the failure that led here
            log.exception("%s stays on %s, which fails: eager PyTorch cannot be loaded", part, engine)
            return False
        for model in eager:
            model.info = replace(model.info, reason=f"{engine} failed ({failure})")
        if loaded.models is not before or loaded not in self._shelf.loaded():
            return True  # it was unloaded, or a new engine was built meanwhile
        del before  # its memory is given back when the last of its batches has ended
        await self._shelf.swap(part, eager)
        log.warning("%s runs on eager PyTorch: %s is tried again later", part, engine)
        self._start(self._bring_back(loaded, eager, engine, failure), f"bring {engine} back for {part}")
        return True

    async def _bring_back(self, loaded: Loaded, eager: tuple[Model, ...], engine: str, failure: str) -> None:
        """Load what failed anew until it proves itself, and put it back in its place."""
        part = loaded.part
        self._eager[part] = f"{part} runs on eager PyTorch, since {engine} failed ({failure})"
        try:
            while True:
                pause = self._pauses.get(part, self._again_s)
                self._pauses[part] = min(2 * pause, max(LONGEST_PAUSE_S, self._again_s))
                await asyncio.sleep(pause)
                if loaded.models is not eager or loaded not in self._shelf.loaded():
                    return  # a new engine was built, or it was unloaded and is loaded anew by whoever asks next
                if (fresh := await self._fresh(part, engine)) is not None:
                    await self._shelf.swap(part, fresh)
                    log.info("%s is back on %s", part, engine)
                    return
        finally:
            self._eager.pop(part, None)

    async def _fresh(self, part: Part, engine: str) -> tuple[Model, ...] | None:
        """Return the replicas of a part on `engine`, loaded anew and proved; None if that does not succeed."""
        try:
            models = await in_thread(lambda: tuple(self._load(part)), f"load {part} again")
            found = {f"{model.info.backend} {model.info.precision}" for model in models}
            if found != {engine}:
                log.warning("%s stays on eager PyTorch: what is loaded now is %s", part, ", ".join(sorted(found)))
                return None
            for model in models:
                await in_thread(lambda one=model: compute(one, part.kind), f"prove {part}")  # type: ignore[misc]
        except Exception as error:  # noqa: BLE001 - a model may raise anything; it is tried again later
            log.warning("%s stays on eager PyTorch: %s still fails (%s)", part, engine, error)
            return None
        return models

    async def _until_it_proves_itself(self, loaded: Loaded, queue: Queue, replica: int, failure: str) -> None:
        part, device = loaded.part, loaded.models[replica].info.device
        log.error("%s fails on %s (%s): it is tried again every %.0f s", part, device, failure, self._again_s)
        while failure and replica in queue.broken:  # else it was replaced, or something came out of a batch
            self._failing[queue, replica] = f"{part} fails on {device} ({failure}): see the log"
            await asyncio.sleep(self._again_s)
            failure = await self._proof(loaded, queue, replica)
        log.info("%s is computed on %s again", part, device)


def _stands(queue: Queue, replica: int) -> bool:
    """Return whether nothing is computed of a queue as long as a replica fails."""
    return replica in queue.doubted or (replica in queue.broken and queue.takes(replica))


def _is_spared(queue: Queue, replica: int) -> bool:
    """Return whether a replica that fails takes no work, and another one does."""
    return replica in queue.broken and not queue.takes(replica)
