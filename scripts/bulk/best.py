"""The nearest photos of an index, read group by group: memory is that of one group, whatever the size of the index.

Equal files are one match. Knows neither models nor what is searched for: a vector comes in.
"""

import heapq
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.bulk.index import ROWS
from scripts.bulk.table import About, Vector

COPIES = 10  # of one file, whose paths are kept
_COLUMNS = ["path", "digest", "width", "height", "embedding"]
# Two copies of a file may have ridden in batches of different sizes, which moves a score a little.
_NOISE = 1e-3


@dataclass(slots=True)
class Match:
    """One photo: the cosine of its embedding with what is searched for, where it lies, and its copies."""

    score: float
    path: str
    width: int
    height: int
    copies: int = 0
    also: list[str] = field(default_factory=list)  # paths of the first of them


def nearest(file: Any, about: About, wanted: Vector, top: int) -> list[Match]:
    """Return the `top` photos of an index with the highest cosine to `wanted` (dim,), a unit vector; the best first."""
    best: dict[bytes, Match] = {}
    for batch in file.iter_batches(ROWS, columns=_COLUMNS):
        whole = batch.filter(batch.column("embedding").is_valid())
        vectors: NDArray[np.float32] = whole.column("embedding").flatten().to_numpy().reshape(-1, about.dim)
        scores = vectors @ wanted
        least = min(match.score for match in best.values()) - _NOISE if len(best) >= top else -np.inf
        near = np.flatnonzero(scores >= least)
        rows = whole.take(near).drop_columns(["embedding"]).to_pylist()
        for score, row in zip(scores[near].tolist(), rows, strict=True):
            _add(best, score, row)
        best = dict(heapq.nlargest(top, best.items(), key=lambda item: item[1].score))
    return list(best.values())


def _add(best: dict[bytes, Match], score: float, row: dict[str, Any]) -> None:
    match = best.get(row["digest"])
    if match is None:
        best[row["digest"]] = Match(score, row["path"], row["width"], row["height"])
        return
    match.copies += 1
    if len(match.also) < COPIES:
        match.also.append(row["path"])
