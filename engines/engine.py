"""What an engine is, how one is chosen, and why. Knows no particular network.

An engine is one network on one device. Batches come in buckets: a compiled backend has few shapes and pads a batch up
to the next of them; eager PyTorch on a CPU takes every size as it is.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from engines.backends import eager

log = logging.getLogger(__name__)

MAX_BATCH = 32


class Engine(Protocol):
    """One compiled network.

    Calling it takes a batch of at most `buckets[-1]` rows on the host or on the device and returns float32 on the
    device, one row per row of the batch.
    """

    backend: str
    precision: str
    device: torch.device

    def __call__(self, batch: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Choice:
    """An engine, the batch sizes to feed it with, and the sentence that says why it was taken."""

    engine: Engine
    buckets: tuple[int, ...]
    reason: str


def pick_device(device_ids: Sequence[int]) -> torch.device:
    """Return the CUDA device with the first of `device_ids`, or the CPU where torch sees no such GPU."""
    count = torch.cuda.device_count()
    if count == 0:
        return torch.device("cpu")
    wanted = device_ids[0] if device_ids else 0
    if wanted >= count:
        log.warning("GPU %d was asked for, but torch sees %d: running on the CPU", wanted, count)
        return torch.device("cpu")
    # TensorFloat-32 keeps 10 bits of a mantissa: float32 here means float32, faster precisions have names of their own.
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda", wanted)


def choose(network: nn.Module, device: torch.device) -> Choice:
    """Return the best engine for `network` on `device`: eager float32, the only backend so far."""
    engine = eager.load(network, device)
    if device.type == "cpu":
        return Choice(engine, tuple(range(1, MAX_BATCH + 1)), "no compiled engine for this model")
    # On a GPU every new shape costs memory that the caching allocator keeps: few shapes keep it flat.
    return Choice(engine, powers_of_two(MAX_BATCH), "no compiled engine for this model")


def powers_of_two(largest: int) -> tuple[int, ...]:
    """Return 1, 2, 4, … up to and including `largest`, itself a power of two."""
    return tuple(1 << i for i in range(largest.bit_length()))


def bucket_for(rows: int, buckets: Sequence[int]) -> int:
    """Return the smallest of the ascending `buckets` that holds `rows`; ValueError if none does."""
    for bucket in buckets:
        if bucket >= rows:
            return bucket
    raise ValueError(f"{rows} rows are more than the largest bucket, {buckets[-1]}")


def run_padded(choice: Choice, batch: Tensor) -> Tensor:
    """Run `batch` (rows, …) padded to its bucket with copies of its last row; return the real rows only."""
    rows = batch.shape[0]
    missing = bucket_for(rows, choice.buckets) - rows
    if missing:
        batch = torch.cat([batch, batch[-1:].expand(missing, *batch.shape[1:])])
    return choice.engine(batch)[:rows]
