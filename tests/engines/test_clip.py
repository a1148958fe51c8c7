import io
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from numpy.typing import NDArray
from open_clip.model import CLIP
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import load_file

from engines import bpe, catalog, clip, images, models, preprocess, tokenizer, towers, untrained
from engines.catalog import Clip
from engines.model import Config

CPU = torch.device("cpu")

DEMO = catalog.clip("demo")
CONFIG = Config(cache_folder=Path("no folder"))
RANDOM = np.random.default_rng(17)
TEXTS = ["a red circle", "a blue square on a green field", "snow", "two dogs", "night", "a", "text of a page", "sea"]


def photos() -> list[NDArray[np.uint8]]:
    sizes = [(96, 96), (640, 480), (480, 640), (97, 96), (1000, 100), (30, 20), (300, 200), (200, 301)]
    made = []
    for width, height in sizes:
        grid = RANDOM.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        made.append(np.array(Image.fromarray(grid).resize((width, height))))
    return made


def cosines(ours: Sequence[NDArray[np.float32]], theirs: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
    a, b = (np.stack(rows).astype(np.float64) for rows in (ours, theirs))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray((a * b).sum(axis=1) / lengths)


@pytest.fixture(scope="module")
def visual() -> clip.Visual:
    return clip.load_visual(DEMO, CONFIG, CPU)


@pytest.fixture(scope="module")
def textual() -> clip.Textual:
    return clip.load_textual(DEMO, CONFIG, CPU)


@pytest.fixture(scope="module")
def reference() -> Any:
    model = CLIP(**catalog.demo_config())
    state = load_file(Path(catalog.__file__).parent / "data/demo/clip.safetensors")
    model.load_state_dict({key: tensor.float() for key, tensor in state.items()}, strict=False)
    return model.eval()


def test_the_demo_gives_what_open_clips_transform_and_model_give(visual: clip.Visual, reference: Any) -> None:
    pictures = photos()
    transform: Any = image_transform_v2(PreprocessCfg(size=DEMO.image_size), is_train=False)
    with torch.inference_mode():
        theirs = reference.encode_image(
            torch.stack([transform(Image.fromarray(picture)) for picture in pictures]), normalize=True
        )
    ours = visual.run(visual.collate([visual.prepare(picture) for picture in pictures]))
    assert cosines(ours, list(theirs.numpy())).min() >= 0.99999


def test_the_demos_texts_equal_open_clips(textual: clip.Textual, reference: Any) -> None:
    ids = [textual.prepare(text) for text in TEXTS]
    with torch.inference_mode():
        theirs = reference.encode_text(torch.from_numpy(np.stack(ids)), normalize=True)
    assert cosines(textual.run(textual.collate(ids)), list(theirs.numpy())).min() >= 0.99999


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_a_batch_equals_its_rows_one_by_one(visual: clip.Visual, textual: clip.Textual, rows: int) -> None:
    pixels = [visual.prepare(picture) for picture in photos()[:rows]]
    ids = [textual.prepare(text) for text in TEXTS[:rows]]
    pairs: list[tuple[Any, list[Any]]] = [(visual, pixels), (textual, ids)]
    for model, items in pairs:
        together = model.run(model.collate(items))
        alone = [model.run(model.collate([item]))[0] for item in items]
        assert len(together) == rows
        assert cosines(together, alone).min() >= 0.99999


def test_results_are_unit_vectors_of_float32(visual: clip.Visual, textual: clip.Textual) -> None:
    results = visual.run(visual.collate([visual.prepare(photos()[1])]))
    results += textual.run(textual.collate([textual.prepare("a dog")]))
    for vector in results:
        assert vector.shape == (DEMO.dim,)
        assert vector.dtype == np.float32
        assert abs(np.linalg.norm(vector) - 1) < 1e-5


def test_a_batch_of_short_texts_is_cut_to_a_common_length(textual: clip.Textual) -> None:
    short, longer, full = textual.prepare("a dog"), textual.prepare("dog " * 20), textual.prepare("dog " * 200)
    assert textual.collate([short]).batch.shape == (1, 8)
    assert textual.collate([textual.prepare("a dog that sleeps on a sofa")]).batch.shape == (1, 16)
    assert textual.collate([short, longer]).batch.shape == (2, 32)
    assert textual.collate([short, full]).batch.shape == (2, 77)


CAUSAL = {
    entry.arch: entry
    for entry in map(catalog.clip, catalog.names()["clip"])
    if entry.text_tower == "causal" and entry.name != catalog.DEMO
}


@pytest.mark.parametrize("entry", CAUSAL.values(), ids=lambda entry: entry.arch)
def test_causal_texts_give_the_same_at_every_length_that_holds_them(
    entry: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As wide as it is, with all that its configuration says; two of its layers, and the bytes for a vocabulary.
    config = towers.architecture(entry)
    config = config | {"text_cfg": config["text_cfg"] | {"layers": 2, "vocab_size": 514}}
    monkeypatch.setattr(towers, "architecture", lambda entry: config)
    with untrained.seeded():
        network = towers.textual(entry)
    ids = np.stack(
        [bpe.encode(text, entry.context_length, 514) for text in ("", "dog", "a red bike", "x" * 29, "ab" * 15)]
    )
    length_of = clip._length_of(entry)
    assert length_of is not None
    lengths = [length_of(row) for row in ids]
    assert sorted({next(cut for cut in clip.LENGTHS if cut >= length) for length in lengths}) == list(clip.LENGTHS)
    with torch.inference_mode():
        for row, length in zip(ids, lengths, strict=True):
            in_full = network(torch.from_numpy(row[None]))
            for cut in (cut for cut in (*clip.LENGTHS, length) if cut >= length):
                assert (
                    torch.nn.functional.cosine_similarity(network(torch.from_numpy(row[None, :cut])), in_full)
                    >= 0.99999
                )


def test_masked_texts_are_cut_and_fixed_ones_are_not() -> None:
    masked = clip._length_of(catalog.clip("XLM-Roberta-Large-Vit-B-32"))
    assert masked is not None
    assert masked(np.array([0, 5, 1, 6, 2, 1, 1])) == 5
    assert clip._length_of(catalog.clip("ViT-B-16-SigLIP__webli")) is None


SMALL = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.mark.parametrize("name", ["ViT-B-32__openai", "ViT-H-14-quickgelu__dfn5b"])
def test_the_crop_of_the_reference_deployment_is_a_setting(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(towers, "architecture", lambda entry: SMALL)
    entry = replace(catalog.clip(name), image_size=32)
    picture = RANDOM.integers(0, 256, (32, 35, 3), dtype=np.uint8)
    native = clip.load_visual(entry, Config(cache_folder=Path("no folder"), untrained=True), CPU)
    cropped = clip.load_visual(entry, Config(cache_folder=Path("no folder"), untrained=True, resize="crop"), CPU)
    assert np.array_equal(native.prepare(picture), preprocess.prepare(picture, 32, entry.resize))
    assert np.array_equal(cropped.prepare(picture), picture[:, 1:33])


def test_untrained_models_say_so_loudly(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(towers, "architecture", lambda entry: SMALL)
    entry = catalog.clip("ViT-B-32__openai")
    config = Config(cache_folder=Path("no folder"), untrained=True)
    with caplog.at_level(logging.WARNING):
        (model,) = models.load("textual", entry, config)
    assert "UNTRAINED" in caplog.text
    assert "MACHINE_LEARNING_UNTRAINED" in caplog.text
    assert model.info.untrained
    assert (model.info.name, model.info.kind, model.info.precision) == (entry.name, "textual", "float32")
    assert model.info.bytes > 49408 * 16 * 4


def test_a_stand_in_tokenizer_is_told_in_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
    config = SMALL | {"text_cfg": SMALL["text_cfg"] | fixed | {"context_length": 64}}  # type: ignore[operator]
    for module in (towers, tokenizer):
        monkeypatch.setattr(module, "architecture", lambda entry: config)
    model = clip.load_textual(catalog.clip("ViT-B-16-SigLIP__webli"), Config(Path("no folder"), untrained=True), CPU)
    assert "stand-in" in model.info.reason
    assert model.collate([model.prepare("snow")]).batch.shape == (1, 64)


def test_the_demo_keeps_its_weights_when_others_have_none(visual: clip.Visual) -> None:
    (again,) = models.load("visual", DEMO, Config(cache_folder=Path("no folder"), untrained=True))
    assert not again.info.untrained
    pixels = [visual.prepare(photos()[1])]
    assert cosines(again.run(again.collate(pixels)), visual.run(visual.collate(pixels))).min() >= 0.99999


def test_an_entry_without_such_a_side_is_refused() -> None:
    with pytest.raises(ValueError, match="has no detection model"):
        models.load("detection", DEMO, CONFIG)


# The first 16 numbers that the reference deployment gives for a black 600x800 JPEG and for "test search query".
IMAGE = [-0.0131267, -0.022996, -0.0493738, -0.0063058, 0.0136014, -0.0037617, -0.0337988, 0.1110629]
IMAGE += [0.0247601, 0.0239037, 0.0441821, -0.013595, 0.03085, 0.0012876, -0.012471, 0.0097507]
TEXT = [-0.004058, -0.0008472, -0.008697, -0.00685, -0.0108705, 0.0144954, -0.0106785, -0.0961814]
TEXT += [0.0166975, -0.014809, -0.0035992, 0.0207528, 0.0020757, 0.0018065, 0.0296928, -0.004016]


def cache_folder() -> Path:
    return Path(os.environ.get("MACHINE_LEARNING_CACHE_FOLDER", "/cache"))


@pytest.mark.weights
def test_published_weights_give_the_numbers_of_the_reference_deployment() -> None:
    entry, config = catalog.clip("ViT-B-32__openai"), Config(cache_folder=cache_folder())
    file = io.BytesIO()
    Image.new("RGB", (600, 800)).save(file, "JPEG")
    visual, textual = clip.load_visual(entry, config, CPU), clip.load_textual(entry, config, CPU)
    picture = visual.prepare(images.decode(file.getvalue(), 1_000_000))
    assert np.abs(visual.run(visual.collate([picture]))[0][:16] - IMAGE).max() < 1e-3
    query = textual.prepare("test search query")
    assert np.abs(textual.run(textual.collate([query]))[0][:16] - TEXT).max() < 1e-3


@pytest.mark.weights
@pytest.mark.parametrize("name", ["XLM-Roberta-Base-ViT-B-32__laion5b_s13b_b90k", "ViT-B-16-SigLIP__webli"])
def test_true_tokenizers_give_the_ids_of_open_clip(name: str) -> None:
    entry = catalog.clip(name)
    ours, _ = tokenizer.load(entry, Config(cache_folder=cache_folder()))
    theirs: Any = open_clip.get_tokenizer(entry.arch)
    for text in [*untrained.TEXTS, "Größe & Übermut!", "猫がソファの上にいる"]:
        assert np.array_equal(ours(text, None), theirs(text)[0].numpy())
