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

PER = 10_000  # requests that a slope is told for


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
