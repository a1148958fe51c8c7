"""TensorRT through torch-tensorrt: the whole network as one plan for one kind of NVIDIA GPU, built ahead of time.

What is saved is the plan that TensorRT itself reads, and beside it, as JSON, the names of its input and output. Of the
formats of torch_tensorrt.save none would do: torch_tensorrt.load, and torch.export.load under it, unpickle whatever an
archive declares to be a pickle; "aot_inductor" adds a C++ compiler to what a build needs, and "torchscript" is
deprecated. The runtime of the package takes a plan as it is, and a plan asks for no rebuild.

A plan is all or nothing: an operation without a converter fails the build and is named. Splitting the network instead
would give up on speed silently, and could not be saved this way.

Networks with two free sizes, as P-Net's pictures, are refused. A plan has one profile, and TensorRT sets memory aside
for the largest shape in it: at 65,536 pixels a side the first layer of P-Net would fill 170 GB. With a lower bound some
photos would fail, since for the smallest faces a level of the pyramid is as large as the photo. So the detector, which
is of one backend as a whole, stays with another. One free size, as that of texts, is small.

Deliberately does not use: the package's own engine cache, whose key leaves out weights, GPU and TensorRT's version; its
CUDA graphs, a switch of the whole process that records anew whenever the shape differs from the last one, which batches
in buckets would make it do all the time. Imports torch_tensorrt only when asked for. Knows no networks.
"""

import importlib
import io
import json
import warnings
from contextlib import redirect_stdout
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from engines import export
from engines.engine import BackendName, Precision, Spec
from engines.errors import ArtefactBroken, BuildFailed

PACKAGE = "torch-tensorrt"
WORKSPACE = 4 << 30  # bytes of GPU memory that the kernels of a plan may use beside weights and activations
OUTPUT = "output0"  # what torch-tensorrt calls the only output of a plan


class TensorRT:
    """A plan in the memory of a GPU, with what it needs to run."""

    backend: BackendName = "tensorrt"

    def __init__(self, network: Any, precision: Precision, device: torch.device) -> None:
        self.precision = precision
        self.device = device
        self._network = network

    @torch.inference_mode()
    def __call__(self, batch: Tensor) -> Tensor:
        with torch.cuda.device(_ordinal(self.device)):
            output: Tensor = self._network(_widened(batch.to(self.device, non_blocking=True)))
        return output


def available(device: torch.device, precision: Precision) -> str | None:
    """Return None, or one sentence that says why TensorRT cannot be used for `precision` on `device`."""
    if device.type != "cuda":
        return f"TensorRT runs on NVIDIA GPUs alone, not on {device.type}."
    try:
        version = metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return (
            f"{PACKAGE} is not installed: pip install --extra-index-url https://pypi.nvidia.com 'facet-ml[cuda]', "
            "with PIP_CONSTRAINT=constraints.txt."
        )
    if _minor(version) != _minor(torch.__version__):
        return f"{PACKAGE} {version} goes with torch {_minor(version)}, this is {torch.__version__}: install the pair."
    if (reason := export.refusal(device, precision)) is not None:
        return reason
    try:
        _package()
    except Exception as error:  # noqa: BLE001 - a plain Exception is what it raises where TensorRT's libraries miss
        return (
            f"{PACKAGE} is installed but cannot be imported ({_first_line(error)}): install TensorRT's libraries, "
            "pip install --extra-index-url https://pypi.nvidia.com tensorrt-cu13."
        )
    return None


def build(module: nn.Module, spec: Spec, folder: Path) -> None:
    """Cast `module`, export it and let TensorRT compile it for every size of `spec` into `folder`.

    Raises BuildFailed.
    """
    if (reason := available(spec.device, spec.precision)) is not None:
        raise BuildFailed(reason)
    if len(spec.free) > 1:
        raise BuildFailed(
            f"TensorRT would set memory aside for the largest picture of all, and {spec.network} takes pictures of any "
            "size: take inductor for it, or torchscript."
        )
    spec = replace(spec, example=_widened(spec.example), dtype=torch.float32 if _narrow(spec.dtype) else spec.dtype)
    try:
        with torch.cuda.device(_ordinal(spec.device)):
            network = _convertible(export.lowered(module, spec.precision)).to(spec.device)
            program = export.exported(network, spec)
            plan = _compiled(program, spec)
    except Exception as error:  # export, converters and TensorRT raise all sorts; another backend can be built instead
        raise BuildFailed(f"TensorRT cannot compile {spec.network} ({_first_line(error)})") from error
    file, bindings = _files(spec, folder)
    file.write_bytes(plan)
    names = {"inputs": list(program.graph_signature.user_inputs), "outputs": [OUTPUT]}
    bindings.write_text(json.dumps(names), encoding="utf-8")


def load(module: nn.Module | None, spec: Spec, folder: Path) -> TensorRT:
    """Return the engine that `build` left in `folder`; raises ArtefactBroken. `module` is not needed."""
    if (reason := available(spec.device, spec.precision)) is not None:
        raise ArtefactBroken(reason)
    torch_tensorrt = _package()
    file, bindings = _files(spec, folder)
    try:
        names = json.loads(bindings.read_text(encoding="utf-8"))
        with torch.cuda.device(_ordinal(spec.device)):
            network = torch_tensorrt.runtime.TorchTensorRTModule(
                file.read_bytes(),
                input_binding_names=names["inputs"],
                output_binding_names=names["outputs"],
                name=spec.network,
                settings=torch_tensorrt.dynamo.CompilationSettings(
                    device=torch_tensorrt.Device(gpu_id=spec.device.index or 0)
                ),
            )
    except Exception as error:  # files, JSON, and whatever TensorRT raises on a plan of another version or GPU
        raise ArtefactBroken(f"{file} cannot be loaded ({_first_line(error)}): build it anew") from error
    return TensorRT(network, spec.precision, spec.device)


class Mean(nn.Module):
    """The mean over all places of a map: what nn.AdaptiveAvgPool2d(1) computes."""

    def forward(self, maps: Tensor) -> Tensor:
        """Return the means (N, C, 1, 1) of maps (N, C, H, W)."""
        return maps.mean((2, 3), keepdim=True)


def shapes(spec: Spec) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Return the smallest, the most usual and the largest shape of a batch; TensorRT tunes for the second one.

    That is the fullest batch, since what waits for long comes in full batches, with items of the usual size.
    """
    lowest, highest = list(spec.item), list(spec.item)
    for dimension, low, high in spec.free:
        lowest[dimension], highest[dimension] = low, high
    rows = spec.buckets[-1]
    return (1, *lowest), (rows, *spec.item), (rows, *highest)


def _convertible(network: nn.Module) -> nn.Module:
    """Return `network`, itself changed, with those layers written otherwise that have no converter."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            # Where channels are last in memory it ends with strides of its own, for which there is no converter.
            if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size in (1, (1, 1)):
                setattr(parent, name, Mean())
    return export.without_rounding(network)  # neither has pooling that rounds up


def _compiled(program: torch.export.ExportedProgram, spec: Spec) -> bytes:
    torch_tensorrt = _package()
    smallest, usual, largest = shapes(spec)
    with TemporaryDirectory() as scratch, warnings.catch_warnings():
        # Said at every call of this version, whatever is given.
        warnings.filterwarnings("ignore", "`use_explicit_typing` is deprecated", DeprecationWarning)
        plan: bytes = torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine(
            program,
            arg_inputs=[torch_tensorrt.Input(min_shape=smallest, opt_shape=usual, max_shape=largest, dtype=spec.dtype)],
            device=torch_tensorrt.Device(gpu_id=spec.device.index or 0),
            # The types of the exported program are kept: bfloat16 in the body, float32 around it. `enabled_precisions`
            # has to stay as it is then.
            use_explicit_typing=True,
            disable_tf32=True,  # it keeps 10 bits of a mantissa; float32 here means float32
            require_full_compilation=True,
            workspace_size=WORKSPACE,
            # TensorRT 10's attention layer has known errors in long causal rows. As products and a softmax it is
            # converted in every precision, and TensorRT fuses them by itself.
            decompose_attention=True,
            attn_bias_is_causal=False,  # by default any mask is taken for a causal one, those of padding too
            hardware_compatible=False,  # a plan is for one kind of GPU, as the store's key says
            version_compatible=False,
            immutable_weights=True,
            cache_built_engines=False,
            reuse_cached_engines=False,
            # By default one file in /tmp, which whoever uses the machine may have written.
            timing_cache_path=str(Path(scratch) / "timing.cache"),
        )
    return plan


def _files(spec: Spec, folder: Path) -> tuple[Path, Path]:
    return folder / f"{spec.network}.plan", folder / f"{spec.network}.json"


def _package() -> Any:
    with redirect_stdout(io.StringIO()):  # it prints what it raises as well
        return importlib.import_module("torch_tensorrt")


def _widened(batch: Tensor) -> Tensor:
    """Return bytes as float32, all else as it is.

    TensorRT takes bytes, but can do nothing with them except cast; the networks take channels apart first. So the cast
    is done before, on the GPU: bytes still travel over the bus.
    """
    return batch.float() if _narrow(batch.dtype) else batch


def _narrow(dtype: torch.dtype) -> bool:
    return dtype == torch.uint8


def _ordinal(device: torch.device) -> int:
    return -1 if device.index is None else device.index  # -1 is the current device


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
