"""The shape of a load test for Locust: as many users as asked for, or a search for the most that are answered in time.

Knows Locust's statistics and how often it asks for the number of users. Which number to try next says highest.py.
"""

import json
import logging
import sys
import time
from argparse import Namespace
from dataclasses import dataclass

from locust import LoadTestShape
from locust.stats import StatsEntry, calculate_response_time_percentile, diff_response_time_dicts

from scripts.load.highest import Search, Step

log = logging.getLogger(__name__)

# After the number of users has changed, before what they get counts: a share of a step's length, and so many times the
# bound at least, since what was sent before has been answered by then.
SETTLE_SHARE = 0.25
SETTLE_BOUNDS = 2.0
ENOUGH = 5  # answers beyond the percentile that a step waits for, up to PATIENCE times its length
PATIENCE = 4
ROW = "{:>7} {:>12} {:>10} {:>10} {:>9}  {}\n"


@dataclass(frozen=True, slots=True)
class Seen:
    """What Locust had counted at a moment: requests, failures, and requests by milliseconds."""

    moment: float
    requests: int
    failures: int
    times: dict[int, int]

    @classmethod
    def of(cls, total: StatsEntry) -> "Seen":
        """Return what is counted now."""
        return cls(time.perf_counter(), total.num_requests, total.num_failures, dict(total.response_times))

    def step(self, users: int, since: "Seen", percentile: float) -> Step:
        """Return what `users` got since then."""
        times = diff_response_time_dicts(self.times, since.times)
        count = sum(times.values())
        return Step(
            users=users,
            per_s=(self.requests - since.requests) / (self.moment - since.moment),
            median_ms=calculate_response_time_percentile(times, count, 0.5),
            late_ms=calculate_response_time_percentile(times, count, percentile / 100),
            failures=self.failures - since.failures,
        )


class HighestLoad(LoadTestShape):
    """Searches for the most users that are answered in time; without --within-ms it does what Locust does by itself."""

    use_common_options = True

    def __init__(self) -> None:
        super().__init__()
        self.search: Search | None = None
        self._users = 0
        self._began: float | None = None  # when there was a first answer
        self._changed: float | None = None  # when the number of users last did
        self._before: Seen | None = None  # when what they get began to count

    def reset_time(self) -> None:
        """Begin anew."""
        super().reset_time()
        self.search, self._began, self._changed, self._before = None, None, None, None

    def tick(self) -> tuple[int, float] | None:
        """Return users and how many of them to start per second, None at the end; called about once per second."""
        environment = self.runner.environment  # type: ignore[union-attr]  # set before a test begins
        options = environment.parsed_options or Namespace()
        now = Seen.of(environment.stats.total)
        if self._began is None and now.requests:  # until then right answers are learnt, or models loaded
            self._began = self._changed = now.moment
        if options.within_ms <= 0:
            over = self._began is not None and options.run_time and now.moment - self._began >= options.run_time
            return None if over else (options.num_users or 1, options.spawn_rate or 1.0)
        if self.search is None:
            self.search = Search(options.within_ms, options.most_users)
        if self._began is not None and self._changed is not None:
            self._measure(self.search, self._changed, now, options)
        if self._changed is None:
            users = self.search.users()
            if users is None:
                log.info("%s", self.search.sentence())
                return None
            self._users, self._changed, self._before = users, time.perf_counter(), None
        return self._users, float(self._users)

    def _measure(self, search: Search, changed: float, now: Seen, options: Namespace) -> None:
        """Note what the present number of users gets, once there is enough to judge it by."""
        if self._before is None:
            settled = changed + max(SETTLE_SHARE * options.step_s, SETTLE_BOUNDS * options.within_ms / 1000)
            self._before = now if now.moment >= settled else None
            return
        seconds = now.moment - self._before.moment
        enough = now.requests - self._before.requests >= ENOUGH * 100 / max(1.0, 100 - options.percentile)
        if seconds >= options.step_s * (1 if enough else PATIENCE):
            step = now.step(self._users, self._before, options.percentile)
            search.add(step)
            self._changed = None
            word = "in time" if search.holds(step) else "too late, or failed"
            log.info("%d users: %.1f requests/s, %g ms: %s", step.users, step.per_s, step.late_ms, word)


def tell(shape: LoadTestShape | None) -> None:
    """Print what a search found, for a person and, in the last line, for a program; nothing if there was none."""
    if not isinstance(shape, HighestLoad) or shape.search is None or not shape.search.steps:
        return
    search = shape.search
    lines = [ROW.format("users", "requests/s", "median ms", "late ms", "failures", "")]
    for step in search.steps:
        word = "in time" if search.holds(step) else ""
        cells = (step.users, f"{step.per_s:.1f}", f"{step.median_ms:g}", f"{step.late_ms:g}", step.failures, word)
        lines.append(ROW.format(*cells))
    sys.stdout.write("".join(["\n", *lines, "\n", search.sentence(), "\n", json.dumps(search.report()), "\n"]))
