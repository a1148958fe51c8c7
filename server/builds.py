"""Engines that are missing, built beside the server: when, for which model, and what becomes of the result.

Knows that a child process builds, one at a time, and how it tells what came out: exit code 0 if an engine passed its
gate, and one line of JSON at the end of its standard output. Does not know how engines are made or chosen: after a
build the model is loaded anew, and whatever `load` then returns is right.

The child ends with the server, even if that is killed: see guard.py. A build that failed is told once, and not tried
again for as long as the server lives.
"""

import asyncio
import logging
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal

from pydantic import BaseModel, TypeAdapter, ValidationError

from engines.errors import BuildFailed, EngineMissing
from engines.model import Model
from server.shelf import Loaded, Part, Shelf, in_thread

log = logging.getLogger(__name__)

When = Literal["never", "background", "require"]
Load = Callable[[Part], Sequence[Model]]


class Verdict(BaseModel):
    """What the child tells of one engine that it tried to make, or of a model for which it could not try; and more."""

    passed: bool
    reason: str
    backend: str = ""
    precision: str = ""


VERDICTS = TypeAdapter(list[Verdict])


def command(part: Part, engine: str, precision: str) -> list[str]:
    """Return the command that builds for a part. What is not said here it takes from the environment, as the server."""
    script = [sys.executable, "-m", "scripts.build_engines", part.entry.name, "--kind", part.kind]
    return [*script, "--backend", engine, "--precision", precision, "--low-priority"]


class Builds:
    """Builds what a shelf has without a compiled engine. `look_at` and `close` are called on the event loop."""

    def __init__(self, when: When, load: Load, command: Callable[[Part], Sequence[str]]) -> None:
        """`command` returns what to run to build for a part."""
        self._when = when
        self._load = load
        self._command = command
        self._turn = threading.Lock()  # one build takes all cores
        self._lock = threading.Lock()  # of all below
        self._states: dict[Part, str | None] = {}  # None: built
        self._child: subprocess.Popen[str] | None = None
        self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()

    def state(self, part: Part) -> str | None:
        """Return "waiting", "running" or "failed: " and why; None if no build of a part is wanted or it is done."""
        with self._lock:
            return self._states.get(part)

    def load(self, part: Part) -> Sequence[Model]:
        """Load a part; where a built engine is required, build it first if there is none.

        Raises what `load` raises, and EngineMissing where nothing could be built.
        """
        if self._when != "require" or self._is_built(part):
            return self._load(part)
        state = self.state(part)
        if state is not None and state.startswith("failed"):
            raise EngineMissing(_not_served(part, state))
        try:
            models = self._load(part)
        except EngineMissing as error:
            log.info("%s cannot be loaded as it is: %s", part, error)
        else:
            if _all_built(models):
                return models
            del models  # the memory is for the build
        try:
            self._build(part)
        except BuildFailed as error:
            raise EngineMissing(_not_served(part, str(error))) from error
        return self._load(part)

    def _is_built(self, part: Part) -> bool:
        with self._lock:
            return part in self._states and self._states[part] is None

    def look_at(self, loaded: Loaded, shelf: Shelf) -> None:
        """Build an engine in the background for what was loaded without one, and then let it take its place."""
        with self._lock:
            if self._when != "background" or self._closed or _all_built(loaded.models) or loaded.part in self._states:
                return
            self._states[loaded.part] = "waiting"
        task = asyncio.create_task(self._build_and_swap(loaded.part, shelf), name=f"build {loaded.part}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _build_and_swap(self, part: Part, shelf: Shelf) -> None:
        try:
            await in_thread(lambda: self._build(part), f"build {part}")
            await self._swap(part, shelf)
        except BuildFailed as error:
            if not self._closed:
                log.warning("%s goes on as it is, since no engine could be built: %s", part, error)
        except Exception as error:  # loading runs foreign code; what is in memory goes on serving
            log.exception("%s goes on as it is: what was built for it cannot be loaded", part)
            self._note(part, f"failed: {error}")

    async def _swap(self, part: Part, shelf: Shelf) -> None:
        before = next((_run_on(loaded.models) for loaded in shelf.loaded() if loaded.part == part), None)
        if before is None:
            return  # it was unloaded meanwhile; the next load finds the engine
        models = await in_thread(lambda: tuple(self._load(part)), f"load {part}")
        info = models[0].info
        if _run_on(models) == before:
            log.info("%s stays on %s %s: %s", part, info.backend, info.precision, info.reason)
        elif await shelf.swap(part, models):
            log.info("%s now runs on %s %s: %s", part, info.backend, info.precision, info.reason)

    def _build(self, part: Part) -> None:
        """Run the child for `part` to its end when it is its turn; raises BuildFailed."""
        self._note(part, "waiting")
        try:
            with self._turn:
                self._note(part, "running")
                self._run(part)
        except BuildFailed as error:
            self._note(part, f"failed: {error}")
            raise
        self._note(part, None)

    def _note(self, part: Part, state: str | None) -> None:
        with self._lock:
            self._states[part] = state

    def _run(self, part: Part) -> None:
        told: deque[str] = deque(maxlen=10)
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as out:
            with self._lock:
                if self._closed:
                    raise BuildFailed("the server ended first")
                log.info("building an engine for %s%s", part, " in the background" * (self._when == "background"))
                child = self._child = subprocess.Popen(  # noqa: S603 - our own script
                    [sys.executable, "-m", "server.guard", *self._command(part)],
                    stdin=subprocess.PIPE,
                    stdout=out,
                    stderr=subprocess.PIPE,
                    text=True,
                    errors="replace",
                    start_new_session=True,  # Ctrl-C is for the server: it ends the child itself
                )
            with child:
                assert child.stderr is not None  # noqa: S101 - it is a pipe
                for line in child.stderr:
                    if line.strip():
                        told.append(line.strip())
                        log.debug("building %s: %s", part, line.strip())
            with self._lock:
                self._child = None
                if self._closed:
                    raise BuildFailed("the server ended first")
            out.seek(0)
            if child.returncode != 0:
                raise BuildFailed(_reasons(out.read()) or f"exit code {child.returncode}: {' '.join(list(told)[-1:])}")

    async def close(self, grace: float) -> None:
        """End the child and all that it started, and wait up to `grace` seconds for it."""
        with self._lock:
            self._closed = True
            if self._child is not None and self._child.stdin is not None:
                self._child.stdin.close()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=grace)
            for task in late:
                task.cancel()


def _all_built(models: Sequence[Model]) -> bool:
    """Return whether no replica goes without: each device has engines of its own."""
    return all(model.info.built for model in models)


def _run_on(models: Sequence[Model]) -> list[tuple[str, str, str, bool]]:
    infos = [model.info for model in models]
    return [(info.device, info.backend, info.precision, info.built) for info in infos]


def _reasons(out: str) -> str:
    """Return why nothing passed, from the last line of what the child wrote; empty if that does not say."""
    try:
        verdicts = VERDICTS.validate_json(out.strip().splitlines()[-1] if out.strip() else "")
    except ValidationError:  # it ended before it could tell: the exit code has to do
        return ""
    told = (f"{one.backend} {one.precision}: {one.reason}".lstrip(" :") for one in verdicts if not one.passed)
    return "; ".join(dict.fromkeys(told))


def _not_served(part: Part, why: str) -> str:
    return (
        f"{part} is not served, since MACHINE_LEARNING_BUILD is require and no engine could be built ({why}): "
        "set it to background to be served meanwhile, or restart the server to try again."
    )
