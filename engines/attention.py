"""Self-attention as one fused operation, in the place of nn.MultiheadAttention and under its parameters' names.

Knows the one way in which open_clip's blocks call it. Stock attention takes a fast path that tracing and export do not
follow; without that path it copies its weights for every head in bfloat16, which makes it slower than float32.
"""

from torch import Tensor, nn
from torch.nn import functional


class SelfAttention(nn.Module):
    """Takes over the parameters of `source`: the same state dict, the same results within rounding."""

    def __init__(self, source: nn.MultiheadAttention) -> None:
        super().__init__()
        if not source.batch_first or source.in_proj_weight is None or source.bias_k is not None or source.dropout:
            raise ValueError("only plain self-attention without dropout, batch first, can be fused")
        self.num_heads = source.num_heads
        self.in_proj_weight = source.in_proj_weight
        self.in_proj_bias = source.in_proj_bias
        self.out_proj = source.out_proj

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Attend within `query` (B, L, width), which `key` and `value` must be too.

        `attn_mask` (L, L) is added to the logits. Returns (B, L, width), and None where others return the weights.
        """
        batch, length, width = query.shape
        projected = functional.linear(query, self.in_proj_weight, self.in_proj_bias)
        q, k, v = projected.view(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)  # each (B, heads, L, d)
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask)
        output: Tensor = self.out_proj(attended.transpose(1, 2).reshape(batch, length, width))
        return output, None


def fuse(network: nn.Module) -> None:
    """Replace every nn.MultiheadAttention inside `network` by its fused form; raises ValueError for other kinds."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.MultiheadAttention):
                setattr(module, name, SelfAttention(child))
