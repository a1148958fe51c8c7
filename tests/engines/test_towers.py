import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.pretrained import get_pretrained_cfg
from torch import Tensor, nn
from torch.nn import functional

from engines import catalog, checkpoints, towers
from engines.catalog import Clip

PUBLISHED = [catalog.clip(name) for name in catalog.names()["clip"] if name != "demo"]
VISUAL_ARCHS = {(entry.arch, entry.quickgelu): entry for entry in PUBLISHED}
TEXT_ARCHS = {(entry.arch, entry.quickgelu, entry.mclip_repo): entry for entry in PUBLISHED}
ENTRY = catalog.clip("ViT-B-32__openai")


def label(entry: Clip) -> str:
    return entry.name


@pytest.mark.parametrize("entry", VISUAL_ARCHS.values(), ids=label)
def test_every_picture_side_has_the_size_and_dimension_of_the_table(entry: Clip) -> None:
    with torch.device("meta"), torch.inference_mode():
        network = towers.visual(entry)
        vectors = network(torch.zeros(1, entry.image_size, entry.image_size, 3, dtype=torch.uint8))
    assert vectors.shape == (1, entry.dim)
    assert vectors.dtype == torch.float32
    side = network.tower.image_size
    assert side in (entry.image_size, (entry.image_size, entry.image_size))


@pytest.mark.parametrize("entry", TEXT_ARCHS.values(), ids=label)
def test_every_text_side_has_the_context_and_dimension_of_the_table(entry: Clip) -> None:
    with torch.device("meta"), torch.inference_mode():
        network = towers.textual(entry)
        if isinstance(network, towers.TextTower):
            ids = torch.zeros(1, entry.context_length, dtype=torch.int64)
            assert network(ids).shape == (1, entry.dim)
            tower: Any = network.tower
            assert tower.positional_embedding.shape[0] == entry.context_length
            assert network.causal == (entry.text_tower == "causal")
        else:
            # transformers looks at the values of the mask, which a meta tensor has not.
            last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
            assert last.out_features == entry.dim
            assert towers.text_config(entry)["max_position_embeddings"] > entry.context_length
            assert entry.text_tower == "masked"


@pytest.mark.parametrize("entry", PUBLISHED, ids=label)
def test_preprocessing_of_the_table_is_that_of_open_clip(entry: Clip) -> None:
    config = get_pretrained_cfg(entry.arch, entry.tag)
    assert config["resize_mode"] == entry.resize
    assert config["interpolation"] == "bicubic"
    assert towers.mean_and_std(entry) == (tuple(config["mean"]), tuple(config["std"]))


def activations(module: nn.Module) -> set[str]:
    kinds = ("QuickGELU", "GELU")
    return {type(child).__name__ for child in module.modules() if type(child).__name__ in kinds}


@pytest.mark.parametrize("entry", [entry for entry in TEXT_ARCHS.values() if entry.text_tower == "causal"], ids=label)
def test_quickgelu_is_where_the_table_has_it(entry: Clip) -> None:
    wanted = {"QuickGELU" if entry.quickgelu else "GELU"}
    with torch.device("meta"):
        assert activations(towers.textual(entry)) == wanted
        # A ResNet has none, whichever is asked for.
        assert activations(towers.visual(entry)) == (set() if entry.arch.startswith("RN") else wanted)


VIT = {"image_size": 32, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8}
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16}
TIMM = {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": "linear"}
CAUSAL = {"context_length": 20, "vocab_size": 100, "width": 48, "heads": 4, "layers": 2}
FIXED = CAUSAL | {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}


def small(vision: dict[str, Any], text: dict[str, Any], quick_gelu: bool = False) -> dict[str, Any]:
    return {"embed_dim": 40, "vision_cfg": vision, "text_cfg": text, "quick_gelu": quick_gelu}


def reference_image(model: Any, entry: Clip, pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in towers.mean_and_std(entry))
    inputs = (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std
    vectors: Tensor = model.encode_image(inputs, normalize=True)
    return vectors


def captions(rows: int, length: int, vocabulary: int) -> Tensor:
    ids = torch.zeros(rows, length, dtype=torch.int64)
    for row in range(rows):
        words = 2 + row % (length // 2)
        ids[row, : words + 1] = torch.randint(1, vocabulary - 1, (words + 1,))
        ids[row, words] = vocabulary - 1
    return ids


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    assert torch.allclose(ours.norm(dim=-1), torch.ones(len(ours)), atol=1e-5)
    assert functional.cosine_similarity(ours, theirs).min() >= 0.99999


# CLIP keeps the text side at the top level of its state, CustomTextCLIP under "text.".
@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (small(VIT, CAUSAL), CLIP),
        (small(VIT, CAUSAL), CustomTextCLIP),
        (small(VIT, CAUSAL, quick_gelu=True), CLIP),
        (small(RESNET, CAUSAL), CLIP),
        (small(TIMM, FIXED), CustomTextCLIP),
    ],
    ids=["vit", "vit under text.", "vit quickgelu", "resnet", "siglip"],
)
def test_towers_equal_open_clip_with_the_same_weights(
    config: dict[str, Any], kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    model: Any = kind(**config).eval()
    monkeypatch.setattr(towers, "architecture", lambda entry: config)
    entry = replace(ENTRY, quickgelu=config["quick_gelu"])
    with checkpoints.to_be_loaded():
        visual, textual = towers.visual(entry), towers.textual(entry)
    for network in (visual, textual):
        checkpoints.load(network, model.state_dict(), "small")
    side = config["vision_cfg"]["image_size"]
    pixels = torch.randint(0, 256, (8, side, side, 3), dtype=torch.uint8)
    ids = captions(8, 20, 100)
    with torch.inference_mode():
        pictures, texts = visual(pixels), textual(ids)
        assert_same(pictures, reference_image(model, entry, pixels))
        assert_same(texts, model.encode_text(ids, normalize=True))
        for rows in (1, 3):
            assert_same(visual(pixels[:rows]), pictures[:rows])
            assert_same(textual(ids[:rows]), texts[:rows])
        if "no_causal_mask" not in config["text_cfg"]:
            assert_same(textual(ids[:, :12]), texts)


def test_quickgelu_changes_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(VIT, CAUSAL)
    monkeypatch.setattr(towers, "architecture", lambda entry: config)
    torch.manual_seed(2)
    plain = towers.visual(replace(ENTRY, quickgelu=False))
    quick = towers.visual(replace(ENTRY, quickgelu=True))
    quick.load_state_dict(plain.state_dict())
    pixels = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    with torch.inference_mode():
        assert (plain(pixels) - quick(pixels)).abs().max() > 1e-4


ROBERTA = {
    "model_type": "xlm-roberta",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "max_position_embeddings": 40,
    "type_vocab_size": 1,
    "vocab_size": 100,
    "pad_token_id": 1,
}
NLLB = {
    "model_type": "m2m_100",
    "d_model": 32,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "max_position_embeddings": 40,
    "scale_embedding": True,
    "vocab_size": 100,
    "pad_token_id": 1,
}


@pytest.mark.parametrize(
    ("config", "projection", "pooler"),
    [(ROBERTA, "mlp", "mean_pooler"), (NLLB, "linear", "cls_pooler")],
    ids=["xlm-roberta", "nllb"],
)
def test_text_sides_of_transformers_equal_open_clip(
    config: dict[str, Any], projection: str, pooler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.manual_seed(3)
    theirs = HFTextEncoder(str(tmp_path), 40, pooler_type=pooler, proj_type=projection, pretrained=False).eval()
    text_cfg = {"hf_model_name": "x", "hf_proj_type": projection, "hf_pooler_type": pooler}
    monkeypatch.setattr(towers, "architecture", lambda entry: small(VIT, text_cfg))
    monkeypatch.setattr(towers, "text_config", lambda entry: config)
    with checkpoints.to_be_loaded():
        ours = towers.textual(ENTRY)
    checkpoints.load(ours, {f"text.{key}": tensor for key, tensor in theirs.state_dict().items()}, "small")
    ids = torch.full((5, 20), 1)
    for row in range(5):
        ids[row, : 3 + 2 * row] = torch.randint(2, 100, (3 + 2 * row,))
    with torch.inference_mode():
        texts = ours(ids)
        assert_same(texts, theirs(ids))
        assert_same(ours(ids[:, :11]), texts)
        assert_same(ours(ids[:1]), texts[:1])


def test_the_multilingual_text_side_is_a_mean_and_one_linear_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import XLMRobertaConfig, XLMRobertaModel

    entry = replace(catalog.clip("XLM-Roberta-Large-Vit-B-32"), dim=40)
    monkeypatch.setattr(towers, "text_config", lambda entry: ROBERTA)
    torch.manual_seed(4)
    roberta: Any = XLMRobertaConfig
    transformer: Any = XLMRobertaModel(roberta(**ROBERTA))
    transformer.eval()
    linear = nn.Linear(32, 40)
    # As the files of Multilingual-CLIP have it: with the pooler, which is never run.
    state = {f"transformer.{key}": tensor for key, tensor in transformer.state_dict().items()}
    state |= {f"LinearTransformation.{key}": tensor for key, tensor in linear.state_dict().items()}
    with checkpoints.to_be_loaded():
        network = towers.textual(entry)
    checkpoints.load(network, state, "small")
    ids = torch.tensor([[0, 7, 8, 2, 1, 1], [0, 9, 2, 1, 1, 1]])
    with torch.inference_mode():
        states = transformer(input_ids=ids, attention_mask=(ids != 1).long()).last_hidden_state
        means = torch.stack([states[0, :4].mean(dim=0), states[1, :3].mean(dim=0)])
        assert_same(network(ids), functional.normalize(linear(means), dim=-1))


@pytest.mark.filterwarnings("ignore:QuickGELU mismatch")
def test_a_full_model_equals_what_open_clip_creates() -> None:
    torch.manual_seed(5)
    model: Any = open_clip.create_model("ViT-B-32", force_quick_gelu=True).eval()
    with checkpoints.to_be_loaded():
        visual, textual = towers.visual(ENTRY), towers.textual(ENTRY)
    checkpoints.load(visual, model.state_dict(), ENTRY.name)
    checkpoints.load(textual, model.state_dict(), ENTRY.name)
    pixels = torch.randint(0, 256, (2, 224, 224, 3), dtype=torch.uint8)
    ids = captions(2, 77, 49408)
    with torch.inference_mode():
        assert_same(visual(pixels), reference_image(model, ENTRY, pixels))
        assert_same(textual(ids), model.encode_text(ids, normalize=True))
