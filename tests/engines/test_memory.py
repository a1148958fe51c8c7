"""What is told of the memory of GPUs where there is none; tests/gpu has the rest."""

import pytest
import torch

from engines import memory


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu/test_memory.py measures where there is a GPU")
def test_where_no_gpu_is_used_nothing_is_told_and_none_is_woken() -> None:
    assert memory.gpu_bytes() == {}
    assert not torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
