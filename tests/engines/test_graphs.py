"""Recordings are kept, replayed and given up as they should; a tape stands for CUDA."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from engines import graphs
from engines.engine import BackendName, Precision
from engines.graphs import Graphed, NoRoom, NotRecorded, Recording
from tests.engines.backends.small_networks import CPU, Free, spec_of

FREE: Free = ((0, 2, 6),)


def doubled(batch: Tensor) -> Tensor:
    return batch.float().sum(1, keepdim=True) * 2


class Doubling:
    """An engine that counts the batches that run as they are, and refuses those of floats."""

    backend: BackendName = "eager"
    precision: Precision = "float32"
    device = CPU

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, batch: Tensor) -> Tensor:
        if batch.is_floating_point():
            raise ValueError("whole numbers are wanted")
        self.runs += 1
        return doubled(batch)


@dataclass
class Tape:
    """Stands for CUDA: a recording computes into memory of its own, which the next replay overwrites."""

    engine: Doubling = field(default_factory=Doubling)
    made: list[torch.Size] = field(default_factory=list)
    replays: int = 0
    refusal: Callable[[torch.Size], NotRecorded | None] = lambda shape: None

    def __call__(self, batch: Tensor) -> Recording:
        inputs, output = batch.clone(), self.engine(batch)
        self.engine.runs -= 1
        self.made.append(batch.shape)
        if (error := self.refusal(batch.shape)) is not None:
            raise error

        def replay() -> None:
            self.replays += 1
            output.copy_(doubled(inputs))

        return Recording(inputs, output, replay)


def graphed(tape: Tape, free: Free = FREE) -> Graphed:
    return Graphed(tape.engine, spec_of(torch.zeros(2, 6, dtype=torch.int64), "float32", 4, free), tape)


def batch_of(rows: int, length: int, first: int = 0) -> Tensor:
    return torch.arange(first, first + rows * length).view(rows, length)


def test_a_shape_is_recorded_once_and_replayed() -> None:
    tape = Tape()
    engine = graphed(tape)
    batches = [batch_of(rows, length, first) for first in (0, 50) for rows in (1, 2, 4) for length in (3, 6)]
    outputs = [engine(batch) for batch in batches]
    assert len(tape.made) == len(set(tape.made)) == 6
    assert (tape.replays, tape.engine.runs) == (12, 0)
    # Compared at the end: what was handed out must not be overwritten by later replays.
    assert all(torch.equal(output, doubled(batch)) for output, batch in zip(outputs, batches, strict=True))


def test_rows_that_lie_otherwise_in_memory_are_the_same_rows() -> None:
    engine = graphed(Tape())
    batch = batch_of(6, 4).T
    assert torch.equal(engine(batch.contiguous()), doubled(batch))
    assert torch.equal(engine(batch), doubled(batch))


def test_sizes_between_the_buckets_run_as_they_are() -> None:
    tape = Tape()
    assert torch.equal(graphed(tape)(batch_of(3, 6)), doubled(batch_of(3, 6)))
    assert (tape.made, tape.engine.runs) == ([], 1)


def test_recordings_come_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MOST_RECORDINGS", 2)
    tape = Tape()
    engine = graphed(tape)
    for length in (2, 3, 4, 5, 2):
        assert torch.equal(engine(batch_of(4, length)), doubled(batch_of(4, length)))
    assert tape.made == [torch.Size([4, 2]), torch.Size([4, 3])]
    assert (tape.replays, tape.engine.runs) == (3, 2)


def test_a_shape_without_room_runs_as_it_is_and_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    tape = Tape(refusal=lambda shape: NoRoom("it needs more") if shape[0] == 2 else None)
    engine = graphed(tape)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert torch.equal(engine(batch_of(2, 6)), doubled(batch_of(2, 6)))
        assert torch.equal(engine(batch_of(4, 6)), doubled(batch_of(4, 6)))
    assert caplog.messages == ["network runs without a CUDA graph at (2, 6): it needs more"]
    assert tape.made == [torch.Size([2, 6]), torch.Size([4, 6])]
    assert (tape.replays, tape.engine.runs) == (1, 3)


def test_after_a_refusal_nothing_more_is_recorded_and_what_is_recorded_stays(caplog: pytest.LogCaptureFixture) -> None:
    tape = Tape(refusal=lambda shape: NotRecorded("it waits for the GPU") if shape[0] == 2 else None)
    engine = graphed(tape)
    with caplog.at_level(logging.WARNING):
        for rows in (1, 2, 4, 1, 2, 4):
            assert torch.equal(engine(batch_of(rows, 6)), doubled(batch_of(rows, 6)))
    assert caplog.messages == ["network runs without a CUDA graph at (2, 6): it waits for the GPU"]
    assert tape.made == [torch.Size([1, 6]), torch.Size([2, 6])]
    assert (tape.replays, tape.engine.runs) == (2, 4)


def test_what_the_engine_refuses_is_no_matter_of_recording() -> None:
    engine = graphed(Tape())
    engine(batch_of(2, 6))
    with pytest.raises(ValueError, match="whole numbers are wanted"):
        engine(batch_of(2, 6).float())
    assert torch.equal(engine(batch_of(2, 6)), doubled(batch_of(2, 6)))


def test_on_a_processor_an_engine_stays_as_it_is() -> None:
    engine = Doubling()
    assert graphs.recorded(engine, spec_of(torch.zeros(2, 6, dtype=torch.int64), "float32", 4)) is engine


@pytest.mark.parametrize(
    ("backend", "free"), [("tensorrt", ()), ("openvino", ()), ("eager", ((1, 13, 20), (2, 13, 20)))]
)
def test_what_is_not_recorded_on_a_gpu_either(backend: BackendName, free: Free) -> None:
    engine = Doubling()
    engine.backend, engine.device = backend, torch.device("cuda", 0)
    assert graphs.recorded(engine, spec_of(torch.zeros(2, 3, 20, 20), "float32", 4, free)) is engine
