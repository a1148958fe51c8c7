"""AOTInductor: a network exported, compiled to a library ahead of time, and saved as one package.

The code is C++ for a processor and Triton for a GPU, so building needs a C++ compiler; loading needs none.

A package is an archive with a library and its constants. PyTorch's C++ loader unpacks it to the folder for temporary
files and opens the library there, so that folder must allow execution. It is called straight: nothing is unpickled. The
Python around it would unpickle exported programs found in the archive, and compile test programs at every load.

While a batch runs on a processor, Python is locked: the loader's call does not let other threads in.
"""

import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from engines import export
from engines.engine import BackendName, Precision, Spec
from engines.errors import ArtefactBroken, BuildFailed

OPTIONS = {
    "freezing": True,  # weights become constants, laid out as the kernels want them
    "cpp.dynamic_threads": True,  # as many threads as torch has when it runs, not as it had when it was built
    "aot_inductor.precompile_headers": False,  # kept for a next build in a folder that outlives this one
}
FOLDED = {getattr(torch.ops.aten, name).Tensor for name in ("add", "sub", "mul", "div")}


@dataclass(frozen=True, slots=True)
class Private:
    """What this backend is made of is private to torch, and may stand elsewhere in another version."""

    loader: Any
    compile_and_package: Any
    fresh_cache: Any
    compiler: str


class Inductor:
    """A compiled network. `run` computes a batch on the device."""

    backend: BackendName = "inductor"

    def __init__(self, run: Callable[[Tensor], Tensor], spec: Spec) -> None:
        self.precision: Precision = spec.precision
        self.device = spec.device
        self._run = run
        self._spec = spec

    @torch.inference_mode()
    def __call__(self, batch: Tensor) -> Tensor:
        """Compute `batch`; raises ValueError if it is not as the spec says, since compiled code would not look."""
        _check(batch, self._spec)
        return self._run(_laid_out(batch, self.device))


def available(device: torch.device, precision: Precision) -> str | None:
    """Return None, or one sentence that says why AOTInductor cannot build for `precision` on `device`."""
    try:
        compiler = _private().compiler
    except ImportError as error:
        return _elsewhere(error)
    if shutil.which(compiler) is None:
        return f"AOTInductor needs a C++ compiler to build, and there is no {compiler}: install it (Debian: g++)."
    return export.refusal(device, precision)


def build(module: nn.Module, spec: Spec, folder: Path) -> None:
    """Export and compile `module` into `folder`; raises BuildFailed."""
    try:
        private = _private()
    except ImportError as error:
        raise BuildFailed(_elsewhere(error)) from error
    try:
        program = export.exported(export.lowered(module, spec.precision).to(spec.device), spec)
        _name_numbers(program)
        # Compilers write their caches into the folder, where they are found and removed with it if this process dies.
        with (
            tempfile.TemporaryDirectory(dir=folder) as caches,
            private.fresh_cache(dir=caches),
            warnings.catch_warnings(),
        ):
            # The compiler itself calls a part of torch that torch calls deprecated.
            warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated")
            with torch.no_grad():
                private.compile_and_package(
                    program, package_path=str(_file(spec, folder)), inductor_configs=dict(OPTIONS)
                )
    except Exception as error:  # the exporter runs the network's code, the compiler another process: any error may come
        raise BuildFailed(f"AOTInductor cannot compile {spec.network}: {_first_line(error)}") from error


def load(module: nn.Module | None, spec: Spec, folder: Path) -> Inductor:
    """Return the engine that `build` left in `folder`; raises ArtefactBroken. `module` is not needed."""
    file = _file(spec, folder)
    index = -1 if spec.device.index is None else spec.device.index  # -1 is the current GPU, or a processor
    try:
        # Single-threaded: without its own events between runs, which a CUDA graph could not hold.
        loader = _private().loader(str(file), "model", True, 1, index)
    except ImportError as error:
        raise ArtefactBroken(_elsewhere(error)) from error
    except RuntimeError as error:
        raise ArtefactBroken(f"{file} cannot be loaded, build it anew: {_first_line(error)}") from error

    def run(batch: Tensor) -> Tensor:
        output: Tensor
        (output,) = loader.run([batch])
        return output

    return Inductor(run, spec)


def _name_numbers(program: ExportedProgram) -> None:
    """Write the numbers in sums and products of `program` as tensors.

    Freezing folds a number behind a convolution into its weights, and keeps all of a network's under one name: the last
    one would count for all (the sources of torch 2.8 and 2.12 agree). Tensors get names of their own.
    """
    graph = program.graph
    for node in graph.nodes:
        if node.target in FOLDED and isinstance(node.args[1], float):
            with graph.inserting_before(node):
                # float32 without dimensions changes no type: the result has that of the other operand.
                kind = {"dtype": torch.float32, "device": node.meta["val"].device}
                number = graph.call_function(torch.ops.aten.full.default, ([], node.args[1]), kind)
            number.meta["val"] = node.meta["val"].new_empty((), dtype=torch.float32)
            node.update_arg(1, number)
    program.graph_module.recompile()


def _check(batch: Tensor, spec: Spec) -> None:
    bounds = {dimension: (low, high) for dimension, low, high in spec.free}
    limits = [(1, spec.buckets[-1]), *(bounds.get(i, (size, size)) for i, size in enumerate(spec.item))]
    fits = len(limits) == batch.ndim and all(
        low <= size <= high for size, (low, high) in zip(batch.shape, limits, strict=True)
    )
    if batch.dtype != spec.dtype or not fits:
        raise ValueError(
            f"{spec.network} is compiled for {spec.dtype} of sizes {limits}, not for {batch.dtype} {tuple(batch.shape)}"
        )


def _laid_out(batch: Tensor, device: torch.device) -> Tensor:
    """Return `batch` on `device`, by rows: compiled code takes the strides for granted."""
    return batch.to(device, non_blocking=True).contiguous()


def _private() -> Private:
    """Import the private parts of torch; raises ImportError.

    Not at the head of this module: where one is missing, the sentence about it is all that should come of it.
    """
    from torch._C._aoti import AOTIModelPackageLoader
    from torch._inductor import aoti_compile_and_package, config
    from torch._inductor.utils import fresh_cache

    return Private(AOTIModelPackageLoader, aoti_compile_and_package, fresh_cache, config.cpp.cxx[1])


def _elsewhere(error: ImportError) -> str:
    return f"AOTInductor is not where it was in this torch, {torch.__version__} ({error}): take another backend."


def _file(spec: Spec, folder: Path) -> Path:
    return folder / f"{spec.network}.pt2"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
