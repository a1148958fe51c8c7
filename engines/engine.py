"""What an engine is, and what it is made from. Knows no particular network and no particular backend.

An engine is one network on one device. Batches come in buckets: a compiled backend has few shapes and pads a batch up
to the next of them, so that memory stays flat and every size in use has passed the gate.

A subject is a model of the server as it is built, examined and stored: one network, or the three of the detector.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn

from engines.model import BackendName as BackendName
from engines.model import Kind
from engines.model import Precision as Precision

MAX_BATCH = 32


@dataclass(frozen=True, slots=True)
class Layout:
    """How an engine spreads over the cores of a processor.

    `threads` is the number of all threads together, 0 is all cores at hand; `streams` is the number of parts of a
    batch that run at the same time, each with its share of the threads. `hint` is OpenVINO's. `copies` of the compiled
    network, each with its share of the threads and so many streams, serve as many threads that call at the same time:
    with P-Net over a pyramid two copies kept 1.9 of 2 cores busy, two streams of one copy 1.6.
    """

    threads: int = 0
    streams: int = 1
    copies: int = 1
    hint: Literal["latency", "throughput"] = "latency"


@dataclass(frozen=True)  # no slots: the module is kept in the dictionary once it was made
class Network:
    """One network in eager float32, on the CPU, and what goes in.

    `make` builds it with its weights when it is first asked for, which takes seconds: where a built engine is loaded
    nobody does.

    A batch is (rows, *item) of `dtype`. `free` names the dimensions of `item` (0 is the first
    behind the rows) that differ from batch to batch as (dimension, lowest, highest): the length of texts, the sides of
    a picture; `item` then has the highest or a usual value. `example` (2 or more rows) is real input to trace with,
    since networks look at masks. The weights of `module.body` are what lower precisions cast; all around them
    (scaling, the L2 norm) stays float32.
    """

    name: str
    make: Callable[[], nn.Module] = field(repr=False)
    item: tuple[int, ...]
    dtype: torch.dtype
    example: Tensor = field(repr=False)
    free: tuple[tuple[int, int, int], ...] = ()

    @cached_property
    def module(self) -> nn.Module:
        """The network itself; raises what reading its weights does."""
        return self.make()

    def spec(self, precision: Precision, device: torch.device, layout: "Layout", buckets: tuple[int, ...]) -> "Spec":
        """Return what to build of this network."""
        return Spec(
            network=self.name,
            item=self.item,
            dtype=self.dtype,
            free=self.free,
            example=self.example,
            precision=precision,
            buckets=buckets,
            device=device,
            layout=layout,
        )


def given(module: nn.Module) -> Callable[[], nn.Module]:
    """Return the `make` of a network that is there already."""
    return lambda: module


@dataclass(frozen=True, slots=True)
class Spec:
    """What an engine is made for: the sizes of its input, the device, the precision.

    `buckets` are the ascending numbers of rows it is called with; `calibration` are batches (1, …) to measure the
    ranges of int8 on, which building alone needs; the other fields are as in Network.
    """

    network: str
    item: tuple[int, ...]
    dtype: torch.dtype
    free: tuple[tuple[int, int, int], ...]
    example: Tensor = field(repr=False, compare=False)
    precision: Precision
    buckets: tuple[int, ...]
    device: torch.device
    layout: Layout = Layout()
    calibration: tuple[Tensor, ...] = field(default=(), repr=False, compare=False)


class Engine(Protocol):
    """One network, ready to run on one device.

    Calling it takes a batch (rows, *item) on the host or on the device and returns float32 on the device, one row per
    row of the batch. It is called by one thread at a time.
    """

    backend: BackendName
    precision: Precision
    device: torch.device

    def __call__(self, batch: Tensor) -> Tensor: ...


class Backend(Protocol):
    """The functions that each module in engines/backends/ has. `module` is the network in eager float32 on the CPU.

    None of them changes `module`. `build` writes all that `load` needs into the empty `folder`, and raises BuildFailed
    with the reason; `load` raises ArtefactBroken. Eager runs `module` itself and writes nothing; others load without.
    """

    def available(self, device: torch.device, precision: Precision) -> str | None:
        """Return None, or one sentence that says why this backend cannot be used so."""

    def build(self, module: nn.Module, spec: Spec, folder: Path) -> None:
        """Compile `module` for `spec` into `folder`."""

    def load(self, module: nn.Module | None, spec: Spec, folder: Path) -> Engine:
        """Return the engine that `build` left in `folder`."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The engines of a subject's networks, the batch sizes to feed them with, and the sentence that says why they."""

    engines: tuple[Engine, ...]
    buckets: tuple[int, ...]
    reason: str
    built: bool  # taken from the store of compiled engines, with nothing left to build
    bytes: int  # of the weights, as they are kept for the engines

    @property
    def engine(self) -> Engine:
        """The engine of a subject that has one network."""
        (engine,) = self.engines
        return engine


def backend_named(name: BackendName) -> Backend:
    """Import the backend `name`, and with it whatever it is made of."""
    return cast(Backend, importlib.import_module(f"engines.backends.{name}"))


def host_of(device: torch.device) -> torch.device:
    """Return where the tensors of an engine on `device` live: PyTorch has none on the Intel GPUs of OpenVINO."""
    return torch.device("cpu") if device.type == "xpu" else device


def powers_of_two(largest: int) -> tuple[int, ...]:
    """Return 1, 2, 4, … up to and including `largest`, itself a power of two."""
    return tuple(1 << i for i in range(largest.bit_length()))


def bucket_for(rows: int, buckets: Sequence[int]) -> int:
    """Return the smallest of the ascending `buckets` that holds `rows`; ValueError if none does."""
    for bucket in buckets:
        if bucket >= rows:
            return bucket
    raise ValueError(f"{rows} rows are more than the largest bucket, {buckets[-1]}")


def run_padded(engine: Callable[[Tensor], Tensor], buckets: Sequence[int], batch: Tensor) -> Tensor:
    """Run `batch` (rows, …) padded to its bucket with copies of its last row; return the real rows only."""
    rows = batch.shape[0]
    missing = bucket_for(rows, buckets) - rows
    if missing:
        batch = torch.cat([batch, batch[-1:].expand(missing, *batch.shape[1:])])
    return engine(batch)[:rows]


class Subject(Protocol):
    """A model as it is built, examined and stored."""

    model: str  # its name in the catalogue
    kind: Kind
    networks: tuple[Network, ...]
    preparation: str  # in words: what happens to an input before the network
    weights: str  # what its weights are, as a hash or in words
    untrained: bool
    device: torch.device
    buckets: tuple[int, ...]  # items per batch that the server may ask for
    splits: bool  # whether parts of a batch may run at the same time, on fewer cores each
    no_int8: str  # why it is not built in int8, "" if it is

    @property
    def expected(self) -> Any:
        """What eager float32 says to the inputs of the gate; computed once and kept."""

    def specs(self, precision: Precision, layout: Layout, buckets: Sequence[int]) -> tuple[Spec, ...]:
        """Return what to build of each network, for batches of `buckets` items."""

    def calibration(self) -> tuple[Tensor, ...]:
        """Return batches (1, …) to measure the ranges of int8 on; raises BuildFailed."""

    def examine(self, engines: Sequence[Engine], precision: Precision, buckets: Sequence[int]) -> Any:
        """Hold `engines`, one per network, against eager float32: a parity.Report."""

    def batch(self, engines: Sequence[Engine], items: int) -> Callable[[], object]:
        """Return a function that runs one batch of `items` to its end, for timing."""
