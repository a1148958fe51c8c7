"""The folder of wheels holds all that the tests on a GPU require, and says what it weighs."""

import ast
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from scripts import gpu_wheels

ROOT = Path(__file__).parents[2]
# Where the name to import is not the name to install.
PACKAGES = {
    "PIL": "pillow",
    "dotenv": "python-dotenv",
    "facenet_pytorch": "facenet-pytorch",
    "huggingface_hub": "huggingface-hub",
    "open_clip": "open-clip-torch",
    "pydantic_settings": "pydantic-settings",
}


def wheel(folder: Path, name: str, version: str = "1.0", requires: Iterable[str] = (), padding: int = 0) -> Path:
    """Write a wheel that requires `requires` and weighs `padding` bytes more than it must."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}"]
        lines += [f"Requires-Dist: {line}" for line in requires]
        archive.writestr(f"{name}-{version}.dist-info/METADATA", "\n".join(lines) + "\n")
        archive.writestr(f"{name}-{version}.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("padding", b"\0" * padding)
    return path


class Index:
    """A package index: names, what they require, what they weigh; counts what it was asked for."""

    def __init__(self, requires: dict[str, tuple[str, ...]], padding: int = 0) -> None:
        self.requires = requires
        self.padding = padding
        self.asked: list[list[str]] = []

    def download(self, names: Iterable[str], folder: Path) -> None:
        """Take the place of gpu_wheels.download."""
        self.asked.append(list(names))
        for name in names:
            wheel(folder, name.replace("-", "_"), requires=self.requires[name], padding=self.padding)


def test_what_a_wheel_requires_is_read_for_the_bare_machine(tmp_path: Path) -> None:
    path = wheel(
        tmp_path,
        "thing",
        requires=(
            "Typing_Extensions>=4; python_version < '3.13'",
            "exceptiongroup; python_version < '3.11'",
            "colorama; sys_platform == 'win32'",
            "hf-xet<2; platform_machine == 'x86_64'",
            "sphinx; extra == 'docs'",
            "torch",
        ),
    )
    assert gpu_wheels.required(path) == {"typing-extensions", "hf-xet", "torch"}


def test_what_the_wanted_ones_require_comes_too_but_not_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = Index({"open-clip-torch": ("torch>=2", "torchvision", "ftfy"), "ftfy": ("wcwidth",), "wcwidth": ()})
    monkeypatch.setattr(gpu_wheels, "WANTED", ("open-clip-torch",))
    monkeypatch.setattr(gpu_wheels, "download", index.download)
    gpu_wheels.collect(tmp_path)
    assert index.asked == [["open-clip-torch"], ["ftfy"], ["wcwidth"]]
    assert (tmp_path / "requirements.txt").read_text() == "ftfy==1.0\nopen-clip-torch==1.0\nwcwidth==1.0\n"


def test_the_folder_can_be_installed_from_without_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = Index({"thing-a": ("thing-b>=1",), "thing-b": ()})
    monkeypatch.setattr(gpu_wheels, "WANTED", ("thing-a",))
    monkeypatch.setattr(gpu_wheels, "download", index.download)
    gpu_wheels.collect(tmp_path)
    command = [sys.executable, "-m", "pip", "install", "--isolated", "--dry-run", "--no-index"]
    command += ["--python-version=3.12", "--only-binary=:all:", f"--target={tmp_path / 'target'}"]
    command += ["--find-links", str(tmp_path), "--requirement", str(tmp_path / "requirements.txt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own interpreter
    assert done.returncode == 0, done.stderr
    assert "Would install thing-a-1.0 thing-b-1.0" in done.stdout.replace("_", "-")


def test_sizes_and_their_sum_are_told_the_largest_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_wheels, "WANTED", ("small", "large"))
    monkeypatch.setattr(gpu_wheels, "download", Index({"small": (), "large": ()}).download)
    wheels = gpu_wheels.told([("small.whl", 1_500_000), ("large.whl", 40_000_000)])
    assert wheels.splitlines() == ["  40.00 MB  large.whl", "   1.50 MB  small.whl", "  41.50 MB  in 2 wheels"]
    gpu_wheels.main([str(tmp_path / "wheels")])
    assert "in 2 wheels" in capsys.readouterr().out


def test_a_folder_that_is_too_large_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_wheels, "WANTED", ("large",))
    monkeypatch.setattr(gpu_wheels, "download", Index({"large": ()}, padding=gpu_wheels.MOST).download)
    with pytest.raises(SystemExit, match="more than 50 MB"):
        gpu_wheels.main([str(tmp_path)])


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wheel(tmp_path, "old")
    with pytest.raises(SystemExit):
        gpu_wheels.main([str(tmp_path)])
    assert "is not empty" in capsys.readouterr().err


def test_all_that_is_run_on_a_gpu_imports_only_what_is_wanted() -> None:
    programs = ["tests/conftest.py", "scripts/build_engines.py", "scripts/bench/__main__.py", "scripts/bench/engine.py"]
    programs += ["server/__main__.py"]
    imported = _third_party([*(ROOT / "tests/gpu").glob("*.py"), *(ROOT / program for program in programs)])
    names = {canonicalize_name(PACKAGES.get(name, name)) for name in imported}
    assert {"torch", "pytest", "numpy", "open-clip-torch", "pydantic"} <= names
    assert names <= {*gpu_wheels.WANTED, *gpu_wheels.THERE}


def test_every_version_is_pinned() -> None:
    pinned = {canonicalize_name(line.split("==")[0]) for line in gpu_wheels.CONSTRAINTS.read_text().splitlines()}
    assert pinned >= set(gpu_wheels.WANTED)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(
    ("variables", "python"), [(["WHEELS=/wheels", "PYTHON=python3"], "build/gpu/bin/python"), ([], ".venv/bin/python")]
)
def test_the_command_uses_the_folder_if_there_is_one(variables: list[str], python: str) -> None:
    done = subprocess.run(  # noqa: S603 - prints commands only
        ["make", "--no-print-directory", "--dry-run", "--old-file=.venv/.installed", "test-gpu", *variables],  # noqa: S607 - from PATH
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == f"{python} -m pytest -m gpu tests/gpu"
    assert ("--no-index --find-links /wheels" in done.stdout) is bool(variables)


def _third_party(paths: Iterable[Path]) -> set[str]:
    """Return the packages that `paths` and the modules of ours that they import need at once, by import name."""
    found: set[str] = set()
    seen: set[Path] = set()
    waiting = list(paths)
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        for name in _imported_at_once(path):
            module = ROOT / name.replace(".", "/")
            ours = [one for one in (module.with_suffix(".py"), module / "__init__.py") if one.exists()]
            waiting += ours
            top = name.split(".")[0]
            if not ours and top not in sys.stdlib_module_names and not (ROOT / top).is_dir():
                found.add(top)
    return found


def _imported_at_once(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names
