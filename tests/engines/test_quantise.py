"""int8 computes nearly what float32 does, says what is missing, and neither writes nor reports anything."""

import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from engines import intel, machine, quantise
from engines.backends import openvino
from engines.errors import BuildFailed
from tests.engines.backends.small_networks import picture_tower, spec_of


class Small(nn.Module):
    """Ten convolutions over bytes (B, 16, 16, 3), and the L2 norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        hidden = [nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.ReLU()) for _ in range(8)]
        first, last = nn.Conv2d(3, 16, 3, bias=False), nn.Conv2d(16, 8, 14, bias=False)
        self.body = nn.Sequential(first, nn.ReLU(), *hidden, last)
        for weights in self.body.parameters():
            nn.init.kaiming_uniform_(weights)  # as it is by default, all inputs would become one

    def forward(self, batch: Tensor) -> Tensor:
        return functional.normalize(self.body(batch.permute(0, 3, 1, 2).float() / 128 - 1).flatten(1), dim=1)


def pictures(count: int, seed: int = 1, side: int = 16) -> Tensor:
    coarse = torch.randint(0, 256, (count, 3, 4, 4), generator=torch.Generator().manual_seed(seed)).float()
    return functional.interpolate(coarse, side, mode="bilinear").permute(0, 2, 3, 1).to(torch.uint8)


def singly(batch: Tensor) -> tuple[Tensor, ...]:
    return tuple(row[None] for row in batch)


def converted(module: nn.Module, example: Tensor, folder: Path) -> Any:
    openvino.build(module, spec_of(example, "float32"), folder)
    return intel.openvino().Core().read_model(folder / "network.xml")


def run(model: Any, batch: Tensor) -> Tensor:
    compiled = intel.openvino().Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return torch.from_numpy(np.array(compiled([batch.numpy()])[0]))


def types(model: Any) -> list[str]:
    return [node.get_type_name() for node in model.get_ordered_ops()]


def test_it_computes_nearly_the_same_of_inputs_that_it_was_not_calibrated_on(tmp_path: Path) -> None:
    module = Small().eval().requires_grad_(False)
    model = converted(module, pictures(2), tmp_path)
    assert "FakeQuantize" not in types(model)
    model = quantise.quantised(model, singly(pictures(16)))
    assert types(model).count("FakeQuantize") >= 3
    weights = [node for node in model.get_ordered_ops() if node.get_type_name() == "Constant"]
    assert sum(node.get_element_type().get_type_name() == "i8" for node in weights) == 3
    others = pictures(12, seed=2)
    answers = run(model, others)
    torch.testing.assert_close(answers.norm(dim=1), torch.ones(12))  # the L2 norm is left alone
    with torch.inference_mode():
        cosines = (answers * module(others)).sum(dim=1)
    assert cosines.median() > 0.999
    assert 0.99 < cosines.min() < 0.999999


def test_ranges_of_inputs_unlike_those_that_come_are_too_coarse(tmp_path: Path) -> None:
    module = Small().eval().requires_grad_(False)
    model = converted(module, pictures(2), tmp_path)
    grey = torch.full((8, 16, 16, 3), 128, dtype=torch.uint8)
    model = quantise.quantised(model, singly(grey))
    others = pictures(12, seed=2)
    with torch.inference_mode():
        assert (run(model, others) * module(others)).sum(dim=1).min() < 0.99


def test_the_input_side_of_a_transformer_keeps_its_precision(tmp_path: Path) -> None:
    module, example, _ = picture_tower()
    model = converted(module, example[:2], tmp_path)
    products = [node for node in model.get_ordered_ops() if node.get_type_name() in ("Convolution", "MatMul")]
    names = {node.get_friendly_name() for node in products}
    first = [node.get_friendly_name() for node in products[:5]]
    model = quantise.quantised(model, singly(example))
    rounded = {
        node.get_friendly_name()
        for node in model.get_ordered_ops()
        if node.get_friendly_name() in names and node.input_value(0).get_node().get_type_name() == "FakeQuantize"
    }
    assert rounded
    assert not rounded & set(first)


def test_it_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = converted(Small().eval(), pictures(2), tmp_path)
    with pytest.raises(BuildFailed, match="needs inputs to measure ranges on"):
        quantise.quantised(model, ())
    monkeypatch.setitem(sys.modules, "nncf", None)  # Python then refuses to import it
    with pytest.raises(BuildFailed, match=r"needs NNCF, .*: pip install 'facet-ml\[int8\]'\.$"):
        quantise.quantised(model, singly(pictures(8)))
    # What was built is loaded without it.
    if machine.native("int8", torch.device("cpu")) is None:
        assert openvino.available(torch.device("cpu"), "int8") is None


def test_it_writes_nothing_and_leaves_the_log_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = converted(Small().eval(), pictures(2), tmp_path)
    capsys.readouterr()
    quantise.quantised(model, singly(pictures(8)))
    assert capsys.readouterr().out == ""
    assert logging.getLoggerClass() is logging.Logger
    theirs = logging.getLogger("nncf")
    assert (theirs.handlers, theirs.propagate) == ([], True)
