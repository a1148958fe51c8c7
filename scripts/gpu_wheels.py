"""python -m scripts.gpu_wheels FOLDER: the wheels that a bare machine with a GPU lacks for `make test-gpu`.

Such a machine has Python 3.12 on Linux x86-64, PyTorch with torchvision and the CUDA libraries, and no network. Knows
what the tests under the marker gpu, the server and the bench of engines import beside these; the versions are those of
constraints.txt. Writes requirements.txt into the folder as well, which `make test-gpu WHEELS=FOLDER PYTHON=python3`
installs.
"""

import argparse
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Sequence
from email.parser import BytesHeaderParser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
MOST = 50_000_000  # bytes
PYTHON = "3.12"
# From manylinux_2_17 on, which a machine with CUDA 13 is sure to run, in the names that wheels carry.
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")

# What a machine with PyTorch for CUDA has, in versions of its own. Too large for the folder, and tied to its driver.
THERE = ("torch", "torchvision")
# What the networks, the server, the scripts that build and measure engines, and the tests need. Not transformers, by
# far the largest: only the multilingual text sides use it, and no test for GPUs has one.
WANTED = (
    "aiohttp",
    "facenet-pytorch",
    "filelock",
    "ftfy",
    "httpx2",
    "huggingface-hub",
    "multipart",
    "numpy",
    "open-clip-torch",
    "orjson",
    "pillow",
    "prometheus-client",
    "psutil",
    "pydantic",
    "pydantic-settings",
    "pytest",
    "pytest-asyncio",
    "regex",
    "rich",
    "safetensors",
    "simplejpeg",
    "timm",
    "tokenizers",
    "tqdm",
)


def download(names: Iterable[str], folder: Path) -> None:
    """Put the wheels of `names`, without what they require, into `folder`; raises CalledProcessError."""
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation=cp", f"--python-version={PYTHON}"]
    command += [f"--platform={platform}" for platform in PLATFORMS]
    command += [f"--constraint={CONSTRAINTS}", f"--dest={folder}", *names]
    subprocess.run(command, check=True)  # noqa: S603 - our own interpreter and names from this file


def required(wheel: Path) -> set[str]:
    """Return the names of what `wheel` requires on the bare machine, in the form of package indexes."""
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = BytesHeaderParser().parsebytes(archive.read(metadata)).get_all("Requires-Dist", [])
    target = {
        "python_version": PYTHON,
        "python_full_version": f"{PYTHON}.0",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "os_name": "posix",
        "extra": "",
    }
    requirements = [Requirement(line) for line in lines]
    return {
        canonicalize_name(requirement.name)
        for requirement in requirements
        if requirement.marker is None or requirement.marker.evaluate(target)
    }


def collect(folder: Path) -> None:
    """Fill `folder` with the wheels of WANTED and of all that these require and THERE has not."""
    missing = set(WANTED)
    while missing:
        download(sorted(missing), folder)
        wheels = list(folder.glob("*.whl"))
        here = {parse_wheel_filename(wheel.name)[0] for wheel in wheels}
        missing = set().union(*(required(wheel) for wheel in wheels)) - here - set(THERE)
    pins = [f"{name}=={version}\n" for name, version, *_ in (parse_wheel_filename(wheel.name) for wheel in wheels)]
    (folder / "requirements.txt").write_text("".join(sorted(pins)), encoding="utf-8")


def told(sizes: Sequence[tuple[str, int]]) -> str:
    """Return a table of names and bytes, the largest first, and their sum."""
    lines = [f"{size / 1e6:7.2f} MB  {name}" for name, size in sorted(sizes, key=lambda one: -one[1])]
    return "\n".join([*lines, f"{sum(size for _, size in sizes) / 1e6:7.2f} MB  in {len(sizes)} wheels"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Fill the folder that is named and say what is in it; end with an error if that is too much."""
    parser = argparse.ArgumentParser(description="Collect the wheels for make test-gpu on a machine without network.")
    parser.add_argument("folder", type=Path, help="an empty or new folder")
    folder = parser.parse_args(arguments).folder
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        parser.error(f"{folder} is not empty: name a new folder, so that no old wheel stays in it")
    collect(folder)
    sizes = [(wheel.name, wheel.stat().st_size) for wheel in folder.glob("*.whl")]
    print(told(sizes))
    if sum(size for _, size in sizes) > MOST:
        sys.exit(f"This is more than {MOST / 1e6:.0f} MB: take out of WANTED what no test under tests/gpu needs.")
    print(f"On the machine with the GPU: make test-gpu WHEELS={folder} PYTHON=python3")


if __name__ == "__main__":
    main()
