"""Where the time of one request went: a list of intervals, each in one phase.

Knows the phases by name and the clock, time.perf_counter. Does not know what is done in a phase. Intervals are noted by
several threads and may overlap: a picture waits for its vector while its faces are looked for. So the time of a phase
is that in which anything of the request was in it, and the phases of such a request may add up to more than its whole.
What has begun and not ended counts up to now: of a client who hangs up, most of the time is of that kind.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

# read: the body, until it is understood. decode: bytes to pixels. prepare: pixels to crops and squares, texts to ids.
# wait: for a model to be loaded, for a thread, for room, in a queue. run: its batches on the device. write: the JSON.
Phase = Literal["read", "decode", "prepare", "wait", "run", "write"]
PHASES: tuple[Phase, ...] = get_args(Phase)
Interval = tuple[Phase, float, float]  # when it began, and when it ended


class Stopwatch:
    """Notes the intervals of one request, in seconds of time.perf_counter. Any thread may call it."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.intervals: list[Interval] = []
        self.pixels = 0  # decoded for this request
        self._begun: set[Begun] = set()
        self._rides: set[Ride] = set()

    def note(self, phase: Phase, began: float, ended: float) -> None:
        """Note one interval."""
        self.intervals.append((phase, began, ended))

    @contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """Note the time of the block."""
        begun = self.begin(phase)
        try:
            yield
        finally:
            self.end(begun)

    def begin(self, phase: Phase) -> "Begun":
        """Return an interval that begins now, to be handed to `end`."""
        begun = Begun(phase, time.perf_counter())
        self._begun.add(begun)
        return begun

    def end(self, begun: "Begun") -> None:
        """Note an interval that ends now."""
        self.note(begun.phase, begun.at, time.perf_counter())
        self._begun.discard(begun)

    def ride(self) -> "Ride":
        """Return what a queue tells of one item that is queued now: a Rider, see observer.py."""
        ride = Ride(self)
        self._rides.add(ride)
        return ride

    def arrived(self, ride: "Ride", queued: float, began: float, ended: float) -> None:
        """Note the times of an item that has its result."""
        self.note("wait", queued, began)
        self.note("run", began, ended)
        self._rides.discard(ride)

    def elapsed(self) -> float:
        """Return the seconds since the start."""
        return time.perf_counter() - self.started

    def so_far(self) -> list[Interval]:
        """Return all intervals, with those that have not ended as if they ended now."""
        now = time.perf_counter()
        begun: list[Interval] = [(one.phase, one.at, now) for one in list(self._begun)]
        rides = [interval for ride in list(self._rides) for interval in ride.until(now)]
        return [*self.intervals, *begun, *rides]

    def seconds(self) -> dict[Phase, float]:
        """Return the seconds of each phase that there was so far, in the order of PHASES."""
        found: dict[Phase, list[tuple[float, float]]] = {}
        for phase, began, ended in self.so_far():
            found.setdefault(phase, []).append((began, ended))
        return {phase: _covered(found[phase]) for phase in PHASES if phase in found}


@dataclass(frozen=True, slots=True, eq=False)
class Begun:
    """An interval that has not ended."""

    phase: Phase
    at: float


class Ride:
    """One item of a request in a queue, until its result is there."""

    def __init__(self, watch: Stopwatch) -> None:
        self.queued = time.perf_counter()
        self._watch = watch
        self._began: float | None = None

    def began(self, at: float) -> None:
        """Note that its batch is on the device from now on."""
        self._began = at

    def rode(self, queued: float, began: float, ended: float) -> None:
        """Note what came of it."""
        self._watch.arrived(self, queued, began, ended)

    def until(self, now: float) -> list[Interval]:
        """Return its intervals so far."""
        if (began := self._began) is None:
            return [("wait", self.queued, now)]
        return [("wait", self.queued, began), ("run", began, max(began, now))]  # it may have begun since `now` was read


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
