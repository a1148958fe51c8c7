"""TorchScript: a network traced, its weights frozen into the graph, saved as one file.

Deprecated by PyTorch in favour of what inductor.py uses, and absent from Python 3.14 on; kept because it needs no
compiler on the machine and adds nothing to the time of a start. Frozen batch norms are folded into convolutions.

Nothing in the file is run by Python: torch.jit.load hands its path to PyTorch's C++ importer, whose own unpickler
makes tensors, numbers, strings and containers and calls nothing by name, and whose code is TorchScript.
"""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engines import export
from engines.engine import BackendName, Precision, Spec
from engines.errors import ArtefactBroken, BuildFailed

jit: Any = torch.jit  # most of it has no types


def available(device: torch.device, precision: Precision) -> str | None:
    """Return None, or one sentence that says why TorchScript cannot be used for `precision` on `device`."""
    if sys.version_info >= (3, 14):
        return "TorchScript does not work on Python 3.14 and later: take inductor."
    return export.refusal(device, precision)


class TorchScript:
    """A frozen network; it takes every batch size."""

    backend: BackendName = "torchscript"

    def __init__(self, network: nn.Module, precision: Precision, device: torch.device) -> None:
        self.precision = precision
        self.device = device
        self._network = network

    @torch.inference_mode()
    def __call__(self, batch: Tensor) -> Tensor:
        # Without this the first calls are watched and later ones run by what was seen: sizes would decide on the code
        # that runs, and each new one cost memory. Freezing has done what the executor could add.
        with jit.optimized_execution(False):
            output: Tensor = self._network(batch.to(self.device, non_blocking=True))
        return output


def build(module: nn.Module, spec: Spec, folder: Path) -> None:
    """Trace and freeze `module` into `folder`; raises BuildFailed."""
    try:
        network = export.lowered(module, spec.precision).to(spec.device)
        with torch.no_grad(), export.without_fast_path(), _deprecated(), warnings.catch_warnings():
            # The tracer warns of every size that Python code looks at. The gate runs all sizes that are in use.
            warnings.simplefilter("ignore", jit.TracerWarning)
            # It reads every attribute of a module, those that transformers calls deprecated too.
            warnings.simplefilter("ignore", FutureWarning)
            # Its own check would trace again and compare graphs; the gate compares results, and of other sizes.
            traced = jit.trace(network, export.trace_input(spec), check_trace=False)
            jit.save(jit.freeze(traced), _file(spec, folder))
    except Exception as error:  # a network's own code is run by the tracer, and may raise whatever it likes
        raise BuildFailed(f"TorchScript cannot compile {spec.network}: {_first_line(error)}") from error


def load(module: nn.Module | None, spec: Spec, folder: Path) -> TorchScript:
    """Return the engine that `build` left in `folder`; raises ArtefactBroken. `module` is not needed."""
    file = _file(spec, folder)
    try:
        with _deprecated():
            network = jit.load(file, map_location=spec.device)
    except (RuntimeError, ValueError) as error:  # ValueError where there is no such file
        raise ArtefactBroken(f"{file} cannot be loaded, build it anew: {_first_line(error)}") from error
    return TorchScript(network.eval(), spec.precision, spec.device)


def _file(spec: Spec, folder: Path) -> Path:
    return folder / f"{spec.network}.pt"


@contextmanager
def _deprecated() -> Iterator[None]:
    """Keep quiet that torch.jit is deprecated, as torch does from 2.10 on: the docstring above says it."""
    with warnings.catch_warnings():
        # Whatever its category, which torch 2.14 changed.
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated")
        yield


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
