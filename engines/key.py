"""All that a built engine depends on, in words, and the short name that follows from it.

Two engines of one key compute the same on machines that are the same. Knows what to ask for: the tensors, our own
sources, versions of libraries, the device. Deliberately knows neither where engines lie nor how they are made.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from engines import machine
from engines.engine import BackendName, Network, Precision, Spec, Subject
from engines.errors import EngineMissing
from engines.model import Kind

PACKAGE = "facet-ml"
# What the networks are made of, besides torch.
LIBRARIES = ("open_clip_torch", "facenet-pytorch", "timm", "torchvision", "transformers")
COMPILERS: dict[BackendName, tuple[str, ...]] = {
    "eager": ("torch",),
    "torchscript": ("torch",),
    "inductor": ("torch",),
    "tensorrt": ("torch_tensorrt", "tensorrt"),
    "openvino": ("openvino",),
    "ipex": ("intel_extension_for_pytorch",),
}
# The modules beside this one whose change may change what an engine computes, or whether it passes the gate.
CODE = (
    "engine.py",
    "export.py",
    "fitting.py",
    "transfer.py",
    "towers.py",
    "checkpoints.py",
    "weights.py",
    "bpe.py",
    "tokenizer.py",
    "attention.py",
    "clip.py",
    "own.py",
    "faces.py",
    "mtcnn.py",
    "area.py",
    "preprocess.py",
    "untrained.py",
    "parity.py",
    "samples.py",
    "subject.py",
    "quantise.py",
)
# What a newer installation or another calibration changes, and what must be equal for that alone to be why an engine
# is of no use any more.
_VERSIONS = ("torch", "compiler", "libraries", "code", "package", "calibration")
_PLACE = ("model", "kind", "weights", "backend", "precision", "device", "instructions", "cuda")
_DIGITS = 32  # of a sha256 in hexadecimal: 128 bits tell apart whatever will ever be built


class Key(BaseModel):
    """What an engine was built from and for. All fields are words for people; equal words mean an equal engine.

    `weights` is what the weights were made from, a hash or words, which together with `code` and `libraries` says what
    they are; `code` is a hash; `inputs` are names, shapes and numbers of rows; `calibration` is what the ranges
    of int8 were measured on, by number and hash, "" in other precisions; `compiler` and `libraries` are versions; "" is
    what a device does not have.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    model: str
    kind: Kind
    weights: str
    preparation: str
    inputs: str
    backend: BackendName
    precision: Precision
    calibration: str
    device: str
    instructions: str
    cuda: str
    torch: str
    compiler: str
    libraries: str
    code: str
    package: str

    def digest(self) -> str:
        """Return 32 hexadecimal digits that are the same for equal keys, in every process on every machine."""
        return _hash([json.dumps(self.model_dump(), sort_keys=True, ensure_ascii=True).encode("ascii")])

    def replaces(self, other: "Key") -> bool:
        """Return whether `other` is of the same weights and device, but of other versions or inputs to calibrate on.

        Other weights do not count: both may be in use, as random ones are beside real ones of the same name.
        """
        mine, its = self.model_dump(), other.model_dump()
        same = all(mine[name] == its[name] for name in _PLACE)
        return same and any(mine[name] != its[name] for name in _VERSIONS)

    def differences(self, here: "Key") -> list[str]:
        """Return a sentence for each field in which an engine of this key does not fit `here`."""
        mine, its = self.model_dump(), here.model_dump()
        return [f"{name}: built with {mine[name]!r}, here is {its[name]!r}" for name in mine if mine[name] != its[name]]


def key_for(
    subject: Subject,
    backend: BackendName,
    precision: Precision,
    device: torch.device,
    specs: Sequence[Spec],
    calibration: str = "",
) -> Key:
    """Return the key of an engine of `subject` for `specs`, one per network, on this machine.

    `calibration` is what `calibration_words` says. Raises EngineMissing if the backend's libraries are not installed.
    """
    identity = machine.identity(device)
    return Key(
        model=subject.model,
        kind=subject.kind,
        weights=subject.weights,
        preparation=subject.preparation,
        inputs="; ".join(_inputs(spec) for spec in specs),
        backend=backend,
        precision=precision,
        calibration=calibration,
        device=identity.device,
        instructions=identity.instructions,
        cuda=identity.cuda,
        torch=str(torch.__version__),  # with its "+cpu" or "+cu130", which the version of the package may lack
        compiler=_compiler(backend),
        libraries=", ".join(filter(None, map(_version, LIBRARIES))),
        code=_code(backend),
        package=_version(PACKAGE) or f"{PACKAGE}, not installed",
    )


def weights_hash(networks: Sequence[Network]) -> str:
    """Return a hash of every tensor in `networks`: name, type, shape and bytes; buffers that are never saved as well.

    The classes of the modules go in too: an activation has no tensors, and QuickGELU is not GELU.
    """
    return _hash(part for network in networks for part in _parts(network))


def calibration_words(batches: Sequence[Tensor]) -> str:
    """Return how many `batches` there are to calibrate on and a hash of them; "" for none."""
    parts = (part for batch in batches for part in (f"{tuple(batch.shape)}\n".encode(), _bytes(batch)))
    return f"{len(batches)} inputs {_hash(parts)}" if batches else ""


def _parts(network: Network) -> Iterable["bytes | memoryview"]:
    yield f"network {network.name}\n".encode()
    for name, module in network.module.named_modules():
        yield f"module {name} {type(module).__qualname__}\n".encode()
    for tensors in (network.module.named_parameters(), network.module.named_buffers()):
        for name, tensor in tensors:
            yield f"tensor {name} {_dtype(tensor.dtype)} {tuple(tensor.shape)}\n".encode()
            yield _bytes(tensor)


def _bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor in the order of its dimensions, however it lies in memory."""
    # As bytes, since NumPy has no bfloat16.
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().data


def _inputs(spec: Spec) -> str:
    free = [f", dimension {dimension} from {lowest} to {highest}" for dimension, lowest, highest in spec.free]
    shape = ", ".join(["rows", *map(str, spec.item)])
    rows = " ".join(map(str, spec.buckets))
    return f"{spec.network}: {_dtype(spec.dtype)} ({shape}){''.join(free)}, in batches of {rows}"


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _compiler(backend: BackendName) -> str:
    versions = [_version(name) for name in COMPILERS[backend]]
    if None in versions:
        missing = " and ".join(name for name, version in zip(COMPILERS[backend], versions, strict=True) if not version)
        raise EngineMissing(f"The backend {backend} needs {missing}: install it, or choose another backend.")
    return ", ".join(filter(None, versions))


def _version(package: str) -> str | None:
    """Return the name and version of an installed package without importing it, None if it is not there."""
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return None


@cache  # the sources do not change under a running process
def _code(backend: BackendName) -> str:
    here = Path(__file__).parent
    names = (*CODE, f"backends/{backend}.py")
    return _hash(part for name in names for part in (f"file {name}\n".encode(), (here / name).read_bytes()))


def _hash(parts: Iterable["bytes | memoryview"]) -> str:
    sha256 = hashlib.sha256()
    for part in parts:
        sha256.update(f"{len(part)}\n".encode())  # so that no two sequences of parts run into the same bytes
        sha256.update(part)
    return sha256.hexdigest()[:_DIGITS]
