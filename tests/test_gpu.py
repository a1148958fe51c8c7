"""The tests under the marker gpu are never silently skipped when somebody asks for them."""

import pytest
import torch

from tests.gpu.conftest import first_gpu


def test_without_a_gpu_they_fail_and_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(pytest.fail.Exception, match="no CUDA GPU that PyTorch can use"):
        first_gpu()
