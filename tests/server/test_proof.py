"""Small inputs for each kind of model."""

import pytest

from engines.model import Kind
from server.proof import compute, sample
from tests.server.fakes import FakeModel


@pytest.mark.parametrize("kind", ["textual", "visual", "detection", "recognition"])
def test_a_model_of_each_kind_computes_its_sample(kind: Kind) -> None:
    model = FakeModel(kind, "demo")
    compute(model, kind)
    assert model.batches == [1]
    assert sample(model, kind)[1] == (160 * 160 if kind == "detection" else 1)


def test_what_a_model_raises_is_raised() -> None:
    model = FakeModel("textual", "demo")
    model.fail = lambda item: True
    with pytest.raises(RuntimeError, match="told to fail"):
        compute(model, "textual")
