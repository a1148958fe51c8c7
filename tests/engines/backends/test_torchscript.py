"""TorchScript traces, freezes, saves and loads without a change to what is computed."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from engines.backends import torchscript
from engines.engine import Precision
from engines.errors import ArtefactBroken, BuildFailed
from tests.engines.backends.networks import (
    NETWORKS,
    assert_engine_equals,
    assert_untouched,
    in_fresh_process,
    state_of,
)
from tests.engines.backends.small_networks import CPU, picture_tower, spec_of, text_tower


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_it_computes_what_the_network_computes(name: str, precision: Precision, tmp_path: Path) -> None:
    module, example, free = NETWORKS[name]()
    spec = spec_of(example, precision, 1 if name == "proposal" else 8, free)
    before = state_of(module)
    torchscript.build(module, spec, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["network.pt"]
    assert_engine_equals(torchscript.load(nn.Identity(), spec, tmp_path), module, spec)
    assert_untouched(module, before)


def test_it_loads_in_another_process(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    module, example, free = text_tower()
    spec = spec_of(example, "float32", 8, free)
    torchscript.build(module, spec, tmp_path)
    batch = example[:3, :40]
    there = in_fresh_process("torchscript", spec, tmp_path, batch, tmp_path_factory.mktemp("scratch"))
    with torch.inference_mode():
        assert torch.allclose(there, module(batch), atol=1e-5)


def test_a_broken_file_is_told(tmp_path: Path) -> None:
    module, example, _ = picture_tower()
    spec = spec_of(example, "float32")
    with pytest.raises(ArtefactBroken, match=r"network\.pt cannot be loaded, build it anew"):
        torchscript.load(module, spec, tmp_path)
    torchscript.build(module, spec, tmp_path)
    file = tmp_path / "network.pt"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ArtefactBroken, match=r"network\.pt cannot be loaded, build it anew"):
        torchscript.load(module, spec, tmp_path)


class Stubborn(nn.Module):
    """Fails in a way of its own when it is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(2, 2)

    def forward(self, batch: Tensor) -> Tensor:
        raise KeyError("no such row")


def test_a_network_that_cannot_be_traced_is_told(tmp_path: Path) -> None:
    with pytest.raises(BuildFailed, match="TorchScript cannot compile network: KeyError: 'no such row'"):
        torchscript.build(Stubborn(), spec_of(torch.zeros(2, 2), "float32"), tmp_path)


def test_it_says_why_it_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert torchscript.available(CPU, "float32") is None
    assert "openvino" in str(torchscript.available(CPU, "int8"))
    monkeypatch.setattr("sys.version_info", (3, 14, 0))
    assert "Python 3.14" in str(torchscript.available(CPU, "float32"))
