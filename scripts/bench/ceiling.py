"""What the machine can do at best: matrix products, memory, decoding. Measured before anything of ours."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import simplejpeg
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from engines import machine
from engines.engine import Network
from scripts.bench.record import Row, row
from scripts.bench.turns import pace

# Sides of the matrices: large enough that nothing but arithmetic counts, and done in well under a second.
SIDES = {"cpu": 2048, "cuda": 8192}
TIMES = 6
COPIED = 256 << 20  # bytes: far more than any cache holds
DECODING_S = 0.5
_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Ceiling:
    """What `device` can do: GFLOP/s of large matrix products by type, GB/s of copies, pictures/s decoded by a core.

    The pictures are JPEGs of 1440x1080 pixels.
    """

    device: str
    cores: int
    gflops: dict[str, float]
    bandwidth: float
    decoded: float

    def items(self, precision: str, gflop: float) -> float:
        """Return the items/s of `gflop` each that the matrix rate allows in `precision`."""
        return self.gflops["bfloat16" if precision == "float16" else precision] / gflop

    def sentence(self) -> str:
        """Return all of it in words."""
        rates = ", ".join(f"{rate:,.0f} in {name}" for name, rate in self.gflops.items())
        return (
            f"ceiling of {self.device}, {self.cores} cores: {rates} GFLOP/s; copies {self.bandwidth:.1f} GB/s; "
            f"one core decodes {self.decoded:.0f} JPEGs/s of 1440x1080"
        )

    def rows(self) -> list[Row]:
        """Return all of it as rows."""
        rates = [row("ceiling", f"matrix product {name}", "GFLOP/s", [rate]) for name, rate in self.gflops.items()]
        return [
            *rates,
            row("ceiling", "copy of a large array", "GB/s", [self.bandwidth]),
            row("ceiling", "decoding 1440x1080 on one core", "pictures/s", [self.decoded]),
        ]


def measure(device: torch.device, jpeg: bytes) -> Ceiling:
    """Measure the ceiling of `device`; `jpeg` is the picture to decode."""
    torch.set_num_threads(machine.cores())
    rates = {name: matrix_rate(device, kind) for name, kind in _TYPES.items()}
    return Ceiling(
        device=machine.identity(device).device,
        cores=machine.cores(),
        gflops=rates | {"int8": int8_rate(device)},
        bandwidth=bandwidth(),
        decoded=1 / pace(lambda: simplejpeg.decode_jpeg(jpeg), DECODING_S),
    )


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the GFLOP/s of the best of several large matrix products on `device`."""
    side = SIDES[device.type]
    a, b = torch.rand(2, side, side, device=device).to(dtype)
    best = min(_seconds(lambda: a @ b, device) for _ in range(TIMES))
    return float(2 * side**3 / best / 1e9)


def int8_rate(device: torch.device) -> float:
    """Return the same for int8 with sums in int32, in 10^9 operations per second."""
    side = SIDES[device.type]
    a, b = torch.randint(-128, 128, (2, side, side), dtype=torch.int8, device=device)
    best = min(_seconds(lambda: torch._int_mm(a, b), device) for _ in range(TIMES))
    return float(2 * side**3 / best / 1e9)


def bandwidth() -> float:
    """Return the GB/s of a copy in memory on one core, what is read and what is written counted both."""
    source = np.ones(COPIED, np.uint8)
    target = np.zeros_like(source)
    best = min(pace(lambda: np.copyto(target, source), 0) for _ in range(TIMES))
    return 2 * COPIED / best / 1e9


def gflop(network: Network, length: int | None = None) -> float:
    """Return the arithmetic of one item in GFLOP: matrix products and convolutions, a multiply-add counted as two.

    `length` cuts its first dimension, as texts are cut.
    """
    # Attention in parts, since the counter does not know its fused form on a processor.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.inference_mode():
        network.module(network.example[:1, :length])
    return float(counter.get_total_flops() / 1e9)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    wait(device)
    started = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - started


def wait(device: torch.device) -> None:
    """Return when all that was given to `device` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
