"""Which models are in memory: loaded once by the first who asks, preloaded, unloaded when idle or over budget.

Knows that a model, or its replicas on several devices, has a queue on the scheduler of these devices, and how another
takes its place there while it is in use. Does not know what models compute, nor how they are loaded: `load` and
`release` are handed in, and run in threads of their own.
"""

import asyncio
import concurrent.futures
import functools
import logging
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from engines.catalog import Clip, Face
from engines.model import Kind, Model
from server.batcher import Scheduler
from server.observer import Observer
from server.queue import Lane, Limits, Queue

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Part:
    """One thing that can be loaded: a kind of network of one entry of the catalogue."""

    kind: Kind
    entry: Clip | Face

    def __str__(self) -> str:
        return f"{self.entry.name} ({self.kind})"


@dataclass(frozen=True, slots=True)
class Proof:
    """A small input that was computed to see whether a model works: when, by time.monotonic, and why it failed."""

    at: float
    failure: str = ""
    successes: int = 0  # batches of its queue that had succeeded when it failed


@dataclass(slots=True, eq=False)
class Loaded:
    """A model in memory, with its place on its devices. All but `part` may change while it is in use: see `swap`."""

    part: Part
    models: tuple[Model, ...]  # replicas, one for each device
    queue: Queue
    scheduler: Scheduler
    last_used: float = field(default_factory=time.monotonic)
    proof: Proof | None = None  # the last one

    @property
    def model(self) -> Any:
        """The first replica: all prepare alike. Any, since `prepare` differs by kind."""
        return self.models[0]

    @property
    def bytes(self) -> int:
        """The weights of all replicas."""
        return sum(model.info.bytes for model in self.models)


class Shelf:
    """The models in memory. Everything here runs on the event loop but `load` and `release`."""

    def __init__(
        self,
        load: Callable[[Part], Sequence[Model]],
        release: Callable[[], None],
        *,
        limits: Callable[[Part], Limits] = lambda part: Limits(),
        placed: Callable[[Loaded], None] = lambda loaded: None,
        observe: Callable[[Part], Observer] = lambda part: Observer(),
        doubt: Callable[[Part, int], None] | None = None,
        ttl: float = 0,
        budget: int = 0,
    ) -> None:
        """`ttl` in seconds and `budget` in bytes of weights; 0 is no limit. `placed` is told of whatever was loaded.

        `observe` returns who is told what becomes of a part's queue; `doubt` is told of a replica of whose batch
        nothing came out, and settles what becomes of it. Without, what rode in that batch has failed.
        """
        self._load = load
        self._release = release
        self._limits = limits
        self._placed = placed
        self._observe = observe
        self._doubt = doubt
        self._ttl = ttl
        self._budget = budget
        self._loading: dict[Part, asyncio.Task[Loaded]] = {}
        self._loaded: dict[Part, Loaded] = {}
        self._users: Counter[Part] = Counter()  # who uses a part or waits for it
        self._pinned: set[Part] = set()
        self._schedulers: dict[str, Scheduler] = {}

    def loaded(self) -> list[Loaded]:
        """Return what is in memory now."""
        return list(self._loaded.values())

    def schedulers(self) -> list[Scheduler]:
        """Return the schedulers of all devices in use."""
        return list(self._schedulers.values())

    @asynccontextmanager
    async def use(self, part: Part) -> AsyncIterator[Loaded]:
        """Hold a model in memory for the time of the block, loading it first if need be; raises what `load` raised."""
        self._users[part] += 1  # from here on it does not leave
        try:
            loaded = self._loaded.get(part)
            if loaded is None:
                loaded = await asyncio.shield(self._task(part))  # who hangs up does not end the load of others
            try:
                yield loaded
            finally:
                loaded.last_used = time.monotonic()
        finally:
            self._users[part] -= 1
            if not self._users[part]:
                del self._users[part]

    async def preload(self, parts: Iterable[Part]) -> dict[Part, str]:
        """Load parts one after the other, to stay; return those that failed with the reason, which is logged too."""
        failed = {}
        for part in parts:
            self._pinned.add(part)
            try:
                async with self.use(part):
                    pass
            except Exception as error:  # readiness tells; the other parts are loaded all the same
                log.exception("%s could not be preloaded", part)
                failed[part] = f"{type(error).__name__}: {error}"
        return failed

    def _task(self, part: Part) -> "asyncio.Task[Loaded]":
        if part not in self._loading:
            task = asyncio.create_task(self._bring_in(part), name=f"load {part}")
            task.add_done_callback(lambda task: task.cancelled() or task.exception())  # told to whoever waits, if any
            self._loading[part] = task
        return self._loading[part]

    async def _bring_in(self, part: Part) -> Loaded:
        started = time.monotonic()
        log.info("loading %s", part)
        try:
            models = await in_thread(lambda: tuple(self._load(part)), f"load {part}")
            loaded = self._place(part, models, time.monotonic() - started)
        finally:
            del self._loading[part]
        self._placed(loaded)
        if self._budget:
            await self._unload(self._over_budget(part))
        return loaded

    def _place(self, part: Part, models: tuple[Model, ...], seconds: float) -> Loaded:
        info = models[0].info
        loaded = Loaded(part, models, *self._queue(part, models))
        self._loaded[part] = loaded
        log.info(
            "loaded %s in %.1f s: on %s, %s %s (%s), %d MB%s",
            part,
            seconds,
            loaded.scheduler.name,
            info.backend,
            info.precision,
            info.reason,
            loaded.bytes >> 20,
            "; UNTRAINED: its vectors mean nothing" if info.untrained else "",
        )
        return loaded

    def _queue(self, part: Part, models: tuple[Model, ...]) -> tuple[Queue, Scheduler]:
        name = devices(models)
        if name not in self._schedulers:
            self._schedulers[name] = Scheduler(name, len(models))
            self._schedulers[name].start()
        lane = Lane.INTERACTIVE if part.kind == "textual" else Lane.BULK
        queue = self._schedulers[name].add(models, str(part), lane, self._limits(part), self._observe(part))
        if self._doubt is not None:
            queue.doubt = functools.partial(self._doubt, part)
        return queue, self._schedulers[name]

    async def swap(self, part: Part, models: Sequence[Model]) -> bool:
        """Let `models` take the place of those of a part, while requests go on; return whether it was in memory.

        Batches that were cut end with the old models, whose memory is given back after the last of them. On other
        devices than before, what waits already is still computed by the old ones.
        """
        loaded = self._loaded.get(part)
        if loaded is None:
            return False
        new, queue, scheduler = tuple(models), loaded.queue, loaded.scheduler
        stays = devices(new) == scheduler.name
        if not stays:
            loaded.queue, loaded.scheduler = self._queue(part, new)
        loaded.models = new
        queue.observer.swapped()
        await (scheduler.replace(queue, new) if stays else scheduler.run_dry(queue))
        for leaving in self._over_budget(part) if self._budget else ():
            self._take_out(leaving)
        await self._give_back()
        return True

    async def unload_idle(self) -> None:
        """Unload what nobody has used for the time to live."""
        now = time.monotonic()
        if self._ttl:
            await self._unload([idle.part for idle in self._idle() if now - idle.last_used >= self._ttl])

    def _over_budget(self, newest: Part) -> list[Part]:
        """Return what must leave to make room for `newest`, the least recently used first."""
        excess = sum(loaded.bytes for loaded in self._loaded.values()) - self._budget
        leaving: list[Part] = []
        for idle in self._idle():
            if excess > 0 and idle.part != newest:
                excess -= idle.bytes
                leaving.append(idle.part)
        if excess > 0:
            log.warning("the models in use are %d MB over MACHINE_LEARNING_MEMORY_BUDGET_MB", (excess >> 20) + 1)
        return leaving

    def _idle(self) -> list[Loaded]:
        """Return what may leave, the least recently used first."""
        idle = [one for one in self._loaded.values() if one.part not in self._users and one.part not in self._pinned]
        return sorted(idle, key=lambda one: one.last_used)

    async def _unload(self, parts: list[Part]) -> None:
        for part in parts:
            self._take_out(part)
        if parts:
            await self._give_back()

    async def _give_back(self) -> None:
        """Free the memory of models that nothing refers to any longer."""
        try:
            await in_thread(self._release, "release memory")
        except Exception:  # memory that stays is no reason to fail the model that asked for room
            log.exception("memory of unloaded models could not be given back")

    def _take_out(self, part: Part) -> None:
        loaded = self._loaded.pop(part)
        loaded.scheduler.remove(loaded.queue)
        log.info("unloaded %s: not used for %.0f s", part, time.monotonic() - loaded.last_used)

    async def close(self, grace: float) -> bool:
        """Stop all devices and fail what waits there; return whether all threads ended within `grace` seconds."""
        for task in self._loading.values():
            task.cancel()
        self._loaded.clear()
        return all(await asyncio.gather(*(scheduler.close(grace) for scheduler in self._schedulers.values())))


def devices(models: Sequence[Model]) -> str:
    """Return where replicas are, in short: "cpu", "cuda:0", "cuda:0+1"."""
    first, *others = (model.info.device for model in models)
    kind = first.partition(":")[0]
    return "+".join([first, *(other.removeprefix(f"{kind}:") for other in others)])


async def in_thread(function: Callable[[], T], name: str) -> T:
    """Run `function` in a new daemon thread and return what it returns or raise what it raises.

    Unlike an executor's, such a thread holds up neither others nor the end of the process: a download may take minutes.
    """
    future: concurrent.futures.Future[T] = concurrent.futures.Future()
    future.set_running_or_notify_cancel()  # from here on it cannot be cancelled under the thread

    def work() -> None:
        try:
            future.set_result(function())
        except Exception as error:  # noqa: BLE001 - handed on to whoever awaits
            future.set_exception(error)
        except BaseException as error:  # noqa: BLE001 - asyncio would end the server on a SystemExit of a library
            future.set_exception(RuntimeError(f"{name} gave up: {error!r}"))

    threading.Thread(target=work, name=name, daemon=True).start()
    return await asyncio.wrap_future(future)
