"""What answers are held against is open_clip's own transform and eager float32, computed once."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from open_clip.transform import AugmentationCfg, image_transform

from engines import catalog
from scripts import scenes
from scripts.bench import reference


@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_squares_are_what_open_clip_normalises(mode: str) -> None:
    entry = replace(catalog.clip(catalog.DEMO), resize=mode)  # type: ignore[arg-type]  # one of the two that there are
    image = scenes.photo(np.random.default_rng(0), 301, 200)
    transform: Any = image_transform(
        entry.image_size,
        is_train=False,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        interpolation="bicubic",
        resize_mode=mode,
        aug_cfg=AugmentationCfg(),
    )
    square = reference.squares(entry)(image)
    assert square.dtype == np.uint8
    np.testing.assert_allclose(square.transpose(2, 0, 1) / 255, transform(image).numpy(), atol=1e-6)


def test_answers_are_of_unit_length_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["a red circle", "a blue square", "two"]
    path = reference.of_texts(catalog.DEMO, texts, tmp_path)
    vectors = np.load(path)
    assert len(vectors) == 3
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    monkeypatch.delattr(reference, "textual")  # nothing is computed again
    assert reference.of_texts(catalog.DEMO, texts, tmp_path) == path
    with pytest.raises(NameError):
        reference.of_texts(catalog.DEMO, texts[:2], tmp_path)


def test_pictures_go_through_pillow(tmp_path: Path) -> None:
    files = []
    for seed in range(2):
        scenes.photo(np.random.default_rng(seed), 200, 150).save(tmp_path / "photo.jpg")
        files.append((tmp_path / "photo.jpg").read_bytes())
    vectors = np.load(reference.of_pictures(catalog.DEMO, files, tmp_path))
    assert vectors.shape[0] == 2
    assert float(vectors[0] @ vectors[1]) < 0.9999
