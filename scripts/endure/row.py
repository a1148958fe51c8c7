"""One line of the endurance report: what was tried against a live server, how often, and what came of it.

Every part of the endurance run is a module beside this one with `async def rows(options: Options) -> list[Row]`. It
starts the servers that it needs, ends them, and returns what it counted. Knows nothing of how a part works.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Options:
    """How much of each part to run: all of it, or the miniature of every test run."""

    short: bool = False
    # Seeds what is random, so that a failure can be run again.
    seed: int = 0
    # How long the soak takes; 0 is an hour, of the miniature two minutes.
    seconds: float = 0


@dataclass(frozen=True, slots=True)
class Row:
    """What one trial counted."""

    part: str  # "images", "faults", "soak", "fairness", "limits"
    what: str  # what was tried, in a few words: "clients that hang up while the body is sent"
    tried: int  # inputs, faults or requests, as `what` says
    lost: int  # requests that were accepted and got no answer: 0 is promised
    wrong: int  # answers that were wrong, 5xx where none may be, crashes: 0 is promised
    seen: str = ""  # figures with their units: "p99 41 ms, limit 60 ms"

    @property
    def held(self) -> bool:
        """Whether the promise was kept."""
        return self.tried > 0 and self.lost == 0 and self.wrong == 0
