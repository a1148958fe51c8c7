"""The gate lets a faithful engine pass and refuses every sort of broken one, with the reason."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from engines.engine import Precision
from engines.parity import LIMITS, examine, examine_faces

BUCKETS = (1, 2, 4, 8)
INPUTS = torch.randn(12, 16, generator=torch.Generator().manual_seed(1))
WEIGHTS = torch.randn(16, 32, generator=torch.Generator().manual_seed(2))


def reference(batch: Tensor) -> Tensor:
    return normalize(batch @ WEIGHTS, dim=1)


def noisy(scale: float) -> Callable[[Tensor], Tensor]:
    """Return an engine whose rows are off by a fixed amount that depends on the row alone."""

    def run(batch: Tensor) -> Tensor:
        exact = reference(batch)
        return normalize(exact + scale * torch.sin(1000 * exact), dim=1)

    return run


def one_wrong_row(batch: Tensor) -> Tensor:
    output = reference(batch)
    if len(output) > 2:
        output[2] = output[0]
    return output


def swapped_rows(batch: Tensor) -> Tensor:
    return reference(batch).flip(0)


def drift_with_batch_size(batch: Tensor) -> Tensor:
    output = reference(batch)
    return normalize(output + 0.004 * len(output) * torch.ones_like(output), dim=1)


def depends_on_position(batch: Tensor) -> Tensor:
    output = reference(batch)
    return normalize(output + 0.003 * torch.arange(len(output))[:, None], dim=1)


def too_long(batch: Tensor) -> Tensor:
    return reference(batch) * 1.245


def nan_in_full_batches(batch: Tensor) -> Tensor:
    output = reference(batch)
    if len(output) == BUCKETS[-1]:
        output[-1, 0] = float("nan")
    return output


def too_few_columns(batch: Tensor) -> Tensor:
    return reference(batch)[:, :-1]


def constant(batch: Tensor) -> Tensor:
    return reference(INPUTS[:1]).expand(len(batch), -1)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16", "int8"])
def test_a_faithful_engine_passes(precision: Precision) -> None:
    report = examine(reference(INPUTS), lambda batch: reference(batch.clone()), INPUTS, BUCKETS, precision)
    assert report.passed
    assert report.lowest_cosine > 0.999999
    assert report.error_over_spread < 1e-5


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        (one_wrong_row, "a row in a batch of 3"),
        (swapped_rows, "a row in a batch of 2"),
        (drift_with_batch_size, "a row in a batch of 8"),
        (depends_on_position, "equal rows of a batch of 8 differ"),
        (nan_in_full_batches, "finite"),
        (too_few_columns, "(12, 31)"),
        (constant, "nearer"),
        (noisy(0.05), "lowest cosine"),
        (too_long, "differs by 0.2450 in length"),
    ],
)
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_every_sort_of_broken_engine_is_refused(
    engine: Callable[[Tensor], Tensor], reason: str, precision: Precision
) -> None:
    report = examine(reference(INPUTS), engine, INPUTS, BUCKETS, precision)
    assert not report.passed
    assert any(reason in failure for failure in report.failures), report.failures


def test_an_error_that_half_precision_makes_is_too_much_for_float32_only() -> None:
    engine = noisy(0.006)
    assert not examine(reference(INPUTS), engine, INPUTS, BUCKETS, "float32").passed
    assert examine(reference(INPUTS), engine, INPUTS, BUCKETS, "bfloat16").passed


def test_outputs_that_lie_close_together_need_more_than_a_cosine() -> None:
    common = 300 * torch.ones(32)

    def degenerate(batch: Tensor) -> Tensor:
        return normalize(batch @ WEIGHTS + common, dim=1)

    def of_others(batch: Tensor) -> Tensor:
        return degenerate(batch.roll(1, 1))

    report = examine(degenerate(INPUTS), of_others, INPUTS, BUCKETS, "float32")
    assert report.lowest_cosine >= LIMITS["bfloat16"].cosine
    assert report.error_over_spread > 0.5
    assert not examine(degenerate(INPUTS), of_others, INPUTS, BUCKETS, "bfloat16").passed


def test_too_few_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 4"):
        examine(reference(INPUTS[:3]), reference, INPUTS[:3], BUCKETS, "float32")


BOXES = np.array([[10, 10, 60, 70], [100, 20, 140, 70]], dtype=np.float32)
SCORES = np.array([0.99, 0.8], dtype=np.float32)
Found = list[tuple[NDArray[np.float32], NDArray[np.float32]]]


def faces(boxes: NDArray[np.float32] = BOXES, scores: NDArray[np.float32] = SCORES) -> Found:
    return [(boxes, scores), (np.zeros((0, 4), np.float32), np.zeros(0, np.float32))]


def test_the_same_faces_pass_also_with_rounding() -> None:
    report = examine_faces(faces(), faces(BOXES + 0.1), faces(BOXES - 0.1), "float32")
    assert report.passed, report
    assert 0.98 <= report.lowest_cosine < 1


@pytest.mark.parametrize(
    ("alone", "together", "reason"),
    [
        (faces(BOXES[:1], SCORES[:1]), faces(), "picture 1 has 2 faces, 1 were found"),
        (faces(), faces(BOXES[:1], SCORES[:1]), "1 in a batch"),
        (faces(BOXES + 3), faces(), "a box overlaps that of eager float32"),
        (faces(), faces(BOXES + 3), "a box overlaps itself in a batch"),
        (faces(BOXES[[0, 0]]), faces(), "two faces became one"),
        (faces(scores=SCORES * np.float32(0.75)), faces(), "a score differs by 0.2475"),
        (faces(), faces(scores=SCORES * np.float32("nan")), "a score differs by nan"),
        (faces(BOXES * np.float32("nan")), faces(), "overlaps"),
    ],
)
def test_other_faces_are_refused(alone: Found, together: Found, reason: str) -> None:
    report = examine_faces(faces(), alone, together, "bfloat16")
    assert any(reason in failure for failure in report.failures), report.failures


def test_a_reference_that_is_no_number_lets_nothing_pass() -> None:
    broken = reference(INPUTS)
    broken[3] = float("nan")
    assert not examine(broken, lambda batch: torch.randn(len(batch), 32), INPUTS, BUCKETS, "bfloat16").passed
