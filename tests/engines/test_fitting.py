"""A batch that does not fit is cut until it does, the size is kept, and nothing of the failure stays behind."""

import gc
import logging
import weakref

import pytest
import torch
from torch import Tensor

from engines import fitting
from engines.engine import BackendName, Engine, Precision
from engines.errors import OutOfMemory
from engines.fitting import Fitting

BUCKETS = (1, 2, 4, 8, 16)
PYTORCH = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


class Small:
    """Sums rows, in the same buffer every time, and has memory for `numbers` numbers."""

    backend: BackendName = "eager"
    precision: Precision = "float32"
    device = torch.device("cpu")

    def __init__(self, numbers: int, error: RuntimeError = PYTORCH) -> None:
        self.numbers = numbers
        self.error = error
        self.calls: list[int] = []
        self.activations: list[weakref.ref[Tensor]] = []
        self._buffer = torch.zeros(BUCKETS[-1], 1)

    def __call__(self, batch: Tensor) -> Tensor:
        self.calls.append(len(batch))
        activation = batch * 2
        self.activations.append(weakref.ref(activation))
        if batch.numel() > self.numbers:
            raise type(self.error)(*self.error.args)
        output = self._buffer[: len(batch)]
        output.copy_(activation.sum(1, keepdim=True))
        return output


def batch(rows: int, width: int = 2) -> Tensor:
    return torch.arange(rows * width, dtype=torch.float32).view(rows, width)


def doubled(rows: Tensor) -> list[float]:
    return [2 * float(row.sum()) for row in rows]


def test_what_fits_runs_at_once_in_its_bucket() -> None:
    engine = Small(32)
    output = Fitting(engine, BUCKETS)(batch(5))
    assert output[:, 0].tolist() == doubled(batch(5))
    assert engine.calls == [8]


def test_what_does_not_fit_is_halved_until_it_does_and_no_row_is_lost() -> None:
    engine = Small(8)  # four rows of two
    output = Fitting(engine, BUCKETS)(batch(16))
    assert engine.calls == [16, 8, 4, 4, 4, 4]
    assert output[:, 0].tolist() == doubled(batch(16))


def test_the_size_that_fits_is_remembered_for_rows_of_that_shape_only() -> None:
    engine = Small(8)
    fitted = Fitting(engine, BUCKETS)
    fitted(batch(16))
    engine.calls.clear()
    fitted(batch(16))
    assert engine.calls == [4, 4, 4, 4]
    engine.calls.clear()
    fitted(batch(8, width=1))
    assert engine.calls == [8]


def test_a_batch_above_the_largest_bucket_is_cut_and_the_rest_padded() -> None:
    engine = Small(1000)
    output = Fitting(engine, BUCKETS)(batch(19))
    assert engine.calls == [16, 4]
    assert output[:, 0].tolist() == doubled(batch(19))


def test_one_row_that_does_not_fit_is_an_error_that_says_what_to_do_and_does_not_last() -> None:
    engine = Small(4)
    fitted = Fitting(engine, BUCKETS)
    with pytest.raises(OutOfMemory, match="no memory left on cpu for one input of 5: load fewer models") as told:
        fitted(batch(4, width=5))
    assert engine.calls == [4, 2, 1]
    assert told.value.__context__ is None, "the chain would hold what was computed"
    assert fitted(batch(2))[:, 0].tolist() == doubled(batch(2))
    engine.numbers = 100
    assert fitted(batch(4, width=5))[:, 0].tolist() == doubled(batch(4, width=5))


def test_nothing_that_a_failed_attempt_computed_is_alive_when_the_next_one_begins() -> None:
    alive: list[int] = []

    class Watching(Small):
        def __call__(self, batch: Tensor) -> Tensor:
            alive.append(sum(activation() is not None for activation in self.activations))
            return super().__call__(batch)

    Fitting(Watching(8), BUCKETS)(batch(16))
    assert len(alive) == 6
    assert not any(alive)


def test_the_memory_of_a_failed_attempt_is_given_back_before_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Small(8)
    released: list[int] = []
    monkeypatch.setattr("engines.memory.release", lambda: released.append(len(engine.calls)))
    Fitting(engine, BUCKETS)(batch(16))
    assert released == [1, 2]


@pytest.mark.parametrize(
    "message", ["CUDA error: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"]
)
def test_the_ways_in_which_other_libraries_say_it_are_known(message: str) -> None:
    engine = Small(8, RuntimeError(message))
    assert Fitting(engine, BUCKETS)(batch(8))[:, 0].tolist() == doubled(batch(8))
    assert engine.calls == [8, 4, 4]


def test_an_error_that_does_not_say_what_it_was_counts_if_the_allocator_refused_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = Small(8, RuntimeError("run_func_(...) API call failed at model_container_runner.cpp, line 144"))
    monkeypatch.setattr(fitting, "_refusals", lambda device: sum(rows > 4 for rows in engine.calls))
    assert Fitting(engine, BUCKETS)(batch(8))[:, 0].tolist() == doubled(batch(8))
    assert engine.calls == [8, 4, 4]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (PYTORCH, True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_running_out_of_memory_is_told_from_other_errors(error: RuntimeError, expected: bool) -> None:
    assert fitting.is_out_of_memory(error) is expected


def test_any_other_error_is_passed_on_and_changes_nothing() -> None:
    engine = Small(8, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    fitted = Fitting(engine, BUCKETS)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        fitted(batch(8))
    engine.numbers = 100
    engine.calls.clear()
    fitted(batch(8))
    assert engine.calls == [8]


def test_each_new_limit_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    fitted = Fitting(Small(8), BUCKETS)
    with caplog.at_level(logging.WARNING):
        fitted(batch(8))
        fitted(batch(8))
    (record,) = caplog.records
    assert "8 rows of 2 do not fit into the memory of cpu" in record.getMessage()
    assert "4 at a time" in record.getMessage()


def test_it_is_an_engine_itself() -> None:
    fitted: Engine = Fitting(Small(8), BUCKETS)
    assert (fitted.backend, fitted.precision, fitted.device) == ("eager", "float32", torch.device("cpu"))
    assert gc.isenabled()
