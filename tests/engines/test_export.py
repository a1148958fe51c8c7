"""Casting copies, and exported programs that stand for every size that the spec names."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from engines import export
from engines.backends import eager
from engines.engine import Precision
from tests.engines.backends.networks import assert_untouched, masked_text_tower, refine_stage, sizes_of, state_of
from tests.engines.backends.small_networks import (
    CPU,
    picture_tower,
    proposal_stage,
    spec_of,
    text_tower,
)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)]
)
def test_a_cast_copy_leaves_the_network_as_it_is(precision: Precision, dtype: torch.dtype) -> None:
    module: Any = picture_tower()[0].train().requires_grad_(True)
    module.centre = torch.zeros(256)
    before = state_of(module)
    copy: Any = export.lowered(module, precision)
    assert {parameter.dtype for parameter in copy.body.parameters()} == {dtype}
    assert copy.centre.dtype == torch.float32
    assert not copy.training
    assert not any(parameter.requires_grad for parameter in copy.parameters())
    assert module.training
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert_untouched(module, before)


def test_int8_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be cast to int8"):
        export.lowered(picture_tower()[0], "int8")


def run(program: torch.export.ExportedProgram, batch: torch.Tensor) -> torch.Tensor:
    """Compute `batch` as a compiler sees the program: its operations, without the guards of its module."""
    weights = [
        program.state_dict.get(str(spec.target), program.constants.get(str(spec.target)))
        for spec in program.graph_signature.input_specs
        if spec.kind != torch.export.graph_signature.InputKind.USER_INPUT
    ]
    (output,) = torch.fx.Interpreter(program.graph_module).run(*weights, batch)
    result: torch.Tensor = output
    return result


@pytest.mark.parametrize("sample", [picture_tower, text_tower, masked_text_tower, refine_stage, proposal_stage])
def test_a_program_takes_every_size(sample: Any) -> None:
    module, example, free = sample()
    spec = spec_of(example, "float32", 1 if sample is proposal_stage else 8, free)
    program = export.exported(export.lowered(module, "float32"), spec)
    for cut in sizes_of(example, free):
        for rows in sorted({1, min(3, spec.buckets[-1]), spec.buckets[-1]}):
            with torch.inference_mode():
                expected, output = module(cut[:rows]), run(program, cut[:rows])
            assert output.shape == expected.shape
            assert torch.allclose(output, expected, atol=1e-5)


@pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (3, 2), (3, 3)])
def test_padded_pooling_is_pooling_that_rounds_up(kernel: int, stride: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for height in range(kernel, kernel + 7):
        for width in range(kernel, kernel + 7):
            maps = torch.randn(2, 3, height, width, generator=generator)
            expected = functional.max_pool2d(maps, kernel, stride, ceil_mode=True)
            assert torch.equal(export.PaddedPool(kernel, stride)(maps), expected)


def test_no_pooling_of_an_exported_network_with_free_sides_rounds_up() -> None:
    module, example, free = proposal_stage()
    assert any(isinstance(child, nn.MaxPool2d) and child.ceil_mode for child in module.modules())
    program = export.exported(module, spec_of(example, "float32", 1, free))
    pools = [node for node in program.graph.nodes if "max_pool2d" in str(node.target)]
    assert pools
    assert not any(True in node.args for node in pools)
    assert any(isinstance(child, nn.MaxPool2d) and child.ceil_mode for child in module.modules())


def test_the_example_for_a_compiler_has_no_size_that_looks_fixed() -> None:
    _, ids, free = text_tower()
    traced = export.trace_input(spec_of(ids, "float32", 8, free))
    assert traced.shape[0] == 2
    assert free[0][1] < traced.shape[1] < free[0][2]
    assert traced.is_contiguous()
    _, levels, _ = proposal_stage()
    assert export.trace_input(spec_of(levels, "float32", 1)).shape[0] == 1


@pytest.mark.parametrize("before", [True, False])
def test_the_fast_path_is_off_for_a_while(before: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.mha._is_fastpath_enabled", before)
    seen = []

    def fail() -> None:
        with export.without_fast_path():
            seen.append(torch.backends.mha.get_fastpath_enabled())
            raise RuntimeError("in between")

    with pytest.raises(RuntimeError, match="in between"):
        fail()
    assert seen == [False]
    assert torch.backends.mha.get_fastpath_enabled() == before


def test_what_is_refused_is_said_in_one_sentence() -> None:
    for precision in ("int8", "float16"):
        reason = export.refusal(CPU, precision)
        assert reason is not None
        assert reason.endswith(".")
    assert export.refusal(CPU, "float32") is None
    assert eager.available(CPU, "float32") is None
