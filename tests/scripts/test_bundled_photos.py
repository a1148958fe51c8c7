"""The photos of scikit-image: all there, varied when asked, each with captions of its own."""

import numpy as np
import pytest

from scripts import bundled_photos, scenes


@pytest.mark.parametrize("name", bundled_photos.CAPTIONS)
def test_photos_are_there_and_vary(name: str) -> None:
    rng = np.random.default_rng(0)
    photo = bundled_photos.photo(name)
    assert photo.mode == "RGB"
    assert 64 <= min(photo.size) <= 320
    first, second = (bundled_photos.augmented(name, rng, 32) for _ in range(2))
    assert first.shape == (32, 32, 3)
    assert first.dtype == np.uint8
    assert not np.array_equal(first, second)
    assert np.array_equal(first, bundled_photos.augmented(name, np.random.default_rng(0), 32))


def test_no_caption_is_true_of_two_pictures() -> None:
    captions = [caption for some in bundled_photos.CAPTIONS.values() for caption in some]
    assert len(set(captions)) == len(captions)
    rng = np.random.default_rng(0)
    assert not set(captions) & {scenes.caption(scenes.scene(rng), rng) for _ in range(100)}
