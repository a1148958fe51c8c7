import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from engines import catalog, checkpoints, towers
from engines.errors import WeightsBroken

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1},
}
ENTRY = catalog.clip("ViT-B-32__openai")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(towers, "architecture", lambda entry: CONFIG)


@pytest.fixture
def state() -> dict[str, Tensor]:
    """Tensors of a whole model, as a checkpoint of open_clip's CLIP has them."""
    torch.manual_seed(0)
    visual = {f"visual.{key}": tensor for key, tensor in towers.visual(ENTRY).tower.state_dict().items()}
    return visual | towers.textual(ENTRY).tower.state_dict()


def test_random_initialisation_is_skipped_and_computed_tables_are_not(state: dict[str, Tensor]) -> None:
    before = torch.get_rng_state()
    with checkpoints.to_be_loaded():
        network: Any = towers.textual(ENTRY)
    assert torch.equal(torch.get_rng_state(), before)
    mask = network.tower.attn_mask
    assert torch.equal(mask, torch.full((12, 12), float("-inf")).triu(1))
    checkpoints.load(network, state, "small")
    assert torch.equal(network.tower.token_embedding.weight, state["token_embedding.weight"])


def test_every_parameter_comes_from_the_checkpoint_as_float32(state: dict[str, Tensor]) -> None:
    half = {key: tensor.half() for key, tensor in state.items()}
    for network in (towers.visual(ENTRY), towers.textual(ENTRY)):
        checkpoints.load(network, half, "small")
        prefix = "visual." if isinstance(network, towers.PictureTower) else ""
        for key, parameter in network.tower.named_parameters():
            assert parameter.dtype == torch.float32
            assert torch.equal(parameter, half[prefix + key].float())


def test_what_belongs_to_neither_tower_or_is_computed_is_passed_over(state: dict[str, Tensor]) -> None:
    extra = {
        "logit_scale": torch.tensor(4.6),
        "logit_bias": torch.tensor(-10.0),
        "input_resolution": torch.tensor(224),
        "context_length": torch.tensor(77),
        "vocab_size": torch.tensor(49408),
        "attn_mask": torch.zeros(12, 12),
        "text.transformer.embeddings.position_ids": torch.zeros(1, 12),
    }
    checkpoints.load(towers.visual(ENTRY), state | extra, "small")
    checkpoints.load(towers.textual(ENTRY), state | extra, "small")


def test_a_missing_tensor_is_named(state: dict[str, Tensor]) -> None:
    del state["visual.conv1.weight"], state["text_projection"]
    with pytest.raises(WeightsBroken, match=r"small do not fit .*missing: conv1\.weight"):
        checkpoints.load(towers.visual(ENTRY), state, "small")
    with pytest.raises(WeightsBroken, match="missing: text_projection"):
        checkpoints.load(towers.textual(ENTRY), state, "small")


def test_a_tensor_too_many_or_of_another_shape_is_named(state: dict[str, Tensor]) -> None:
    odd = state | {"visual.head.weight": torch.zeros(1), "visual.proj": torch.zeros(32, 17)}
    with pytest.raises(WeightsBroken, match=r"not wanted: head\.weight; .*proj is \(32, 17\) where \(32, 16\)"):
        checkpoints.load(towers.visual(ENTRY), odd, "small")


def test_only_the_first_misfits_are_named() -> None:
    with pytest.raises(WeightsBroken) as caught:
        checkpoints.load(towers.visual(ENTRY), {}, "small")
    assert "and more" in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_network_outlives_its_file(state: dict[str, Tensor], tmp_path: Path) -> None:
    """What safetensors reads are views of the mapped file: who overwrites it must not change a model in memory."""
    path = tmp_path / "weights.safetensors"
    save_file(state, path)
    with safe_open(path, framework="pt") as file:
        mapped = {key: file.get_tensor(key) for key in state}
    assert str(path) in Path("/proc/self/maps").read_text(encoding="utf-8")
    network = towers.visual(ENTRY)
    checkpoints.load(network, mapped, "small")
    del mapped, file
    gc.collect()
    assert str(path) not in Path("/proc/self/maps").read_text(encoding="utf-8")
    assert torch.equal(network.tower.state_dict()["proj"], state["visual.proj"])
