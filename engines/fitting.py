"""What to do when a batch does not fit into a device's memory: free, halve, go on, remember.

Knows how running out of memory shows. Deliberately knows neither how much memory there is nor what a network needs:
what fits is found out by trying, and kept for as long as the engine lives.
"""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from engines import memory
from engines.engine import Engine, run_padded
from engines.errors import OutOfMemory

log = logging.getLogger(__name__)

# How CUDA and its libraries say it where PyTorch's own allocator was not the one who was asked.
_SIGNS = ("out of memory", "ALLOC_FAILED")


class Fitting:
    """An engine that takes batches of any size: in its `buckets`, and in parts where the memory asks for it.

    What fits is remembered by the shape of a row, so that the batches after one that did not fit are cut at once.
    """

    def __init__(self, engine: Engine, buckets: Sequence[int]) -> None:
        self.backend = engine.backend
        self.precision = engine.precision
        self.device = engine.device
        self._engine = engine
        self._buckets = tuple(buckets)
        self._fits: dict[tuple[int, ...], int] = {}  # rows, by the shape of a row; only where it is less than asked

    def __call__(self, batch: Tensor) -> Tensor:
        """Run `batch` (rows, *item), at least one row, on the host or on the device; return (rows, …) on the device.

        Raises OutOfMemory if a single row does not fit.
        """
        item = tuple(batch.shape[1:])
        parts: list[Tensor] = []
        done = 0
        while done < len(batch):
            most = self._fits.get(item, self._buckets[-1])
            part = batch[done : done + most]
            output = self._attempt(part, alone=len(part) == len(batch))
            if output is None:
                memory.release()
                self._shrink(item, len(part))
                continue
            done += len(part)
            parts.append(output)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _attempt(self, part: Tensor, alone: bool) -> Tensor | None:
        """Return None if there is no memory for it; with this frame goes the traceback that holds what was computed."""
        refused = _refusals(self.device)
        try:
            output = run_padded(self._engine, self._buckets, part)
            return output if alone else output.clone()  # an engine may write its next output over this one
        except RuntimeError as error:
            if not is_out_of_memory(error) and _refusals(self.device) == refused:
                raise
            return None

    def _shrink(self, item: tuple[int, ...], rows: int) -> None:
        if rows == 1:
            raise OutOfMemory(
                f"There is no memory left on {self.device} for one input of {'x'.join(map(str, item))}: load fewer "
                "models, choose a smaller one, or end other programs that use the device."
            )
        self._fits[item] = rows // 2
        log.warning(
            "%d rows of %s do not fit into the memory of %s beside what is there: %d at a time from now on",
            rows,
            "x".join(map(str, item)),
            self.device,
            rows // 2,
        )


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether `error` says that a GPU had no memory to give."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(sign in str(error) for sign in _SIGNS)


def _refusals(device: torch.device) -> int:
    """Return how often PyTorch's allocator had no memory to give on `device`.

    Packages of AOTInductor turn every error inside into one that does not say what it was, but this counter goes up.
    """
    if device.type != "cuda":
        return 0
    count: int = torch.cuda.memory_stats_as_nested_dict(device).get("num_ooms", 0)
    return count
