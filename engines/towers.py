"""The two towers of a CLIP model as networks: bytes or token ids in, unit vectors out.

Knows how open_clip and transformers build an architecture, and puts scaling, mean, std and the L2 norm into the
network. One tower is built, never both, in whatever state and on whatever device torch makes tensors by default:
weights come from engines.checkpoints or engines.untrained. Deliberately knows no files of weights and no tokenizer.
"""

import json
from importlib import resources
from typing import Any

import open_clip
import torch
from open_clip.model import _build_text_tower, _build_vision_tower
from open_clip.pretrained import get_pretrained_cfg
from open_clip.transform import PreprocessCfg
from torch import Tensor, nn
from torch.nn import functional

from engines import attention, catalog
from engines.catalog import Clip


class Tower(nn.Module):
    """One side of a CLIP model: `tower`, whose parameters have the published names, and the norm behind it.

    `centre` (dim,) is what an untrained network answers on average; None for networks with weights.
    """

    centre: Tensor | None

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        self.register_buffer("centre", None, persistent=False)

    @property
    def body(self) -> nn.Module:
        """What lower precisions cast; the rest stays float32."""
        return self.tower

    def raw(self, inputs: Tensor) -> Tensor:
        """Return what the tower itself answers, (B, dim) in the type of its weights."""
        raise NotImplementedError

    def forward(self, inputs: Tensor) -> Tensor:
        vectors = self.raw(inputs).float()
        if self.centre is not None:
            vectors = vectors - self.centre
        return functional.normalize(vectors, dim=-1)


class PictureTower(Tower):
    """uint8 (B, S, S, 3) to float32 (B, dim) of unit length."""

    def __init__(self, tower: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__(tower)
        self.scale = tuple(1.0 / (255.0 * s) for s in std)
        self.shift = tuple(-m / s for m, s in zip(mean, std, strict=True))

    def raw(self, inputs: Tensor) -> Tensor:
        planes = [inputs[..., c].float() * self.scale[c] + self.shift[c] for c in range(3)]
        pixels = torch.stack(planes, dim=1)  # (B, 3, S, S)
        output: Tensor = self.tower(pixels.to(next(self.tower.parameters()).dtype))
        return output


class TextTower(Tower):
    """open_clip's own text transformer: int64 (B, L) ids to float32 (B, dim) of unit length.

    `L` may be shorter than the context where attention is causal and the pooling takes the end token: what comes
    behind that token is never looked at. open_clip's own forward adds the whole mask and refuses this.
    """

    @property
    def causal(self) -> bool:
        """Whether a token sees only those before it."""
        tower: Any = self.tower
        return tower.attn_mask is not None

    def raw(self, inputs: Tensor) -> Tensor:
        tower: Any = self.tower
        length = inputs.shape[1]
        dtype = tower.transformer.get_cast_dtype()
        x = tower.token_embedding(inputs).to(dtype) + tower.positional_embedding[:length].to(dtype)
        mask = tower.attn_mask[:length, :length].to(dtype) if self.causal else None
        x = tower.ln_final(tower.transformer(x, attn_mask=mask))  # (B, L, width)
        if tower.pool_type == "argmax":  # the end token has the highest id
            pooled = x[torch.arange(x.shape[0], device=x.device), inputs.argmax(dim=-1)]
        else:
            pooled = x[:, -1]
        projection = tower.text_projection
        output: Tensor = projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection
        return output


class MaskedText(nn.Module):
    """A text side from transformers with its pooling and projection, under the names that checkpoints have."""

    def __init__(self, transformer: nn.Module, projection: nn.Module, mean_pooling: bool, pad_id: int) -> None:
        super().__init__()
        self.transformer = transformer
        self.proj = projection
        self.mean_pooling = mean_pooling
        self.has_types = isinstance(getattr(transformer.config, "type_vocab_size", None), int)
        self.pad_id = pad_id

    def forward(self, ids: Tensor) -> Tensor:
        mask = (ids != self.pad_id).long()
        # Told, they need not be looked up in a buffer, which TensorRT cannot do for free lengths. M2M100 has none.
        types = {"token_type_ids": torch.zeros_like(ids)} if self.has_types else {}
        states: Tensor = self.transformer(
            input_ids=ids, attention_mask=mask, **types
        ).last_hidden_state  # (B, L, width)
        if self.mean_pooling:
            weights = mask.unsqueeze(-1).to(states.dtype)
            pooled = (states * weights).sum(dim=1) / weights.sum(dim=1)
        else:
            pooled = states[:, 0]
        projected: Tensor = self.proj(pooled)
        return projected


class MaskedTextTower(Tower):
    """int64 (B, L) ids to float32 (B, dim) of unit length; padding is masked, so `L` may end with the longest text."""

    def raw(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.tower(inputs)
        return output


def visual(entry: Clip) -> PictureTower:
    """Build the picture side of `entry` as its constructor leaves it."""
    config = architecture(entry)
    quick_gelu = entry.quickgelu or config.get("quick_gelu", False)
    tower = _build_vision_tower(config["embed_dim"], config["vision_cfg"] | _NO_DOWNLOAD, quick_gelu)
    attention.fuse(tower)
    return PictureTower(tower, *mean_and_std(entry)).eval()


def textual(entry: Clip) -> Tower:
    """Build the text side of `entry` as its constructor leaves it."""
    config = architecture(entry)
    if entry.mclip_repo:
        # Multilingual-CLIP: mean over the mask, then one linear layer with a bias.
        transformer, width, pad_id = _transformer(text_config(entry))
        return MaskedTextTower(MaskedText(transformer, nn.Linear(width, entry.dim), True, pad_id)).eval()
    text_cfg = config["text_cfg"]
    if "hf_model_name" in text_cfg:
        transformer, width, pad_id = _transformer(text_config(entry))
        projection = _projection(text_cfg.get("hf_proj_type", "mlp"), width, config["embed_dim"])
        mean_pooling = text_cfg["hf_pooler_type"] == "mean_pooler"
        return MaskedTextTower(MaskedText(transformer, projection, mean_pooling, pad_id)).eval()
    quick_gelu = entry.quickgelu or config.get("quick_gelu", False)
    tower = _build_text_tower(config["embed_dim"], text_cfg, quick_gelu)
    attention.fuse(tower)
    return TextTower(tower).eval()


def architecture(entry: Clip) -> dict[str, Any]:
    """Return the architecture of `entry` in open_clip's config format."""
    config: dict[str, Any] = (
        catalog.demo_config() if entry.name == catalog.DEMO else open_clip.get_model_config(entry.arch)
    )
    return config


def text_config(entry: Clip) -> dict[str, Any]:
    """Return the config of a text side from transformers, which lies in this package: nothing is fetched for it.

    The values are those of config.json in the repositories xlm-roberta-base, xlm-roberta-large,
    facebook/nllb-200-distilled-600M and -1.3B, and sentence-transformers/LaBSE; only those of the encoder are kept.
    """
    if entry.mclip_repo:
        name = "LaBSE" if "LaBSE" in entry.tokenizer else "xlm-roberta-large"
    else:
        name = architecture(entry)["text_cfg"]["hf_model_name"].rsplit("/", 1)[-1]
    text = resources.files("engines").joinpath(f"data/text/{name}.json").read_text(encoding="utf-8")
    config: dict[str, Any] = json.loads(text)
    return config


def mean_and_std(entry: Clip) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std per channel of pixels in 0..1, as open_clip has them for the weights of `entry`."""
    if entry.name == catalog.DEMO:
        return PreprocessCfg.mean, PreprocessCfg.std
    config = get_pretrained_cfg(entry.arch, entry.tag)
    return tuple(config["mean"]), tuple(config["std"])


_NO_DOWNLOAD = {"timm_model_pretrained": False}


def _transformer(config: dict[str, Any]) -> tuple[nn.Module, int, int]:
    # Imported here: transformers takes seconds, and most models do without it.
    from transformers import BertConfig, BertModel, M2M100Config, XLMRobertaConfig, XLMRobertaModel
    from transformers.models.m2m_100.modeling_m2m_100 import M2M100Encoder

    kind, pad_id = config["model_type"], int(config["pad_token_id"])
    if kind == "xlm-roberta":
        return XLMRobertaModel(XLMRobertaConfig(**config), add_pooling_layer=False), config["hidden_size"], pad_id
    if kind == "bert":
        return BertModel(BertConfig(**config), add_pooling_layer=False), config["hidden_size"], pad_id
    return M2M100Encoder(M2M100Config(**config)), config["d_model"], pad_id


def _projection(kind: str, width: int, dim: int) -> nn.Module:
    if kind == "linear":
        return nn.Linear(width, dim, bias=False)
    hidden = (width + dim) // 2
    return nn.Sequential(nn.Linear(width, hidden, bias=False), nn.GELU(), nn.Linear(hidden, dim, bias=False))
