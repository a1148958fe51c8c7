"""Eager PyTorch in every precision, without a change to the network that it is given."""

from pathlib import Path

import pytest
import torch

from engines.backends import eager
from engines.engine import Precision
from tests.engines.backends.networks import NETWORKS, assert_engine_equals, assert_untouched, state_of
from tests.engines.backends.small_networks import CPU, picture_tower, spec_of


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_it_computes_what_the_network_computes(name: str, precision: Precision, tmp_path: Path) -> None:
    module, example, free = NETWORKS[name]()
    spec = spec_of(example, precision, 1 if name == "proposal" else 8, free)
    before = state_of(module)
    eager.build(module, spec, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert_engine_equals(eager.load(module, spec, tmp_path), module, spec)
    assert_untouched(module, before)


def test_bfloat16_is_another_computation(tmp_path: Path) -> None:
    module, example, _ = picture_tower()
    exact = eager.load(module, spec_of(example, "float32"), tmp_path)(example)
    coarse = eager.load(module, spec_of(example, "bfloat16"), tmp_path)(example)
    assert not torch.equal(coarse, exact)


@pytest.mark.parametrize(
    ("device", "precision", "words"),
    [
        ("cpu", "int8", "openvino"),
        ("cpu", "float16", "take bfloat16 or float32"),
        ("xpu", "float32", "not on xpu"),
    ],
)
def test_it_says_why_it_cannot_be_used(device: str, precision: Precision, words: str) -> None:
    reason = eager.available(torch.device(device), precision)
    assert reason is not None
    assert words in reason
    assert reason.endswith(".")


def test_float32_is_always_there() -> None:
    assert eager.available(CPU, "float32") is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is said where there is no GPU")
def test_a_gpu_that_torch_does_not_see_is_named() -> None:
    assert "no CUDA GPU" in str(eager.available(torch.device("cuda"), "float32"))


def test_int8_is_no_cast(tmp_path: Path) -> None:
    module, example, _ = picture_tower()
    with pytest.raises(ValueError, match="cannot be cast to int8"):
        eager.load(module, spec_of(example, "int8"), tmp_path)
