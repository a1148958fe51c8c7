"""The gate: no engine is used that does not compute what eager float32 computes.

Knows what "the same" means, as numbers, for networks that turn rows into vectors. Does not know how engines are made,
nor what the rows are: inputs, reference and engine come in from outside.

A cosine alone says nothing about a network whose outputs lie close together: any two of them pass. So the error is also
held against the spread of the network's own outputs, and a retrieval among them must keep its ranking.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Precision = Literal["float32", "bfloat16", "float16", "int8"]
Run = Callable[[Tensor], Tensor]
Vectors = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Limits:
    """What an engine of some precision must keep.

    `cosine` is the lowest to eager float32, `error` the mean distance to it over the mean distance between different
    inputs, `same` the lowest cosine of one row to itself in another batch.
    """

    cosine: float
    error: float
    same: float


LIMITS: dict[Precision, Limits] = {
    "float32": Limits(cosine=0.9999, error=0.005, same=0.99999),
    "bfloat16": Limits(cosine=0.999, error=0.05, same=0.9999),
    "float16": Limits(cosine=0.999, error=0.05, same=0.9999),
    "int8": Limits(cosine=0.999, error=0.1, same=0.9999),
}


@dataclass(frozen=True, slots=True)
class Report:
    """What was measured of an engine, and the sentences that say why it may not be used: none if it passed."""

    lowest_cosine: float
    error_over_spread: float
    lowest_same: float
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether the engine may be used."""
        return not self.failures


def examine(reference: Run, engine: Run, inputs: Tensor, buckets: Sequence[int], precision: Precision) -> Report:
    """Hold `engine` against `reference` (eager float32) on `inputs` (N, …), N different rows, at least 4.

    Both take at most `buckets[-1]` rows and return (rows, dim). The engine sees the rows one by one, in every bucket,
    in an odd batch and beside copies of themselves.
    """
    if len(inputs) < 4:
        raise ValueError(f"{len(inputs)} inputs are too few to tell outputs apart: give at least 4 different ones")
    limits = LIMITS[precision]
    expected = _in_batches(reference, inputs, 1)
    alone = _in_batches(engine, inputs, 1)
    if alone.shape != expected.shape:
        return Report(0.0, np.inf, 0.0, (f"it returns {alone.shape} where {expected.shape} is expected",))
    sizes = sorted({*buckets, *(size for size in (3,) if size <= buckets[-1])} - {1})
    batched = {size: _in_batches(engine, inputs, size) for size in sizes}
    equal = {size: _rows(engine(inputs[:1].expand(size, *inputs.shape[1:]))) for size in sizes}
    everything = [alone, *batched.values(), *equal.values()]
    if not all(np.isfinite(vectors).all() for vectors in everything):
        return Report(0.0, np.inf, 0.0, ("its outputs are not all finite numbers",))

    lowest = min(float(_cosines(vectors, expected).min()) for vectors in (alone, *batched.values()))
    error = max(_error_over_spread(vectors, expected) for vectors in (alone, *batched.values()))
    batch_same = {size: float(_cosines(vectors, alone).min()) for size, vectors in batched.items()}
    row_same = {size: float(_cosines(vectors, alone[:1]).min()) for size, vectors in equal.items()}
    failures = []
    if lowest < limits.cosine:
        failures.append(f"its lowest cosine to eager float32 is {lowest:.6f}, at least {limits.cosine} is wanted")
    if error > limits.error:
        failures.append(f"its error is {error:.4f} of the spread of outputs, at most {limits.error} is allowed")
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
    changed = [size for size, vectors in {1: alone, **batched}.items() if not _ranks_alike(vectors, expected)]
    failures += [f"in batches of {size} another output is nearest than in eager float32" for size in changed]
    return Report(lowest, error, min([*batch_same.values(), *row_same.values(), 1.0]), tuple(failures))


def _in_batches(run: Run, inputs: Tensor, size: int) -> Vectors:
    return np.concatenate([_rows(run(inputs[i : i + size])) for i in range(0, len(inputs), size)])


def _rows(output: Tensor) -> Vectors:
    return output.detach().to("cpu", torch.float64).numpy()


def _cosines(a: Vectors, b: Vectors) -> Vectors:
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines: Vectors = (a * b).sum(axis=1) / np.maximum(norms, np.finfo(np.float64).tiny)
    return cosines


def _error_over_spread(vectors: Vectors, expected: Vectors) -> float:
    apart = np.linalg.norm(expected[:, None] - expected[None], axis=2)
    spread = apart.sum() / (len(expected) * (len(expected) - 1))
    return float(np.linalg.norm(vectors - expected, axis=1).mean() / max(spread, np.finfo(np.float64).tiny))


def _ranks_alike(vectors: Vectors, expected: Vectors) -> bool:
    """Whether each row of `vectors` finds its own row of `expected` first."""
    apart = np.linalg.norm(vectors[:, None] - expected[None], axis=2)
    return bool((apart.argmin(axis=1) == np.arange(len(expected))).all())
