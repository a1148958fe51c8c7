"""Weights only by safetensors or torch.load(weights_only=True): all of the code is held to it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(path for folder in ("engines", "server", "scripts") for path in (ROOT / folder).rglob("*.py"))
# Calls that would run what a file says, or may: by the last parts of their names.
NEVER = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads", "dill.load", "joblib.load",
    "shelve.open", "torch.export.load", "torch_tensorrt.load", "torch.hub.load", "hub.load_state_dict_from_url",
    "yaml.load", "yaml.unsafe_load", "builtins.eval", "eval", "exec", "os.system", "os.popen",
}  # fmt: skip
# PyTorch's own importer of TorchScript, which runs no Python, of engines that the store found to be ours alone.
TORCHSCRIPT = {"engines/backends/torchscript.py", "engines/backends/ipex.py"}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Yield each call of a module with its dotted name, names of imports resolved."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {alias.asname or alias.name.split(".")[0]: alias.name if alias.asname else alias.name.split(".")[0]
                      for alias in node.names}  # fmt: skip
        elif isinstance(node, ast.ImportFrom):
            known |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            first, _, rest = ast.unparse(node.func).partition(".")
            yield known.get(first, first) + (f".{rest}" if rest else ""), node


def problems(path: Path) -> list[str]:
    """Return what a module may not call."""
    found = []
    for name, call in calls(path):
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if name in NEVER:
            found.append(name)
        if name == "torch.load" and keywords.get("weights_only") != "True":
            found.append("torch.load without weights_only=True")
        if name == "torch.jit.load" and path.relative_to(ROOT).as_posix() not in TORCHSCRIPT:
            found.append("torch.jit.load outside of the engines that the store keeps")
        if name.endswith(".from_pretrained") and keywords.get("trust_remote_code") != "False":
            found.append("from_pretrained without trust_remote_code=False")
        if name in ("numpy.load", "np.load") and keywords.get("allow_pickle", "False") != "False":
            found.append("numpy.load with allow_pickle")
        if keywords.get("shell", "False") != "False":
            found.append("a shell")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_module_runs_what_a_file_says(path: Path) -> None:
    assert problems(path) == []


@pytest.mark.parametrize(
    "code",
    [
        "import torch\ntorch.load(file)",
        "import torch\ntorch.load(file, weights_only=False)",
        "from torch import load as read\nread(file)",
        "import pickle as p\np.loads(data)",
        "from torch import jit\njit.load(file)",
        "from transformers import AutoModel\nAutoModel.from_pretrained(x)",
        "import numpy as np\nnp.load(x, allow_pickle=True)",
        "import subprocess\nsubprocess.run(x, shell=True)",
        "eval(text)",
    ],
)
def test_each_of_them_would_be_seen(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "module.py"
    path.write_text(code, encoding="utf-8")
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert problems(path) != []


def test_the_one_that_reads_published_weights_is_among_those_that_are_looked_at() -> None:
    names = [name for name, _ in calls(ROOT / "engines" / "weights.py")]
    assert "torch.load" in names
    assert "safetensors.safe_open" in names
