"""The one command for a person with an NVIDIA GPU: is TensorRT there, do its engines compute the right thing, how fast?

TensorRT's libraries come from NVIDIA's own index and need a card, so the tests hold what engines/backends/tensorrt.py
calls against a record of the signatures of torch-tensorrt instead. This script makes the record as well, from the
source in the wheel that setup.cfg pins; nothing of the wheel is run.
"""

import argparse
import ast
import configparser
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from engines.backends import tensorrt
from scripts import build_engines
from server.settings import variable

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("ViT-B-32__openai", "facenet-vggface2")

# Public name: the module whose source gives it that name, and where it is defined.
DEFINED = {
    "torch_tensorrt.Device": ("torch_tensorrt/__init__.py", "torch_tensorrt/_Device.py"),
    "torch_tensorrt.Input": ("torch_tensorrt/__init__.py", "torch_tensorrt/_Input.py"),
    "torch_tensorrt.dynamo.CompilationSettings": (
        "torch_tensorrt/dynamo/__init__.py",
        "torch_tensorrt/dynamo/_settings.py",
    ),
    "torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine": (
        "torch_tensorrt/dynamo/__init__.py",
        "torch_tensorrt/dynamo/_compiler.py",
    ),
    "torch_tensorrt.runtime.TorchTensorRTModule": (
        "torch_tensorrt/runtime/__init__.py",
        "torch_tensorrt/dynamo/runtime/_TorchTensorRTModule.py",
    ),
}
DEFAULTS = "torch_tensorrt/dynamo/_defaults.py"
# Where the names of a plan's outputs are made; the name that we count on has to stand there.
INTERPRETER = "torch_tensorrt/dynamo/conversion/_TRTInterpreter.py"
OUTPUT_NAMES = 'name = f"output{i}"'


def pinned() -> str:
    """Return the version of torch-tensorrt in setup.cfg."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    for line in config["options.extras_require"]["cuda"].splitlines():
        name, _, version = line.partition("==")
        if name.strip() == tensorrt.PACKAGE:
            return version.strip()
    raise LookupError(f"setup.cfg pins no {tensorrt.PACKAGE}: add it to the extra cuda")


def record_of(version: str) -> Path:
    """Return the file that has the signatures of that version."""
    return ROOT / f"tests/engines/backends/torch_tensorrt_{version.replace('.', '_')}.json"


def download(version: str, folder: Path) -> Path:
    """Return the wheel of torch-tensorrt, fetched into `folder` without what it depends on."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    requirement = f"{tensorrt.PACKAGE}=={version}"
    subprocess.run([*command, "--only-binary=:all:", "--dest", str(folder), requirement], check=True)  # noqa: S603 - pip
    (wheel,) = folder.glob("*.whl")
    return wheel


def read(wheel: Path, version: str) -> dict[str, Any]:
    """Return the signatures of all in DEFINED, and the defaults that they name, as JSON.

    `parameters` is how they stand in the source, without types; `keywords` are what is taken from **kwargs. Raises
    LookupError where the source is not as expected.
    """
    with zipfile.ZipFile(wheel) as archive:
        sources = {name: archive.read(name).decode() for name in archive.namelist() if name.endswith(".py")}
    if OUTPUT_NAMES not in sources[INTERPRETER]:
        raise LookupError(f"{INTERPRETER} names outputs in another way: look at OUTPUT in engines/backends/tensorrt.py")
    signatures = {}
    for public, (exporter, definer) in DEFINED.items():
        name = public.rpartition(".")[2]
        if not any(name in _imported(node) for node in ast.walk(ast.parse(sources[exporter]))):
            raise LookupError(f"{exporter} does not give {name} its public name any more")
        signatures[public] = _signature(ast.parse(sources[definer]), name)
    defaults = {
        f"_defaults.{target.id}": ast.unparse(node.value)
        for node in ast.parse(sources[DEFAULTS]).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    return {"version": version, "signatures": signatures, "defaults": defaults}


def _imported(node: ast.AST) -> set[str]:
    return {alias.asname or alias.name for alias in node.names} if isinstance(node, ast.ImportFrom) else set()


def _signature(module: ast.Module, name: str) -> dict[str, Any]:
    definition = next(n for n in module.body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == name)
    if isinstance(definition, ast.FunctionDef):
        return {"parameters": _bare(definition.args), "keywords": []}
    made = [n for n in definition.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
    if made:
        made[0].args.args.pop(0)  # self
        return {"parameters": _bare(made[0].args), "keywords": sorted(_keywords(made[0]))}
    fields = [f"{ast.unparse(n.target)}={n.value and ast.unparse(n.value)}" for n in _fields(definition)]
    return {"parameters": ", ".join(fields), "keywords": []}


def _fields(dataclass: ast.ClassDef) -> list[ast.AnnAssign]:
    return [node for node in dataclass.body if isinstance(node, ast.AnnAssign)]


def _bare(arguments: ast.arguments) -> str:
    """Return parameters as source, without their types."""
    for node in ast.walk(arguments):
        if isinstance(node, ast.arg):
            node.annotation = None
    return ast.unparse(arguments)


def _keywords(function: ast.FunctionDef) -> set[str]:
    """Return the constants x in all kwargs[x] of `function`."""
    return {
        node.slice.value
        for node in ast.walk(function)
        if isinstance(node, ast.Subscript)
        and isinstance(node.value, ast.Name)
        and node.value.id == "kwargs"
        and isinstance(node.slice, ast.Constant)
        and isinstance(node.slice.value, str)
    }


def record(wheel: Path | None) -> int:
    """Write the record of the pinned version; say whether it is the one that is there already."""
    version = pinned()
    with TemporaryDirectory() as folder:
        found = read(wheel or download(version, Path(folder)), version)
    file = record_of(version)
    same = file.exists() and json.loads(file.read_text(encoding="utf-8")) == found
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"{file.relative_to(ROOT)}: {'as it was' if same else 'written; run the tests now'}")
    return 0


def check() -> int:
    """Say what is missing, or let scripts.build_engines build, examine and time engines of untrained models."""
    device = torch.device("cuda", 0)
    if (reason := tensorrt.available(device, "float32")) is not None:
        print(reason)
        return 1
    os.environ[variable("untrained")] = "true"
    return build_engines.main([*MODELS, "--backend", "tensorrt", "--precision", "all", "--device", "cuda", "--again"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the check, or make the record; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.check_tensorrt", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--record", action="store_true", help="read the signatures of the pinned wheel instead")
    parser.add_argument("--wheel", type=Path, help="the wheel, where there is no network")
    options = parser.parse_args(arguments)
    return record(options.wheel) if options.record or options.wheel else check()


if __name__ == "__main__":
    sys.exit(main())
