"""The fused attention computes what the stock one computes, under the same names."""

import pytest
import torch
from open_clip.model import CLIP
from torch import nn

from engines import attention, catalog
from engines.attention import SelfAttention


def stock(width: int = 64, heads: int = 4) -> nn.MultiheadAttention:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        module = nn.MultiheadAttention(width, heads, batch_first=True).eval()
        nn.init.normal_(module.in_proj_bias)
        nn.init.normal_(module.out_proj.bias)
        return module


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("length", [1, 7, 50])
@pytest.mark.parametrize("masked", [False, True])
@torch.inference_mode()
def test_it_equals_the_stock_attention(batch: int, length: int, masked: bool) -> None:
    module = stock()
    x = torch.randn(batch, length, 64, generator=torch.Generator().manual_seed(length))
    mask = torch.full((length, length), float("-inf")).triu(1) if masked else None
    expected, _ = module(x, x, x, need_weights=False, attn_mask=mask)
    result, weights = SelfAttention(module)(x, x, x, need_weights=False, attn_mask=mask)
    assert weights is None
    assert torch.allclose(result, expected, atol=1e-5)
    assert not torch.allclose(result, torch.zeros_like(result), atol=0.1)


def test_the_state_dict_keeps_its_names_and_values() -> None:
    module = stock()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    after = SelfAttention(module).state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_whole_model_is_fused_and_answers_the_same() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = CLIP(**catalog.demo_config()).eval()
    pixels = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    ids = torch.randint(1, 4000, (2, 77), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = model.encode_image(pixels), model.encode_text(ids)
        attention.fuse(model)
        results = model.encode_image(pixels), model.encode_text(ids)
    assert not any(isinstance(module, nn.MultiheadAttention) for module in model.modules())
    assert sum(isinstance(module, SelfAttention) for module in model.modules()) == 6
    for result, wanted in zip(results, expected, strict=True):
        assert torch.cosine_similarity(result, wanted).min() >= 0.999999


@pytest.mark.parametrize(
    "other",
    [
        nn.MultiheadAttention(8, 2),
        nn.MultiheadAttention(8, 2, batch_first=True, kdim=4, vdim=4),
        nn.MultiheadAttention(8, 2, batch_first=True, dropout=0.1),
        nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True),
    ],
    ids=["sequence first", "cross", "dropout", "bias"],
)
def test_other_kinds_are_refused(other: nn.MultiheadAttention) -> None:
    with pytest.raises(ValueError, match="only plain self-attention"):
        attention.fuse(nn.Sequential(other))
