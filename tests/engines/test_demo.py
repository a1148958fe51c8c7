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
from numpy.random import Generator
from open_clip.model import CLIP
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from engines.preprocess import prepare
from scripts import bundled_photos, scenes, train_demo

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
    assert train_demo.accuracy(network, *held_out) >= 0.95


def test_each_photo_finds_its_caption(network: CLIP, config: dict[str, Any]) -> None:
    size = config["vision_cfg"]["image_size"]
    shown = [np.array(bundled_photos.photo(name)) for name in bundled_photos.CAPTIONS]
    pixels = np.stack([prepare(photo, size, "shortest") for photo in shown])
    ids = train_demo.tokens([captions[0] for captions in bundled_photos.CAPTIONS.values()], config)
    photos, captions = train_demo.embed(network, torch.from_numpy(pixels), ids)
    assert (photos @ captions.T).argmax(1).tolist() == list(range(len(pixels)))


def one_thing(rng: Generator) -> scenes.Scene:
    return next(one for one in (scenes.scene(rng) for _ in range(200)) if one.position is not None)


def in_all_colours(rng: Generator) -> list[scenes.Scene]:
    things = [one_thing(rng) for _ in range(5)]
    return [replace(thing, colour=colour) for thing in things for colour in scenes.COLOURS]


def in_all_places(rng: Generator) -> list[scenes.Scene]:
    things = [replace(one_thing(rng), size="small") for _ in range(5)]
    placed = [replace(thing, position=position) for thing in things for position in scenes.POSITIONS]
    return [*placed, *(replace(thing, size="large", position="in the centre") for thing in things)]


def in_both_orders(rng: Generator) -> list[scenes.Scene]:
    pairs = [one for one in (scenes.scene(rng) for _ in range(200)) if one.other is not None][:25]
    contrary = [
        replace(one, shape=one.other[0], colour=one.other[1], other=(one.shape, one.colour))
        for one in pairs
        if one.other is not None
    ]
    return [*pairs, *contrary]


Make = Callable[[Generator], list[scenes.Scene]]


def details(config: dict[str, Any], make: Make) -> tuple[Tensor, Tensor]:
    """Return rounds of 50 as `held_out` does, whose scenes `make` lets differ in little."""
    rng = np.random.default_rng(train_demo.HELD_OUT_SEED + 1)
    shown = [one for _ in range(4) for one in make(rng)]
    assert len(set(shown[: train_demo.CHOICES])) == train_demo.CHOICES
    pictures = [train_demo.drawn(one, rng, config["vision_cfg"]["image_size"]) for one in shown]
    return torch.from_numpy(np.stack(pictures)), train_demo.tokens([scenes.caption(one) for one in shown], config)


@pytest.mark.parametrize("make", [in_all_colours, in_all_places, in_both_orders])
def test_details_are_told_apart(network: CLIP, config: dict[str, Any], make: Make) -> None:
    assert train_demo.accuracy(network, *details(config, make)) >= 0.9


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


@pytest.mark.parametrize(
    ("fault", "make"),
    [
        (swap_channels, in_all_colours),
        (mirror, in_all_places),
        (transpose, in_all_places),
        (reverse_tokens, in_both_orders),
    ],
)
def test_a_fault_is_seen(
    network: CLIP, config: dict[str, Any], fault: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], make: Make
) -> None:
    assert train_demo.accuracy(network, *fault(*details(config, make))) < 0.6


@pytest.mark.parametrize(("mean", "std"), [(0.5, 0.5), (0.0, 1.0)])
def test_a_wrong_mean_and_std_are_seen(network: CLIP, held_out: tuple[Tensor, Tensor], mean: float, std: float) -> None:
    pixels = held_out[0][:50]
    right = network.encode_image(train_demo.normalised(pixels))
    wrong = network.encode_image(((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2))
    assert functional.cosine_similarity(right, wrong).mean() < 0.99
