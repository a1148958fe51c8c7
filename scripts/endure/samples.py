"""What a server's process holds at quiet moments, and whether it grows.

Knows least squares, and that a slope of few samples has an error. Resident size alone does not tell a leak: the kernel
takes pages of files away and brings them back, and puts others into swap. So memory of the process' own, which only it
can give back, is counted beside it, wherever the kernel keeps it. Does not know what the server did meanwhile.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from scripts.endure.row import Row

PER = 10_000  # requests that a slope is told for
MOST_MB = 1.0  # per 10,000 requests
SETTLES_MB = 15.0  # that a miniature may take beside: it ends before all caches are filled


@dataclass(frozen=True, slots=True)
class Sample:
    """What was held after so many requests: bytes that are resident, bytes of its own, open files, threads."""

    requests: int
    resident: int
    own: int
    files: int
    threads: int


@dataclass(frozen=True, slots=True)
class Slope:
    """Megabytes of 10^6 bytes that were added per 10,000 requests, and the standard error of that."""

    mb: float
    error: float


def sample(process: psutil.Process, requests: int) -> Sample:
    """Return what a process holds now."""
    with process.oneshot():
        own = own_bytes(Path(f"/proc/{process.pid}/status"))
        return Sample(requests, process.memory_info().rss, own, process.num_fds(), process.num_threads())


def own_bytes(status: Path) -> int:
    """Return the anonymous bytes of a process, resident or in swap."""
    fields = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines() if ":" in line)
    return sum(int(fields[name].split()[0]) for name in ("RssAnon", "VmSwap")) * 1024


def slope(requests: Sequence[int], held: Sequence[int]) -> Slope:
    """Return the slope of bytes over requests by least squares; raises ValueError for less than three samples."""
    if len(requests) < 3:
        raise ValueError(f"a slope of {len(requests)} samples says nothing: let it run for longer")
    at = np.array(requests, np.float64) / PER
    mb = np.array(held, np.float64) / 1e6
    off = at - at.mean()
    spread = float(off @ off)
    found = float(off @ mb) / spread
    left = mb - mb.mean() - found * off
    return Slope(found, math.sqrt(float(left @ left) / (len(requests) - 2) / spread))


def held(part: str, found: Sequence[Sample], warm: int, peak: int, *, short: bool) -> list[Row]:
    """Return rows of `part`: whether memory, open files and threads stayed after the `warm` first samples.

    Memory may grow by MOST_MB, in a miniature by SETTLES_MB in all beside that. `peak` is in bytes.
    """
    after = found[warm:]
    return [
        _flat(
            part, "resident size", after, [one.resident for one in after], f", at most {peak / 1e6:.0f} MB", short=short
        ),
        _flat(part, "memory of its own, resident or swapped", after, [one.own for one in after], short=short),
        _constant(part, "open files", [one.files for one in after]),
        _constant(part, "threads", [one.threads for one in after]),
    ]


def _flat(part: str, what: str, after: Sequence[Sample], held: Sequence[int], most: str = "", *, short: bool) -> Row:
    grown = slope([one.requests for one in after], held)
    span = (after[-1].requests - after[0].requests) / PER
    limit = MOST_MB + (SETTLES_MB / span if short else 0.0)
    seen = (
        f"{grown.mb:+.2f} ± {grown.error:.2f} MB per {PER:,} requests, limit {limit:.2f}; "
        f"from {held[0] / 1e6:.0f} to {held[-1] / 1e6:.0f} MB{most}"
    )
    return Row(part, f"{what} at quiet moments after warm-up", len(after), 0, int(grown.mb > limit), seen)


def _constant(part: str, what: str, numbers: Sequence[int]) -> Row:
    changes = sum(one != numbers[0] for one in numbers)
    seen = f"{min(numbers)} to {max(numbers)}" if changes else f"always {numbers[0]}"
    return Row(part, f"{what} at quiet moments after warm-up", len(numbers), 0, changes, seen)
