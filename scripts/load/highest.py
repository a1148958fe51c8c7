"""The highest load within a bound of latency: which numbers of users to try, and what came of each.

Doubles the users until the bound is broken, then halves the gap between the most that held it and the fewest that did
not. Knows no HTTP and no clock.
"""

from dataclasses import asdict, dataclass
from typing import Any

GAP = 16  # the search ends when the two are so close: a sixteenth of the lower one, at least one user


@dataclass(frozen=True, slots=True)
class Step:
    """What so many users got: answers per second, their latency in milliseconds, and how many requests failed.

    `late_ms` is what the percentile that is bounded took; both are rounded as Locust does, to two digits.
    """

    users: int
    per_s: float
    median_ms: float
    late_ms: float
    failures: int


class Search:
    """Tries numbers of users, beginning with one."""

    def __init__(self, within_ms: float, most: int) -> None:
        """A step holds the bound if it had answers, none of them wrong or missing, and was not later than that."""
        self.steps: list[Step] = []
        self._within_ms = within_ms
        self._most = most

    def users(self) -> int | None:
        """Return how many users to try next, None if the search is over."""
        good = max((step.users for step in self.steps if self.holds(step)), default=0)
        bad = min((step.users for step in self.steps if not self.holds(step)), default=0)
        if not bad:
            return min(2 * good or 1, self._most) if good < self._most else None
        return (good + bad) // 2 if bad - good > max(1, good // GAP) else None

    def add(self, step: Step) -> None:
        """Take note of what came of a number of users."""
        self.steps.append(step)

    def holds(self, step: Step) -> bool:
        """Return whether the bound was held."""
        return step.per_s > 0 and not step.failures and step.late_ms <= self._within_ms

    def best(self) -> Step | None:
        """Return the step with the most users that held the bound, None if not even one user's requests did."""
        return max((step for step in self.steps if self.holds(step)), key=lambda step: step.users, default=None)

    def sentence(self) -> str:
        """Return the result in words."""
        best = self.best()
        if best is None:
            return f"Not even one user is answered within {self._within_ms:g} ms: allow more, or take smaller pictures."
        more = " These are all the users that were allowed." if best.users == self._most else ""
        return (
            f"The highest load within {self._within_ms:g} ms: {best.users} users at a time, {best.per_s:.1f} "
            f"requests/s, median {best.median_ms:g} ms.{more}"
        )

    def report(self) -> dict[str, Any]:
        """Return the result and all steps for a program."""
        best = self.best()
        return {
            "within_ms": self._within_ms,
            "best": asdict(best) if best else None,
            "steps": [asdict(step) for step in self.steps],
        }
