"""Gives memory back to the system once a model is gone. Knows allocators, no models."""

import ctypes
import gc

import torch


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
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim(0)
