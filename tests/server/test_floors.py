"""The floors of the house: what each may import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def imports(path: Path) -> set[str]:
    """Return the top-level names of all packages that a module imports, in functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add((node.module or "").split(".")[0])
    return names


def modules(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found, f"no module under {folder}"
    return found


@pytest.mark.parametrize("path", modules("server"), ids=lambda path: path.name)
def test_the_server_imports_no_torch_and_no_scripts(path: Path) -> None:
    assert not imports(path) & {"torch", "torchvision", "open_clip", "facenet_pytorch", "transformers", "scripts"}


@pytest.mark.parametrize("path", modules("engines"), ids=lambda path: path.name)
def test_the_engines_import_no_http_server(path: Path) -> None:
    assert not imports(path) & {"aiohttp", "server", "scripts"}


def test_starting_the_server_loads_no_torch() -> None:
    code = "import sys, server.__main__; print(sorted({'torch', 'open_clip', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S603 - our own interpreter
    assert done.stdout.strip() == "[]"
