import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from engines import catalog, tokenizer, towers, untrained
from engines.catalog import Clip
from engines.model import Config
from engines.towers import Tower

TEXTS = (
    "a cat on a sofa",
    "the eiffel tower at night",
    "my grandmother",
    "a bowl of soup",
    "football",
    "a ship in a bottle on the shelf of my uncle",
)


def pictures(size: int) -> Tensor:
    """Different pictures, none of which the network was changed with: blobs of several sizes, stripes, one colour."""
    random = np.random.default_rng(99)
    grids = [random.integers(0, 256, (cells, cells + 1, 3), dtype=np.uint8) for cells in (1, 2, 4, 7, 12)]
    stripes = np.indices((size, size))[1] // 9 % 2 * 255
    made = [np.asarray(Image.fromarray(grid).resize((size, size))) for grid in grids]
    made.append(np.repeat(stripes.astype(np.uint8)[..., None], 3, axis=2))
    return torch.from_numpy(np.stack(made))


def mean_cosine(vectors: Tensor) -> float:
    cosines = vectors @ vectors.T
    return float(cosines[~torch.eye(len(vectors), dtype=torch.bool)].mean())


def bfloat16_error_over_spread(network: Tower, inputs: Tensor) -> float:
    half = copy.deepcopy(network).bfloat16()
    with torch.inference_mode():
        exact, rough = network.raw(inputs), half.raw(inputs).float()
    return float((rough - exact).norm(dim=-1).mean() / (exact - exact.mean(dim=0)).norm(dim=-1).mean())


@pytest.mark.parametrize("name", ["ViT-B-32__openai", "RN50__openai", "ViT-B-32-SigLIP2-256__webli"])
def test_different_pictures_get_different_vectors(name: str) -> None:
    entry = catalog.clip(name)
    with untrained.seeded():
        network = towers.visual(entry)
    untrained.spread(network, torch.from_numpy(untrained.pictures(entry.image_size)))
    inputs = pictures(entry.image_size)
    with torch.inference_mode():
        vectors = network(inputs)
    assert torch.allclose(vectors.norm(dim=-1), torch.ones(len(vectors)), atol=1e-5)
    assert mean_cosine(vectors) < 0.5
    if name == "ViT-B-32__openai":  # the others take many seconds in bfloat16 on a CPU
        assert bfloat16_error_over_spread(network, inputs) < 0.05


def shrunken(entry: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the layers of a text side but not its quarter of a million words, which cost seconds and change nothing."""
    if "hf_model_name" in towers.architecture(entry)["text_cfg"]:
        config = towers.text_config(entry) | {"vocab_size": 8000}
        monkeypatch.setattr(towers, "text_config", lambda entry: config)
        monkeypatch.setattr(tokenizer, "text_config", lambda entry: config)
    else:
        whole: dict[str, Any] = towers.architecture(entry)
        small = whole | {"text_cfg": whole["text_cfg"] | {"vocab_size": 8000}}
        monkeypatch.setattr(towers, "architecture", lambda entry: small)
        monkeypatch.setattr(tokenizer, "architecture", lambda entry: small)


@pytest.mark.parametrize(
    "name", ["ViT-B-32__openai", "ViT-B-32-SigLIP2-256__webli", "XLM-Roberta-Base-ViT-B-32__laion5b_s13b_b90k"]
)
def test_different_texts_get_different_vectors(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = catalog.clip(name)
    if entry.tokenizer != "CLIP-BPE":
        shrunken(entry, monkeypatch)
    tokenize, _ = tokenizer.load(entry, Config(Path("no folder"), untrained=True))
    with untrained.seeded():
        network = towers.textual(entry)
    examples = torch.from_numpy(np.stack([tokenize(text, None) for text in untrained.TEXTS]))
    untrained.spread(network, examples)
    inputs = torch.from_numpy(np.stack([tokenize(text, None) for text in TEXTS]))
    with torch.inference_mode():
        assert mean_cosine(network(inputs)) < 0.5
    if name == "ViT-B-32__openai":
        assert bfloat16_error_over_spread(network, inputs) < 0.05


CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1},
}


def test_the_seed_is_fixed_and_torchs_own_random_state_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(towers, "architecture", lambda entry: CONFIG)
    entry = replace(catalog.clip("RN50__openai"), image_size=32)
    before = torch.get_rng_state()
    networks = []
    for _ in range(2):
        with untrained.seeded():
            network = towers.visual(entry)
        untrained.spread(network, torch.from_numpy(untrained.pictures(32)))
        networks.append(network)
    assert torch.equal(torch.get_rng_state(), before)
    inputs = pictures(32)
    with torch.inference_mode():
        assert torch.equal(networks[0](inputs), networks[1](inputs))
        assert not networks[0].training
        # The centre is what makes the difference: without it the answers are those of the tower alone.
        centred = networks[0](inputs)
        networks[0].centre = None
        assert functional.cosine_similarity(centred, networks[0](inputs)).min() < 0.999


def test_example_pictures_are_the_same_each_time() -> None:
    first = untrained.pictures(64)
    assert first.shape == (6, 64, 64, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, untrained.pictures(64))
