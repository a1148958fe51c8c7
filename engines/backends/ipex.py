"""Intel Extension for PyTorch: prepacked weights and fused operations on processors, traced and frozen.

Legacy. Intel ended the extension with its version 2.8, which runs beside torch 2.8 alone, so it lives in an environment
of its own; openvino took its place. Kept for those who have it, and said to be legacy wherever it is chosen.

What is saved is TorchScript. Its reader is a C++ one of PyTorch's that makes tensors, containers and the extension's
packed weights; it never runs Python's pickle. Knows no networks; deliberately knows nothing of newer versions of torch,
and is imported (with the extension, which patches operators of the whole process) only when asked for.
"""

import importlib
import logging
import warnings
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from engines import export
from engines.engine import BackendName, Precision, Spec
from engines.errors import ArtefactBroken, BuildFailed

log = logging.getLogger(__name__)

jit: Any = torch.jit  # most of it has no types

PACKAGE = "intel-extension-for-pytorch"


class Ipex:
    """A traced, frozen network; runs in the calling thread."""

    backend: BackendName = "ipex"

    def __init__(self, network: Any, precision: Precision, device: torch.device) -> None:
        self.precision = precision
        self.device = device
        self._network = network

    @torch.inference_mode()
    def __call__(self, batch: Tensor) -> Tensor:
        output: Tensor = self._network(batch)
        return output


def available(device: torch.device, precision: Precision) -> str | None:
    """Return None, or one sentence that says why the extension cannot be used for `precision` on `device`."""
    try:
        version = metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return (
            "Intel's extension for PyTorch is not installed; it is legacy (ended with torch 2.8) and needs an "
            "environment of its own: python -m venv .venv-ipex && PIP_CONSTRAINT=constraints-ipex.txt "
            ".venv-ipex/bin/pip install '.[ipex]'."
        )
    if _minor(version) != _minor(torch.__version__):
        # Looked at before the import, which would end the process's output with a complaint and an AttributeError.
        return f"{PACKAGE} {version} needs torch {_minor(version)}, this is {torch.__version__}: install the pair."
    if device.type != "cpu":
        return f"ipex is used on processors alone here, not on {device.type}."
    if not torch.cpu._is_avx2_supported():  # no public question; the import would end the process
        return f"{PACKAGE} needs a processor with AVX2: take another backend."
    if precision == "float16":
        return "ipex is used in float32 and bfloat16 here: float16 needs a processor that has it."
    return export.refusal(device, precision)


def build(module: nn.Module, spec: Spec, folder: Path) -> None:
    """Cast, prepack, trace and freeze `module` into `folder`; raises BuildFailed."""
    if (reason := available(spec.device, spec.precision)) is not None:
        raise BuildFailed(reason)
    extension, file = _extension(), _file(spec, folder)
    network = export.lowered(module, spec.precision)
    example = export.trace_input(spec)
    dtype = None if spec.precision == "float32" else export.DTYPES[spec.precision]
    try:
        with torch.no_grad(), export.without_fast_path(), warnings.catch_warnings():
            # Tracing tells of every size that might have become fixed; the gate tries all sizes that are in use.
            warnings.simplefilter("ignore", jit.TracerWarning)
            # The extension reads every attribute of every module, those that transformers calls deprecated too.
            warnings.simplefilter("ignore", FutureWarning)
            packed = extension.optimize(network, dtype=dtype, inplace=True)
            # Its own check would trace again and compare graphs; the gate compares results, and of other sizes.
            traced = jit.trace(packed, (example,), check_trace=False)
            jit.save(jit.freeze(traced), file)
        # In float32 the extension stumbles at some networks only when it has fused their operations.
        _warm_up(jit.load(file, map_location=spec.device), example)
    except Exception as error:  # whatever an ended extension raises, another backend can be built instead
        raise BuildFailed(f"ipex cannot compile {spec.network} ({_first_line(error)}): take another backend") from error


def load(module: nn.Module | None, spec: Spec, folder: Path) -> Ipex:
    """Return the engine that `build` left in `folder`; raises ArtefactBroken. `module` is not needed."""
    if (reason := available(spec.device, spec.precision)) is not None:
        raise ArtefactBroken(reason)
    file = _file(spec, folder)
    _extension()  # registers the operators that the file names
    try:
        network = jit.load(file, map_location=spec.device)
        _warm_up(network, export.trace_input(spec))
    except (RuntimeError, ValueError, OSError) as error:  # what jit.load raises: a broken file, a missing one
        raise ArtefactBroken(f"{file} cannot be loaded ({_first_line(error)}): build it anew") from error
    log.warning("%s runs on ipex, which is legacy and ended with torch 2.8: openvino takes its place.", spec.network)
    return Ipex(network.eval(), spec.precision, spec.device)


def _file(spec: Spec, folder: Path) -> Path:
    return folder / f"{spec.network}.pt"


def _extension() -> ModuleType:
    return importlib.import_module("intel_extension_for_pytorch")


@torch.inference_mode()
def _warm_up(network: Any, example: Tensor) -> None:
    """Let TorchScript look at one call and optimise at the next, as it does, before anybody waits."""
    with warnings.catch_warnings():
        # The extension's own word that it is legacy, which the log says better.
        warnings.filterwarnings("ignore", "JIT pass will be deprecated", UserWarning)
        for _ in range(2):
            network(example)


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _first_line(error: Any) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
