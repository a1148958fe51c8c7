"""What a server's process holds at quiet moments, and whether it grows.

Knows least squares, and that a slope of few samples has an error. Does not know what the server did meanwhile.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import psutil

PER = 10_000  # requests that a slope is told for


@dataclass(frozen=True, slots=True)
class Sample:
    """What was held after so many requests: resident memory in bytes, open files, threads."""

    requests: int
    resident: int
    files: int
    threads: int


@dataclass(frozen=True, slots=True)
class Slope:
    """Megabytes of 10^6 bytes that resident memory grew per 10,000 requests, and the standard error of that."""

    mb: float
    error: float


def sample(process: psutil.Process, requests: int) -> Sample:
    """Return what a process holds now."""
    with process.oneshot():
        return Sample(requests, process.memory_info().rss, process.num_fds(), process.num_threads())


def slope(samples: Sequence[Sample]) -> Slope:
    """Return the slope of resident memory over requests by least squares; raises ValueError for less than three."""
    if len(samples) < 3:
        raise ValueError(f"a slope of {len(samples)} samples says nothing: let it run for longer")
    at = np.array([one.requests for one in samples], np.float64) / PER
    held = np.array([one.resident for one in samples], np.float64) / 1e6
    off = at - at.mean()
    spread = float(off @ off)
    mb = float(off @ held) / spread
    left = held - held.mean() - mb * off
    return Slope(mb, math.sqrt(float(left @ left) / (len(samples) - 2) / spread))
