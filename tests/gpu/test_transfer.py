"""On a real bus: no row is read before it arrived or overwritten too early, and the processor waits once per batch."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from engines.fitting import Fitting
from engines.transfer import Transfer, Upload
from tests.gpu.conftest import Make, new_engine
from tests.gpu.networks import BUCKETS, picture_tower, through

pytestmark = pytest.mark.gpu

SIDE = 224
PRIME = 1_048_573  # hashes stay below 2^24, so float32 holds them exactly
WEIGHTS = np.random.default_rng(0).integers(1, 1000, SIDE * SIDE * 3)


def pictures(count: int, seed: int) -> list[NDArray[np.uint8]]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8))


def hashes(items: list[NDArray[np.uint8]]) -> list[int]:
    return [int((item.reshape(-1).astype(np.int64) * WEIGHTS).sum() % PRIME) for item in items]


def busy_hash(device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return an engine that is busy for a while before it looks at its batch, and after."""
    weights = torch.from_numpy(WEIGHTS).to(device)
    load = torch.ones(4096, 4096, device=device)

    def run(batch: Tensor) -> Tensor:
        for _ in range(4):
            load @ load
        output = ((batch.to(device).flatten(1).long() * weights).sum(1, keepdim=True) % PRIME).float()
        load @ load
        return output

    return run


def test_rows_keep_their_places_with_a_batch_ahead(device: torch.device) -> None:
    transfer, engine = Transfer(device, BUCKETS), busy_hash(device)
    batches = [pictures(1 + 7 * turn % 32, turn) for turn in range(12)]
    expected = [hashes(items) for items in batches]
    with ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(transfer.upload, batches[0])
        for turn in range(300):
            upload = coming.result()
            coming = ahead.submit(transfer.upload, batches[(turn + 1) % len(batches)])
            output = transfer.run(engine, upload)
            assert output[:, 0].astype(int).tolist() == expected[turn % len(batches)], f"batch {turn}"


def test_uploads_that_nobody_runs_disturb_none_that_run(device: torch.device) -> None:
    transfer, engine = Transfer(device, BUCKETS), busy_hash(device)
    items = pictures(32, 1)
    dropped = pictures(32, 2)
    for _ in range(100):
        upload = transfer.upload(items)
        transfer.upload(dropped)
        assert transfer.run(engine, upload)[:, 0].astype(int).tolist() == hashes(items)


def test_a_batch_that_fails_half_way_leaves_the_next_ones_alone(device: torch.device) -> None:
    transfer, engine = Transfer(device, BUCKETS), busy_hash(device)
    items = pictures(16, 3)

    def failing(batch: Tensor) -> Tensor:
        engine(batch)
        raise ZeroDivisionError

    for _ in range(20):
        upload, following = transfer.upload(pictures(16, 4)), transfer.upload(items)
        with pytest.raises(ZeroDivisionError):
            transfer.run(failing, upload)
        assert transfer.run(engine, following)[:, 0].astype(int).tolist() == hashes(items)


def test_a_copy_runs_beside_the_computation(device: torch.device) -> None:
    transfer = Transfer(device, BUCKETS)
    items = pictures(32, 5)
    _arrived(transfer.upload(items))  # the first one allocates
    load = torch.ones(8192, 8192, device=device)
    load @ load
    torch.cuda.synchronize(device)
    for _ in range(100):
        load @ load
    event: Any = torch.cuda.Event  # torch says no types for it
    computed = event()
    computed.record()
    _arrived(transfer.upload(items))
    assert not computed.query(), "the copy waited for the computation"


def test_the_processor_waits_once_per_batch(device: torch.device, make: Make) -> None:
    engine = Fitting(make("visual", "inductor", "bfloat16"), BUCKETS)
    transfer = Transfer(device, BUCKETS)
    items = pictures(8, 6)
    for _ in range(3):
        transfer.run(engine, transfer.upload(items))
    torch.cuda.set_sync_debug_mode("error")  # refuses hidden ones: copies of pageable memory, .item(), nonzero
    try:
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True) as watched:
            for _ in range(10):
                transfer.run(engine, transfer.upload(items))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    calls = Counter(event.name for event in watched.events() or [])
    assert calls["cudaEventSynchronize"] == 10
    assert calls["cudaStreamSynchronize"] == 0


def test_bytes_travel_as_bytes(device: torch.device) -> None:
    upload = Transfer(device, BUCKETS).upload(pictures(3, 7))
    assert upload.batch.dtype == torch.uint8
    assert upload.batch.shape == (4, SIDE, SIDE, 3)
    assert upload.batch.device == device


def test_an_engine_that_is_loaded_meanwhile_disturbs_nothing(device: torch.device, make: Make, tmp_path: Path) -> None:
    """Recording CUDA graphs forbids some calls to the thread that records, not to the others."""
    run = through(make("visual", "inductor", "bfloat16"))
    inputs = picture_tower().samples[0].inputs
    expected = run(inputs)

    def load() -> None:
        other = through(new_engine("recognition", "inductor", "float16", device, tmp_path))
        for size in BUCKETS:
            other(torch.zeros(size, 160, 160, 3, dtype=torch.uint8))

    with ThreadPoolExecutor(1) as beside:
        loading = beside.submit(load)
        while not loading.done():
            assert torch.allclose(run(inputs), expected, atol=0.02)
        loading.result()


def _arrived(upload: Upload) -> None:
    arrived: Any = upload.arrived
    arrived.synchronize()
