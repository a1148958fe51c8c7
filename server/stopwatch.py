"""Where the time of one request went: a list of intervals, each in one phase.

Knows the phases by name and the clock, time.perf_counter. Does not know what is done in a phase. Intervals are noted by
several threads and may overlap: a picture waits for its vector while its faces are looked for. So the time of a phase
is that in which anything of the request was in it, and the phases of such a request may add up to more than its whole.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

# read: the body, until it is understood. decode: bytes to pixels. prepare: pixels to crops and squares, texts to ids.
# wait: for a model to be loaded, for a thread, for room, in a queue. run: its batches on the device. write: the JSON.
Phase = Literal["read", "decode", "prepare", "wait", "run", "write"]
PHASES: tuple[Phase, ...] = get_args(Phase)


class Stopwatch:
    """Notes the intervals of one request, in seconds of time.perf_counter. Any thread may call it."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.intervals: list[tuple[Phase, float, float]] = []
        self.pixels = 0  # decoded for this request

    def note(self, phase: Phase, began: float, ended: float) -> None:
        """Note one interval."""
        self.intervals.append((phase, began, ended))

    @contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """Note the time of the block."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.note(phase, began, time.perf_counter())

    def rode(self, queued: float, began: float, ended: float) -> None:
        """Note what a queue tells of one item."""
        self.note("wait", queued, began)
        self.note("run", began, ended)

    def elapsed(self) -> float:
        """Return the seconds since the start."""
        return time.perf_counter() - self.started

    def seconds(self) -> dict[Phase, float]:
        """Return the seconds of each phase that there was, in the order of PHASES."""
        found: dict[Phase, list[tuple[float, float]]] = {}
        for phase, began, ended in self.intervals:
            found.setdefault(phase, []).append((began, ended))
        return {phase: _covered(found[phase]) for phase in PHASES if phase in found}


def _covered(intervals: list[tuple[float, float]]) -> float:
    """Return how many seconds lie within at least one of `intervals`."""
    total, until = 0.0, float("-inf")
    for began, ended in sorted(intervals):
        total += max(0.0, ended - max(began, until))
        until = max(until, ended)
    return total


def server_timing(seconds: dict[Phase, float], total: float) -> str:
    """Return the value of a Server-Timing header, in milliseconds: https://www.w3.org/TR/server-timing/."""
    parts = [f"{phase};dur={1000 * value:.1f}" for phase, value in seconds.items()]
    return ", ".join([*parts, f"total;dur={1000 * total:.1f}"])
