"""From a network in eager float32 to what compilers take: cast to a precision, exported with its free dimensions.

Knows torch.export and what all backends that begin with PyTorch share. Deliberately knows no backend and no network:
which dimensions are free stands in the spec.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional

from engines import machine
from engines.engine import Precision, Spec

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def refusal(device: torch.device, precision: Precision) -> str | None:
    """Return None, or one sentence that says why PyTorch itself cannot run `precision` on `device`."""
    if precision == "int8":
        return "PyTorch's own backends have no int8: take openvino for it."
    if device.type not in ("cpu", "cuda"):
        return f"PyTorch's own backends run on the processor and on CUDA GPUs here, not on {device.type}."
    if device.type == "cuda" and not torch.cuda.is_available():
        return "PyTorch sees no CUDA GPU: check the driver, and that PyTorch is a build for CUDA."
    if device.type == "cpu" and precision == "float16":
        return "PyTorch is slower in float16 than in float32 on a processor: take bfloat16 or float32."
    return machine.native(precision, device)


def lowered(module: nn.Module, precision: Precision) -> nn.Module:
    """Return a copy of `module` for inference, its `body` cast to `precision` and all around it float32.

    `module` stays as it is. Raises ValueError for int8, which is no cast.
    """
    if precision not in DTYPES:
        raise ValueError(f"a network cannot be cast to {precision}: only to {', '.join(DTYPES)}")
    copy: Any = deepcopy(module).eval().requires_grad_(False)
    copy.body.to(DTYPES[precision])
    network: nn.Module = copy
    return network


def exported(module: nn.Module, spec: Spec) -> ExportedProgram:
    """Export `module`, already in its precision and on the device of `spec`, for every batch size and free size.

    The program takes one positional input (rows, *item) with 1 to `spec.buckets[-1]` rows (exactly one row where that
    is 1) and the bounds of `spec.free`, from 13 on for P-Net's sides, of which no map is one wide. The exporter noted
    which way it went at questions whose answer changes no number (is a mask cut at all, is a side odd): `module()` of
    the program holds inputs to these guards, compilers do not. Raises whatever torch.export does if it cannot follow.
    """
    if spec.free:
        module = without_rounding(module)
    example = trace_input(spec)
    sizes: dict[int, Any] = {dimension + 1: Dim.DYNAMIC(min=low, max=high) for dimension, low, high in spec.free}
    if spec.buckets[-1] > 1:
        # Not a named Dim: that refuses a network which asks anything of its sizes.
        # More than the example has: the exporter takes a size at its upper bound for one that never changes.
        sizes[0] = Dim.DYNAMIC(min=1, max=max(spec.buckets[-1], len(example) + 1))
    with torch.no_grad(), without_fast_path():
        return torch.export.export(module, (example,), dynamic_shapes=(sizes,), strict=False)


def trace_input(spec: Spec) -> Tensor:
    """Return rows of the example of `spec`, on its device, that a compiler may look at.

    Two of them, since one row is taken for a size that never changes; one where the batch never has more. Free sizes
    lie between their bounds, since cutting a table of 77 positions to 77 is taken for no cut at all.
    """
    rows = min(2, spec.buckets[-1])
    example = spec.example[:rows]
    for dimension, low, high in spec.free:
        if example.shape[dimension + 1] == high:
            example = example.narrow(dimension + 1, 0, (low + high) // 2)
    return example.contiguous().to(spec.device)


@contextmanager
def without_fast_path() -> Iterator[None]:
    """Turn the fast path of nn.MultiheadAttention off, which tracing and export cannot follow.

    It is a switch of the whole process: a network with such layers that runs meanwhile is slower, not wrong.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class PaddedPool(nn.Module):
    """Max pooling that rounds sizes up, written as padding and pooling that rounds down: the same numbers.

    ceil((H - k) / s) + 1 = floor((H + s - 1 - k) / s) + 1. Inductor asks whether rounding up makes a difference for the
    example, and compiles its answer for all sizes.
    """

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.stride = stride

    def forward(self, maps: Tensor) -> Tensor:
        """Pool (N, C, H, W)."""
        more = self.stride - 1
        padded = functional.pad(maps, (0, more, 0, more), value=float("-inf"))
        return functional.max_pool2d(padded, self.kernel, self.stride)


def without_rounding(module: nn.Module) -> nn.Module:
    """Return `module`, or a copy of it with PaddedPool in it where its pooling rounds up."""
    if not any(_rounds_up(child) for child in module.modules()):
        return module
    copy = deepcopy(module)
    for parent in list(copy.modules()):
        for name, child in parent.named_children():
            if _rounds_up(child):
                pool: Any = child
                setattr(parent, name, PaddedPool(pool.kernel_size, pool.stride))
    return copy


def _rounds_up(module: nn.Module) -> bool:
    # Whole numbers are what the networks have; stride <= kernel, so that each window begins inside.
    return (
        isinstance(module, nn.MaxPool2d)
        and module.ceil_mode
        and isinstance(module.kernel_size, int)
        and isinstance(module.stride, int)
        and module.stride <= module.kernel_size
        and (module.padding, module.dilation) == (0, 1)
    )
