"""The demo CLIP as shipped: it finds what it was trained to find, and no longer does once something is wrong.

Weights that know something catch what random ones never would: channels in the wrong order, a wrong mean, tokens in
the wrong order. Each such fault is made here on purpose, to show that the numbers would tell.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.model import CLIP
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from engines.preprocess import prepare
from scripts import scenes, train_demo

FOLDER = resources.files("engines") / "data" / "demo"
ROUNDS = 6  # of 50 captions each


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    config: dict[str, Any] = json.loads((FOLDER / "clip.json").read_text())
    return config


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    with resources.as_file(FOLDER / "clip.safetensors") as path:
        return load_file(path)


@pytest.fixture(scope="module")
def network(config: dict[str, Any], tensors: dict[str, Tensor]) -> CLIP:
    network = CLIP(**config)
    network.load_state_dict(tensors)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def held_out(config: dict[str, Any]) -> tuple[Tensor, Tensor]:
    return train_demo.held_out(config, ROUNDS)


def test_the_file_is_small_and_float16(network: CLIP, tensors: dict[str, Tensor]) -> None:
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert set(tensors) == set(network.state_dict())
    with resources.as_file(FOLDER / "clip.safetensors") as path:
        assert path.stat().st_size <= 8_000_000


def test_each_held_out_scene_finds_its_caption(network: CLIP, held_out: tuple[Tensor, Tensor]) -> None:
    assert train_demo.accuracy(network, *held_out) >= 0.8


def test_each_photo_finds_its_caption(network: CLIP, config: dict[str, Any]) -> None:
    size = config["vision_cfg"]["image_size"]
    pixels = np.stack([prepare(train_demo.photo(name), size, "shortest") for name in train_demo.PHOTOS])
    ids = train_demo.tokens([captions[0] for captions in train_demo.PHOTOS.values()], config)
    found = train_demo.similarities(network, torch.from_numpy(pixels), ids).argmax(1)
    assert found.tolist() == list(range(len(train_demo.PHOTOS)))


def test_word_order_matters(network: CLIP, config: dict[str, Any]) -> None:
    rng = np.random.default_rng(train_demo.HELD_OUT_SEED + 1)
    pairs = [one for one in (scenes.scene(rng) for _ in range(600)) if one.other is not None][:120]
    size = config["vision_cfg"]["image_size"]
    pixels = torch.from_numpy(np.stack([train_demo.drawn(pair, rng, size) for pair in pairs]))
    contrary = [
        replace(pair, shape=pair.other[0], colour=pair.other[1], other=(pair.shape, pair.colour))
        for pair in pairs
        if pair.other is not None
    ]
    own = train_demo.similarities(network, pixels, train_demo.tokens([scenes.caption(one) for one in pairs], config))
    swapped = train_demo.similarities(
        network, pixels, train_demo.tokens([scenes.caption(one) for one in contrary], config)
    )
    assert (own.diagonal() > swapped.diagonal()).float().mean() >= 0.9


def swap_channels(pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    return pixels.flip(3), ids


def mirror(pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    return pixels.flip(2), ids


def transpose(pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    return pixels.transpose(1, 2), ids


def reverse_tokens(pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Reverse what stands between the start and the end token."""
    wrong = ids.clone()
    for row in wrong:
        end = int(row.argmax())
        row[1:end] = row[1:end].flip(0)
    return pixels, wrong


@pytest.mark.parametrize("fault", [swap_channels, mirror, transpose, reverse_tokens])
def test_a_fault_is_seen(
    network: CLIP, held_out: tuple[Tensor, Tensor], fault: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
) -> None:
    assert train_demo.accuracy(network, *fault(*held_out)) < 0.6


def test_a_wrong_mean_and_std_are_seen(network: CLIP, held_out: tuple[Tensor, Tensor]) -> None:
    pixels = held_out[0][:50]
    right = network.encode_image(train_demo.normalised(pixels))
    inception = (pixels.float() / 255 - 0.5) / 0.5
    imagenet = (pixels.float() / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    raw = pixels.float() / 255
    for wrong in (inception, imagenet, raw):
        found = network.encode_image(wrong.permute(0, 3, 1, 2))
        assert functional.cosine_similarity(right, found).mean() < 0.99
