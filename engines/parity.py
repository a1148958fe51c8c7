"""The gate: no engine is used that does not compute what eager float32 computes.

Knows what "the same" means, as numbers, for networks that turn rows into vectors and for a detector of faces. Does not
know how engines are made, nor what the rows are: inputs, expected outputs and engine come in from outside.

A cosine alone says nothing about a network whose outputs lie close together: any two of them pass. So the error is also
held against the spread of the network's own outputs, and a retrieval among them must keep its ranking.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engines.engine import Precision

Run = Callable[[Tensor], Tensor]
Vectors = NDArray[np.float64]
Boxes = NDArray[np.float32]

LOWEST_OVERLAP = 0.98  # intersection over union of a face's box with that of eager float32
# What the score of a face may differ by: clients ask for faces above a score of their choice.
SCORES: dict[Precision, float] = {"float32": 0.001, "bfloat16": 0.02, "float16": 0.02, "int8": 0.05}


@dataclass(frozen=True, slots=True)
class Limits:
    """What an engine of some precision must keep.

    `cosine` is the lowest to eager float32, `error` the mean distance to it over the mean distance between different
    inputs, `same` the lowest cosine of one row to itself in another batch, `length` by how much, relatively, a row may
    be longer or shorter than eager float32's, which no cosine shows.
    """

    cosine: float
    error: float
    same: float
    length: float


LIMITS: dict[Precision, Limits] = {
    "float32": Limits(cosine=0.9999, error=0.005, same=0.99999, length=0.001),
    "bfloat16": Limits(cosine=0.999, error=0.05, same=0.9999, length=0.02),
    "float16": Limits(cosine=0.999, error=0.05, same=0.9999, length=0.02),
    "int8": Limits(cosine=0.999, error=0.1, same=0.9999, length=0.02),
}


@dataclass(frozen=True, slots=True)
class Report:
    """What was measured of an engine, and the sentences that say why it may not be used: none if it passed.

    Of a detector `lowest_cosine` is the lowest overlap of boxes, and `error_over_spread` the largest difference of
    scores.
    """

    lowest_cosine: float
    error_over_spread: float
    lowest_same: float
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether the engine may be used."""
        return not self.failures


def worst(reports: Mapping[str, Report]) -> Report:
    """Return what holds of all `reports`; the failures say which of them, by its name."""
    return Report(
        min(report.lowest_cosine for report in reports.values()),
        max(report.error_over_spread for report in reports.values()),
        min(report.lowest_same for report in reports.values()),
        tuple(f"{name}: {failure}" for name, report in reports.items() for failure in report.failures),
    )


def examine(expected: Tensor, engine: Run, inputs: Tensor, buckets: Sequence[int], precision: Precision) -> Report:
    """Hold `engine` against `expected` (N, dim), what eager float32 says to `inputs` (N, …), at least 4 different ones.

    The engine takes any number of rows up to `buckets[-1]`, padded or not. It sees the inputs one by one, in full
    batches of every bucket, in odd batches, and beside copies of themselves.
    """
    if len(inputs) < 4:
        raise ValueError(f"{len(inputs)} inputs are too few to tell outputs apart: give at least 4 different ones")
    limits = LIMITS[precision]
    right = _rows(expected)
    if not np.isfinite(right).all():
        return Report(0.0, np.inf, 0.0, ("eager float32 itself gives no finite numbers",))
    alone = _in_batches(engine, inputs, 1)
    if alone.shape != right.shape:
        return Report(0.0, np.inf, 0.0, (f"it returns {alone.shape} where {right.shape} is expected",))
    odd = {3, buckets[-1] - 1}
    sizes = sorted(size for size in {*buckets, *odd} if 1 < size <= buckets[-1])
    batched = {size: _in_batches(engine, inputs, size) for size in sizes}
    equal = {size: _rows(engine(inputs[:1].expand(size, *inputs.shape[1:]))) for size in sizes}
    everything = [alone, *batched.values(), *equal.values()]
    if not all(np.isfinite(vectors).all() for vectors in everything):
        return Report(0.0, np.inf, 0.0, ("its outputs are not all finite numbers",))

    spread = _spread(right)
    answers = {1: alone, **batched}
    lowest = min(float(_cosines(vectors, _repeated(right, len(vectors))).min()) for vectors in answers.values())
    error = max(_distance(vectors, right) for vectors in answers.values()) / spread
    longest = max(_stretch(vectors, _repeated(right, len(vectors))) for vectors in answers.values())
    batch_same = {
        size: float(_cosines(vectors, _repeated(alone, len(vectors))).min()) for size, vectors in batched.items()
    }
    row_same = {size: float(_cosines(vectors, alone[:1]).min()) for size, vectors in equal.items()}
    failures = []
    if lowest < limits.cosine:
        failures.append(f"its lowest cosine to eager float32 is {lowest:.6f}, at least {limits.cosine} is wanted")
    if error > limits.error:
        failures.append(f"its error is {error:.4f} of the spread of outputs, at most {limits.error} is allowed")
    if longest > limits.length:
        failures.append(
            f"a row differs by {longest:.4f} in length from eager float32's, at most {limits.length} is allowed"
        )
    failures += [
        f"a row in a batch of {size} has cosine {same:.6f} to itself alone, at least {limits.same} is wanted"
        for size, same in batch_same.items()
        if same < limits.same
    ]
    failures += [
        f"equal rows of a batch of {size} differ: cosine {same:.6f}, at least {limits.same} is wanted"
        for size, same in row_same.items()
        if same < limits.same
    ]
    margin = 4 * limits.error * spread  # twice the error allowed to each of both that are compared
    changed = [size for size, vectors in answers.items() if not ranks_alike(vectors[: len(right)], right, margin)]
    failures += [f"in batches of {size} another output is nearer than in eager float32" for size in changed]
    return Report(lowest, error, min([*batch_same.values(), *row_same.values(), 1.0]), tuple(failures))


def ranks_alike(vectors: Vectors, expected: Vectors, margin: float) -> bool:
    """Whether a search with each row of `vectors` (N, dim) among all of them ranks as one among `expected` does.

    Two found rows may change places only if their distances to the searched one differ by less than `margin`.
    """
    right = _distances(expected, expected)
    found = _distances(vectors, vectors)
    clearly_nearer = right[:, :, None] + margin < right[:, None, :]  # (query, i, j): i is nearer than j
    return bool((found[:, :, None] < found[:, None, :])[clearly_nearer].all())


def examine_faces(
    expected: Sequence[tuple[Boxes, Boxes]],
    alone: Sequence[tuple[Boxes, Boxes]],
    together: Sequence[tuple[Boxes, Boxes]],
    precision: Precision,
) -> Report:
    """Hold a detector against `expected`, boxes (N, 4) and scores (N,) of each picture by eager float32.

    `alone` is what it finds in the pictures one by one, `together` in one batch: the same faces, at the same places,
    with the same scores.
    """
    failures = []
    overlaps, differences, same = [1.0], [0.0], [1.0]
    for k, ((boxes, scores), (own, own_scores), (batched, batch_scores)) in enumerate(
        zip(expected, alone, together, strict=True), 1
    ):
        if not len(boxes) == len(own) == len(batched):
            failures.append(f"picture {k} has {len(boxes)} faces, {len(own)} were found, {len(batched)} in a batch")
            continue
        if not len(boxes):
            continue
        pairs = _overlaps(boxes, own)
        best = pairs.argmax(axis=1)
        if len(set(best.tolist())) < len(boxes):
            failures.append(f"in picture {k} two faces became one")
        overlaps.append(float(pairs.max(axis=1).min()))
        twins = _overlaps(boxes, batched).argmax(axis=1)
        differences += [float(np.abs(scores - found).max()) for found in (own_scores[best], batch_scores[twins])]
        same.append(float(_overlaps(own, batched).max(axis=1).min()))
    # NumPy's min and max are NaN if one of them is, and then no comparison is true.
    overlap, twin, difference = float(np.min(overlaps)), float(np.min(same)), float(np.max(differences))
    if not overlap >= LOWEST_OVERLAP:
        failures.append(f"a box overlaps that of eager float32 by {overlap:.4f}, {LOWEST_OVERLAP} is wanted")
    if not twin >= LOWEST_OVERLAP:
        failures.append(f"a box overlaps itself in a batch by {twin:.4f}, {LOWEST_OVERLAP} is wanted")
    if not difference <= SCORES[precision]:
        failures.append(f"a score differs by {difference:.4f} from eager float32's, at most {SCORES[precision]} may")
    return Report(overlap, difference, twin, tuple(failures))


def _stretch(vectors: Vectors, right: Vectors) -> float:
    """Return by how much, relatively, the lengths of rows differ at most."""
    lengths = np.linalg.norm(right, axis=1)
    return float((np.abs(np.linalg.norm(vectors, axis=1) - lengths) / np.maximum(lengths, 1e-12)).max())


def _in_batches(run: Run, inputs: Tensor, size: int) -> Vectors:
    """Return the rows of `inputs` run in full batches of `size`; the last one is filled up from the first inputs."""
    count = -(-len(inputs) // size) * size
    order = torch.arange(count) % len(inputs)
    return np.concatenate([_rows(run(inputs[order[i : i + size]])) for i in range(0, count, size)])


def _repeated(vectors: Vectors, count: int) -> Vectors:
    return vectors[np.arange(count) % len(vectors)]


def _rows(output: Tensor) -> Vectors:
    return output.detach().to("cpu", torch.float64).numpy()


def _cosines(a: Vectors, b: Vectors) -> Vectors:
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines: Vectors = (a * b).sum(axis=1) / np.maximum(norms, np.finfo(np.float64).tiny)
    return cosines


def _distance(vectors: Vectors, expected: Vectors) -> float:
    return float(np.linalg.norm(vectors - _repeated(expected, len(vectors)), axis=1).mean())


def _spread(vectors: Vectors) -> float:
    """Return the mean distance between different rows."""
    count = len(vectors)
    return max(float(_distances(vectors, vectors).sum() / (count * (count - 1))), float(np.finfo(np.float64).tiny))


def _distances(a: Vectors, b: Vectors) -> Vectors:
    distances: Vectors = np.linalg.norm(a[:, None] - b[None], axis=2)
    return distances


def _overlaps(a: Boxes, b: Boxes) -> NDArray[np.float64]:
    """Return the intersection over union of each box of `a` (N, 4) with each of `b` (M, 4), (N, M)."""
    a, b = a[:, None].astype(np.float64), b[None].astype(np.float64)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = np.maximum(sides, 0).prod(axis=2)
    areas = (a[..., 2:] - a[..., :2]).prod(axis=2) + (b[..., 2:] - b[..., :2]).prod(axis=2)
    overlaps: NDArray[np.float64] = shared / (areas - shared)
    return overlaps
