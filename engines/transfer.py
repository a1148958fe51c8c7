"""How batches get onto a device, and their results back.

Items are written straight into one block of host memory and padded there to their bucket. For a GPU that block is
pinned and copied on a stream of its own, while the batch before still computes; the computing stream waits for the
copy, the processor does not. It waits once per batch, for the results. For all other devices the block is the batch.

No buffer is handed out or taken back here, so that none is lost when a batch fails or is dropped half-way: PyTorch's
allocators of pinned memory and of device memory keep what is freed and give a block out again only after every copy
and every kernel that was recorded on it is done. Deliberately knows neither networks nor queues.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engines.engine import bucket_for


@dataclass(frozen=True, slots=True, eq=False)
class Upload:
    """A batch on a device, or on its way there.

    `batch` is (bucket, *item) in the dtype of the items, and its first `rows` are real. `arrived` is None where there
    is nothing to wait for. `unread` are rows whose item could not be read on the device: what is computed of them means
    nothing.
    """

    batch: Tensor
    rows: int
    arrived: torch.cuda.Event | None = None
    unread: frozenset[int] = frozenset()


class Transfer:
    """Brings the batches of one engine to `device` and its results back; `buckets` are ascending numbers of rows.

    `upload` may be called by any thread at any time, `run` and `fetch` by one thread at a time.
    """

    def __init__(self, device: torch.device, buckets: Sequence[int]) -> None:
        self.device = device
        self._buckets = tuple(buckets)
        self._copies = _stream(device) if device.type == "cuda" else None

    def upload(self, items: Sequence[NDArray[Any]]) -> Upload:
        """Send `items`, at least one and all of one shape and dtype, padded to a bucket with copies of the last one.

        Returns at once. The items are free again then: they were copied. Raises ValueError if there are more of them
        than the largest bucket holds, or if their shapes differ.
        """
        rows = len(items)
        shape = (bucket_for(rows, self._buckets), *items[0].shape)
        dtype = torch.from_numpy(np.empty(0, items[0].dtype)).dtype
        staging = torch.empty(shape, dtype=dtype, pin_memory=self._copies is not None)
        filled = staging.numpy()
        np.stack(items, out=filled[:rows])
        filled[rows:] = items[-1]
        if self._copies is None:
            return Upload(staging, rows)
        with torch.cuda.stream(self._copies):  # its device is the current one inside, in whatever thread this is
            try:
                batch = staging.to(self.device, non_blocking=True)
            except torch.cuda.OutOfMemoryError:
                # No room ahead of its turn. Engines take batches from the host too, and in smaller parts.
                return Upload(staging, rows)
            arrived = _event()
            arrived.record()
        return Upload(batch, rows, arrived)

    def run(self, engine: Callable[[Tensor], Tensor], upload: Upload) -> NDArray[np.float32]:
        """Return what `engine` computes of the real rows of `upload`, (rows, …) on the host.

        The array belongs to the caller, whatever the engine does with its buffers at the next batch.
        """
        if self._copies is None:
            return self.fetch(engine(upload.batch)[: upload.rows])
        # Compiled engines ask for the current device's stream, and each thread begins with the first GPU as current.
        with torch.cuda.device(self.device):
            if upload.arrived is not None:
                computing = torch.cuda.current_stream()
                computing.wait_event(upload.arrived)
                # It was allocated on the other stream, where a later batch could take its place too early.
                upload.batch.record_stream(computing)
            return self.fetch(engine(upload.batch)[: upload.rows])

    def fetch(self, output: Tensor) -> NDArray[np.float32]:
        """Return float32 `output` of the device as an array that belongs to the caller.

        This is where the processor waits for the device, and only for what was queued up to here.
        """
        if self._copies is None:
            return _own(output)
        with torch.cuda.device(self.device):
            host = torch.empty(output.shape, dtype=output.dtype, pin_memory=True)
            host.copy_(output, non_blocking=True)
            done = _event(blocking=True)  # sleeps instead of spinning: pictures are decoded meanwhile
            done.record()
            done.synchronize()
        return _own(host)


def _own(tensor: Tensor) -> NDArray[np.float32]:
    # A copy: results wait for their clients, and neither pinned memory nor an engine's output buffer may wait with
    # them.
    array: NDArray[np.float32] = tensor.numpy().copy()
    return array


def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch says no types for it


def _event(blocking: bool = False) -> torch.cuda.Event:
    return torch.cuda.Event(blocking=blocking)  # type: ignore[no-untyped-call]  # the same
