"""The training of the demo CLIP, with a network so small that a few steps take no time."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.model import CLIP
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional

from scripts import scenes, train_demo

TINY: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 40, "vocab_size": 600, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "clip.json"
    path.write_text(json.dumps(TINY))
    return path


@pytest.fixture
def network() -> CLIP:
    torch.manual_seed(0)
    return CLIP(**TINY).eval()


def run(config: Path, out: Path, seed: int) -> bytes:
    asked = ["--config", config, "--out", out, "--seed", seed, "--steps", 4, "--batch", 16, "--rounds", 1]
    train_demo.main([str(word) for word in asked])
    return out.read_bytes()


def test_a_training_from_end_to_end_is_repeatable(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(config, tmp_path / "a" / "clip.safetensors", 3)
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(result) == {"seed", "steps", "seconds", "held_out_accuracy", "bytes"}
    assert result["bytes"] == len(first)
    assert 0 <= result["held_out_accuracy"] < 0.5
    assert first == run(config, tmp_path / "b" / "clip.safetensors", 3)
    assert first != run(config, tmp_path / "c" / "clip.safetensors", 4)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["clip.safetensors"]


def test_what_is_written_is_float16_under_the_keys_of_open_clip(config: Path, tmp_path: Path, network: CLIP) -> None:
    out = tmp_path / "clip.safetensors"
    train_demo.save(network, out)
    config.touch()
    assert out.stat().st_mode == config.stat().st_mode  # as any other new file, so that others may read it
    with safe_open(out, "pt") as file:
        assert set(file.keys()) == set(network.state_dict())
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118 - no mapping


def test_training_learns() -> None:
    torch.manual_seed(0)
    network = CLIP(**TINY)
    unseen = train_demo.draw_batch(1, 0, 64, TINY)

    def loss() -> float:
        with torch.inference_mode():
            images, texts = train_demo.embed(network, unseen.pixels, unseen.ids)
            return train_demo.contrastive(images, texts, torch.tensor(10.0), unseen.group).item()

    before = loss()
    train_demo.train(network, seed=0, steps=40, rows=32, config=TINY)
    assert not network.training
    assert loss() < before - 0.1


def test_a_batch_depends_on_seed_and_index_alone() -> None:
    first, again = (train_demo.draw_batch(0, 2, 16, TINY) for _ in range(2))
    assert torch.equal(first.pixels, again.pixels)
    assert torch.equal(first.ids, again.ids)
    assert not torch.equal(first.pixels, train_demo.draw_batch(0, 1, 16, TINY).pixels)
    assert not torch.equal(first.pixels, train_demo.draw_batch(1, 2, 16, TINY).pixels)
    assert first.pixels.shape == (16, 32, 32, 3)
    assert first.pixels.dtype == torch.uint8
    assert first.ids.shape == (16, 40)
    assert first.traits.shape == (16, len(train_demo.TRAITS))
    assert 4 < len(set(first.group.tolist())) <= 16


def test_the_contrastive_loss() -> None:
    images, scale = torch.eye(4, 8), torch.tensor(50.0)
    apart, together = torch.arange(4), torch.zeros(4, dtype=torch.long)
    assert train_demo.contrastive(images, images, scale, apart).item() == pytest.approx(0, abs=1e-6)
    assert train_demo.contrastive(images, images.roll(1, 0), scale, apart).item() == pytest.approx(50, abs=1e-4)
    # Rows that cannot be told apart, and need not be: a quarter of the probability each, entropy ln 4.
    same = images[[0, 0, 0, 0]]
    assert train_demo.contrastive(same, same, scale, together).item() == pytest.approx(math.log(4), abs=1e-5)


def test_traits_are_read_and_absent_ones_ignored() -> None:
    pair = scenes.Scene("square", "red", 1, None, None, "plain", "grey", "above", ("circle", "orange"))
    found = train_demo.traits(pair)
    wanted = ["square", "red", "circle", "orange", "above", 1, None, None, "plain", "grey"]
    named = [
        None if place == train_demo.ABSENT else options[place]
        for options, place in zip(train_demo.TRAITS, found, strict=True)
    ]
    assert named == wanted
    assert set(train_demo.traits("coffee.png")) == {train_demo.ABSENT}

    names = nn.Linear(4, sum(map(len, train_demo.TRAITS)))
    features = functional.normalize(torch.ones(2, 4), dim=1)
    nn.init.zeros_(names.weight)
    nn.init.zeros_(names.bias)
    traits = torch.tensor([found, train_demo.traits("coffee.png")])
    # A layer that knows nothing gives all options of a trait the same probability.
    options = [len(one) for one, name in zip(train_demo.TRAITS, wanted, strict=True) if name is not None]
    expected = sum(math.log(count) for count in options) / 2
    assert train_demo.naming(features, names, traits).item() == pytest.approx(expected, abs=1e-4)


def test_positions_start_from_waves_that_tell_all_places_apart() -> None:
    found = train_demo.waves(6, 32)
    assert found.shape == (36, 32)
    assert found.abs().max() <= 1
    assert (torch.cdist(found, found) + 9 * torch.eye(36)).min() > 0.5
    # The first sine depends on the column alone, and runs through a quarter of a turn.
    assert torch.allclose(found[:6, 0], found[6:12, 0])
    assert found[3, 0].item() == pytest.approx(math.sin(math.pi / 4))


def test_the_short_text_forward_equals_that_of_open_clip(network: CLIP) -> None:
    ids = train_demo.tokens(["a cat", "a very long caption about a cat", ""], TINY)
    with torch.inference_mode():
        found, expected = train_demo.encode_text(network, ids), network.encode_text(ids)
    assert torch.allclose(found, expected, atol=1e-6)


def test_normalised_pixels() -> None:
    pixels = torch.tensor([255, 0, 127], dtype=torch.uint8).expand(1, 2, 2, 3)
    found = train_demo.normalised(pixels)
    assert found.shape == (1, 3, 2, 2)
    assert found[0, :, 0, 0].tolist() == pytest.approx([1.93034, -1.75210, 0.32573], abs=1e-4)


def test_held_out_scenes_differ_within_a_round() -> None:
    pixels, ids = train_demo.held_out(TINY, rounds=2)
    assert pixels.shape == (100, 32, 32, 3)
    for first in (0, 50):
        assert len({tuple(row) for row in ids[first : first + 50].tolist()}) == 50


def test_accuracy_counts_within_rounds(monkeypatch: pytest.MonkeyPatch, network: CLIP) -> None:
    def by_number(_: CLIP, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        return functional.one_hot(pixels % 50, 50).float(), functional.one_hot(ids % 50, 50).float()

    monkeypatch.setattr(train_demo, "embed", by_number)
    pixels = torch.arange(100)
    ids = torch.arange(100)
    assert train_demo.accuracy(network, pixels, ids) == 1.0
    pixels[:25] = 49
    assert train_demo.accuracy(network, pixels, ids) == 0.75
