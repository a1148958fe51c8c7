"""The time from the start of a server to its first answer, and until its models are ready, in turn with the baseline.

Both sides of a CLIP model are preloaded, ours with built engines. /ping is asked twenty times a second meanwhile.
"""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from scripts.bench import served
from scripts.bench.ceiling import Ceiling
from scripts.bench.options import Options
from scripts.bench.record import Row, row
from scripts.bench.served import READY_S, Served
from scripts.bench.turns import Ended, in_turn

KINDS = ("visual", "textual")
PING_S = 0.05


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds from the start of the process to the first pong, from there to ready, and the longest without a pong."""

    ping: float
    ready: float
    gap: float


def measure(options: Options, ceiling: Ceiling) -> list[Row]:
    """Start each server in every round."""
    sides: dict[str, Callable[[], Start]] = {
        "ours": lambda: watch(served.facet(options, KINDS)),
        "baseline": lambda: watch(served.baseline(options, KINDS)),
    }
    sides["baseline"]()  # exports its networks, and brings files into memory as ours were by building
    with served.built(options, KINDS) as server:
        engine = server.engines()["visual"].engine
    found = in_turn("start", sides, options.rounds)
    tell_of = partial(row, "start", model=options.model, engine=engine)

    def both(name: str) -> list[list[float]]:
        return [[getattr(one, name) for one in each] for each in found.values()]

    return [
        tell_of("first /ping", "s", *both("ping"), goal="ours <= 1"),
        tell_of("longest without a /ping", "s", *both("gap"), goal="ours <= 1"),
        tell_of("ready, from the first /ping on", "s", *both("ready"), goal="ours <= 5"),
    ]


def watch(starting: closing[Served]) -> Start:
    """Return how a server started, and end it; raises Ended if it is never ready."""
    with starting as server:
        pongs: list[float] = []
        while time.perf_counter() - server.started < READY_S:
            due = time.perf_counter() + PING_S
            if server.get("/ping", timeout=READY_S) is not None:
                pongs.append(time.perf_counter())
                answer = server.get("/health/ready", timeout=READY_S)
                if answer is not None and answer[0] == 200:
                    ready = time.perf_counter()
                    gaps = [after - before for before, after in zip(pongs, [*pongs[1:], ready], strict=True)]
                    return Start(pongs[0] - server.started, ready - pongs[0], max(gaps))
            time.sleep(max(0.0, due - time.perf_counter()))
    raise Ended(f"the server was not ready after {READY_S:.0f} s")
