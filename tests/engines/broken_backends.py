"""A backend that is eager PyTorch, and ways to break it: all that the gate must see."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from engines.engine import BackendName, Engine, Precision, Spec
from engines.errors import BuildFailed

Fault = Callable[[Tensor], Tensor]


def faithful(output: Tensor) -> Tensor:
    return output


def one_wrong_row(output: Tensor) -> Tensor:
    output = output.clone()
    if len(output) > 2:
        output[2] = output[0]
    return output


def swapped_rows(output: Tensor) -> Tensor:
    return output.flip(0)


def drift_with_the_batch_size(output: Tensor) -> Tensor:
    return normalize(output + 0.002 * (len(output) - 1) * torch.ones_like(output), dim=1)


def nan_in_large_batches(output: Tensor) -> Tensor:
    output = output.clone()
    if len(output) >= 8:
        output[-1, 0] = float("nan")
    return output


def fails_in_large_batches(output: Tensor) -> Tensor:
    if len(output) >= 8:
        raise RuntimeError("the shape was baked in")
    return output


class Broken:
    """A backend whose engines pass what eager float32 computes through `fault`."""

    def __init__(self, fault: Fault, reason: str | None = None, fails: bool = False) -> None:
        self.builds = 0
        self._fault = fault
        self._reason = reason
        self._fails = fails
        self._modules: dict[str, nn.Module] = {}

    def available(self, device: torch.device, precision: Precision) -> str | None:
        return self._reason

    def build(self, module: nn.Module, spec: Spec, folder: Path) -> None:
        self.builds += 1
        if self._fails:
            raise BuildFailed("the compiler does not know an operation")
        self._modules[spec.network] = module
        (folder / f"{spec.network}.bin").write_bytes(b"compiled " + spec.network.encode())

    def load(self, module: nn.Module | None, spec: Spec, folder: Path) -> Engine:
        return Faulty(self._modules.get(spec.network, nn.Identity()), spec.precision, self._fault)


class Faulty:
    """An engine that computes what `module` does and passes it through `fault`."""

    backend: BackendName = "torchscript"
    device = torch.device("cpu")

    def __init__(self, module: nn.Module, precision: Precision, fault: Fault) -> None:
        self.precision: Precision = precision
        self._module = module
        self._fault = fault

    @torch.inference_mode()
    def __call__(self, batch: Tensor) -> Tensor:
        return self._fault(self._module(batch))
