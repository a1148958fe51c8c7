"""Gives memory back to the system once a model is gone. Knows allocators, no models; and tells what is left on GPUs."""

import gc
from collections.abc import Mapping

import torch

from engines import heap


def settle() -> None:
    """Take what lives now (imported libraries) out of the garbage collector's view.

    A full collection stops every Python thread; with torch's and transformers' hundreds of thousands of permanent
    objects in view it takes a good part of a second, in which no request is answered.
    """
    gc.collect()
    gc.freeze()


def release() -> None:
    """Free what unreachable models held: on the GPU, and on the heap where the C library keeps freed pages."""
    gc.collect()
    torch.cuda.empty_cache()  # does nothing where CUDA was never used
    heap.trim()


def gpu_bytes() -> dict[str, Mapping[str, int]]:
    """Return bytes of each NVIDIA GPU in use by its name, "cuda:0"; nothing where none was used yet.

    "total" is its memory, "used" what all processes took of that, "allocated" what tensors of this process have, and
    "reserved" what PyTorch keeps for them. Compiled engines have theirs beside these: they are in "used" alone.
    """
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # it returns a bool
        return {}
    found: dict[str, Mapping[str, int]] = {}
    for number in range(torch.cuda.device_count()):
        reserved = torch.cuda.memory_reserved(number)
        if not reserved:  # not one of ours: asking for its free memory would take some of it
            continue
        free, total = torch.cuda.mem_get_info(number)
        found[f"cuda:{number}"] = {
            "total": total,
            "used": total - free,
            "allocated": torch.cuda.memory_allocated(number),
            "reserved": reserved,
        }
    return found
