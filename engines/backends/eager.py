"""PyTorch as it is: the backend that always works and that all others are measured against.

Knows no compiler and writes no file. On a GPU float32 is true float32 once machine.pick_devices has named the device.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from engines import export
from engines.engine import BackendName, Precision, Spec


def available(device: torch.device, precision: Precision) -> str | None:
    """Return None, or one sentence that says why PyTorch cannot run `precision` on `device`."""
    return export.refusal(device, precision)


class Eager:
    """A network run by PyTorch, operation by operation; it takes every batch size."""

    backend: BackendName = "eager"

    def __init__(self, network: nn.Module, precision: Precision, device: torch.device) -> None:
        self.precision = precision
        self.device = device
        self._network = network

    @torch.inference_mode()
    def __call__(self, batch: Tensor) -> Tensor:
        output: Tensor = self._network(batch.to(self.device, non_blocking=True))
        return output


def build(module: nn.Module, spec: Spec, folder: Path) -> None:
    """Do nothing: there is nothing to compile."""


def load(module: nn.Module | None, spec: Spec, folder: Path) -> Eager:
    """Return `module` as an engine.

    In float32 on a processor the engine runs `module` itself and takes no further memory; everywhere else it runs a
    copy. `folder` is not looked at. Raises ValueError without `module`.
    """
    if module is None:
        raise ValueError("eager PyTorch runs the network itself: give it")
    if spec.precision == "float32" and spec.device.type == "cpu":
        return Eager(module, spec.precision, spec.device)
    return Eager(export.lowered(module, spec.precision).to(spec.device), spec.precision, spec.device)
