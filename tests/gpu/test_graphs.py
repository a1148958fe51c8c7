"""On a GPU a replay is the run, bit by bit, and what cannot be recorded leaves no trace."""

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engines import graphs, memory
from engines.engine import BackendName, Engine, Layout, Network, Precision
from tests.gpu.conftest import new_engine, plain_engine
from tests.gpu.networks import BUCKETS, CASES
from tests.gpu.test_fitting import MIB, Hungry, only

pytestmark = pytest.mark.gpu

KINDS: list[tuple[str, BackendName, Precision]] = [
    *((case, "eager", "bfloat16") for case in CASES),
    ("visual", "eager", "float32"),
    ("visual", "torchscript", "bfloat16"),
    *((case, "inductor", "bfloat16") for case in CASES),
]


class Waiting:
    """Looks at a sum on the processor, which cannot be recorded."""

    backend: BackendName = "eager"
    precision: Precision = "float32"

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, batch: Tensor) -> Tensor:
        rows = batch.to(self.device)
        return rows.sum(1, keepdim=True) * (2 if rows.sum().item() > 0 else 1)


def graphed(engine: Engine) -> Engine:
    """Return `engine`, of rows of two floats, as the server loads it."""
    network = Network("hungry", torch.nn.Identity, (2,), torch.float32, example=torch.zeros(2, 2))
    return graphs.recorded(engine, network.spec("float32", engine.device, Layout(), BUCKETS))


def rows(count: int, device: torch.device) -> Tensor:
    return torch.arange(2 * count, dtype=torch.float32, device=device).view(count, 2) + 1


@pytest.mark.parametrize(("case", "backend", "precision"), KINDS)
def test_a_replay_equals_the_run_bit_by_bit(
    case: str, backend: BackendName, precision: Precision, device: torch.device, tmp_path: Path
) -> None:
    plain, spec = plain_engine(case, backend, precision, device, tmp_path)
    replayed = graphs.recorded(plain, spec)
    batches = [
        sample.inputs[torch.arange(size) % len(sample.inputs)].to(device)
        for sample in CASES[case]().samples
        for size in BUCKETS
    ]
    expected = [plain(batch).clone() for batch in batches]
    # The first turn records; in the second one all recordings have written over the memory that they share.
    for _ in range(2):
        found = [replayed(batch) for batch in batches]
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert [batch for batch, right in zip(batches, expected, strict=True) if not right.isfinite().all()] == []


def test_a_replay_launches_one_graph(device: torch.device, tmp_path: Path) -> None:
    engine = new_engine("visual", "eager", "bfloat16", device, tmp_path)
    batch = CASES["visual"]().samples[0].inputs[:8].to(device)
    engine(batch)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as watched:
        engine(batch)
    calls = [event.name for event in watched.events() or []]
    assert calls.count("cudaGraphLaunch") == 1
    assert calls.count("cudaLaunchKernel") <= 4  # the input's and the output's copies


def test_two_engines_record_and_replay_on_two_threads(device: torch.device, tmp_path: Path) -> None:
    def turn(case: str) -> None:
        folder = tmp_path / case
        folder.mkdir()
        plain, spec = plain_engine(case, "eager", "bfloat16", device, folder)
        replayed = graphs.recorded(plain, spec)
        inputs = CASES[case]().samples[0].inputs
        for turn in range(60):
            size = BUCKETS[turn % len(BUCKETS)]
            batch = inputs[torch.arange(turn, turn + size) % len(inputs)].to(device)
            assert torch.equal(replayed(batch), plain(batch)), f"{case}, batch {turn}"

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(turn, ("visual", "recognition")))


def test_a_shape_without_room_runs_as_it_is(device: torch.device, caplog: pytest.LogCaptureFixture) -> None:
    hungry = Hungry(device)
    engine = graphed(hungry)
    with only(700 * MIB, device), caplog.at_level(logging.WARNING):
        for size in (4, 8, 4, 8):  # 256 and 512 MiB, and 2 GiB for a full batch
            assert torch.equal(engine(rows(size, device)), rows(size, device).sum(1, keepdim=True))
    assert [message.partition(":")[0] for message in caplog.messages] == [
        f"hungry runs without a CUDA graph at ({size}, 2)" for size in (4, 8)
    ]
    # There is room again: another shape is recorded, and then replayed.
    for _ in range(2):
        assert torch.equal(engine(rows(2, device)), rows(2, device).sum(1, keepdim=True))
    assert hungry.calls[-graphs.WARM_UPS - 2 :] == [8, *[2] * (graphs.WARM_UPS + 1)]


def test_recordings_give_their_memory_back(device: torch.device) -> None:
    engine = graphed(Hungry(device))
    engine(rows(1, device))
    memory.release()
    before = torch.cuda.memory_reserved(device)
    for size in (2, 4, 8):
        engine(rows(size, device))
    assert torch.cuda.memory_reserved(device) >= before + 8 * 64 * MIB
    del engine
    memory.release()
    assert torch.cuda.memory_reserved(device) <= before


def test_what_cannot_be_recorded_poisons_nothing(device: torch.device, caplog: pytest.LogCaptureFixture) -> None:
    engine = graphed(Waiting(device))
    with caplog.at_level(logging.WARNING):
        for size in (2, 4, 2):
            assert torch.equal(engine(rows(size, device)), rows(size, device).sum(1, keepdim=True) * 2)
    (message,) = caplog.messages
    assert message.startswith("hungry runs without a CUDA graph at (2, 2): ")
    # Blocks that another stream used come back, and so does the cache: the allocator knows that nothing is recorded.
    memory.release()
    before = torch.cuda.memory_reserved(device)
    other = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch says no types for it
    for _ in range(20):
        block = torch.empty(64 * MIB, dtype=torch.uint8, device=device)
        block.record_stream(other)
        del block
        torch.cuda.synchronize(device)
    memory.release()
    assert torch.cuda.memory_reserved(device) <= before
    torch.empty(MIB, dtype=torch.uint8, pin_memory=True)  # the allocator of pinned memory still looks at the failed one
    following = graphed(Hungry(device))
    for _ in range(2):
        assert torch.equal(following(rows(4, device)), rows(4, device).sum(1, keepdim=True))
