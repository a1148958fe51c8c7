"""Generated pictures are as wide as photos in levels and detail, and each is another."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.random import Generator

from engines import drawings
from engines.drawings import Pixels


@pytest.mark.parametrize(
    "make", [lambda rng: drawings.scene(rng, 64), lambda rng: drawings.plain(rng, 64), drawings.face]
)
def test_a_seed_gives_the_same_pictures_and_no_two_are_alike(make: Callable[[Generator], Pixels]) -> None:
    first, second = ([make(rng) for _ in range(4)] for rng in (np.random.default_rng(1), np.random.default_rng(1)))
    assert all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))
    assert all(one.dtype == np.uint8 and one.shape == (len(one), len(one), 3) for one in first)
    assert len({one.tobytes() for one in first}) == 4


def test_scenes_have_detail_at_every_scale() -> None:
    rng = np.random.default_rng(2)
    for _ in range(4):
        grey = drawings.scene(rng, 128).astype(float).mean(axis=2)
        contrast = []
        while len(grey) > 4:
            halves = grey.reshape(len(grey) // 2, 2, len(grey) // 2, 2).mean(axis=(1, 3))
            contrast.append((grey - halves.repeat(2, 0).repeat(2, 1)).std())
            grey = halves
        assert min(contrast) > 1


def test_plain_ones_are_of_one_colour_or_noise() -> None:
    rng = np.random.default_rng(3)
    contrasts = [float(drawings.plain(rng, 16).std(axis=(0, 1)).max()) for _ in range(20)]
    assert sum(contrast == 0 for contrast in contrasts) in range(4, 17)
    assert max(contrasts) > 30
