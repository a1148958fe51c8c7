"""PyTorch as it is: the backend that always works and that all others are measured against."""

import torch
from torch import Tensor, nn


def available() -> str | None:
    """Return None: eager PyTorch is always there."""
    return None


class Eager:
    """A network run by PyTorch, operation by operation, in float32."""

    backend = "eager"
    precision = "float32"

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self.device = device
        self._network = network.to(device).eval().requires_grad_(False)

    @torch.inference_mode()
    def __call__(self, batch: Tensor) -> Tensor:
        output: Tensor = self._network(batch.to(self.device, non_blocking=True))
        return output


def load(network: nn.Module, device: torch.device) -> Eager:
    """Put `network` on `device` and return it as an engine."""
    return Eager(network, device)
