"""On a GPU every engine says what eager float32 says on the processor, at every size, through the server's way."""

import pytest
import torch

from engines import parity
from engines.engine import BackendName, Precision
from tests.gpu.conftest import Make
from tests.gpu.networks import BUCKETS, CASES, picture_tower, through

pytestmark = pytest.mark.gpu

COMPILED: list[tuple[str, BackendName, Precision]] = [
    *((case, "inductor", "bfloat16") for case in CASES),
    ("visual", "inductor", "float32"),
    ("visual", "inductor", "float16"),
]
PLAIN: list[tuple[str, BackendName, Precision]] = [
    (case, "eager", precision) for case in CASES for precision in ("float32", "bfloat16", "float16")
]


@pytest.mark.parametrize(("case", "backend", "precision"), PLAIN + COMPILED)
def test_an_engine_passes_the_gate(case: str, backend: BackendName, precision: Precision, make: Make) -> None:
    run = through(make(case, backend, precision))
    for sample in CASES[case]().samples:
        report = parity.examine(sample.expected, run, sample.inputs, BUCKETS, precision)
        assert report.passed, report


def test_a_replayed_batch_gives_each_bucket_its_own_rows(make: Make) -> None:
    """Engines with CUDA graphs write all their answers to the same places."""
    engine = make("visual", "inductor", "bfloat16")
    inputs = picture_tower().samples[0].inputs
    answers = {}
    for turn in range(2):
        for size in BUCKETS:
            rows = torch.arange(size) % len(inputs)
            answers[turn, size] = (rows, engine(inputs[rows]))
    known = through(engine)(inputs)
    for rows, answer in answers.values():
        assert torch.allclose(answer.cpu(), known[rows], atol=0.02)


def test_float32_on_a_gpu_is_no_tensorfloat(make: Make) -> None:
    sample = CASES["recognition"]().samples[0]
    answer = through(make("recognition", "eager", "float32"))(sample.inputs)
    # TensorFloat-32 has the mantissa of float16, and is off by as much.
    assert float((answer - sample.expected).abs().max()) < 1e-4
