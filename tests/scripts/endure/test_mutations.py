"""What is made of right files: the same for a seed, different for every number, and mostly broken."""

import io

import numpy as np
import pytest
from PIL import Image

from engines import images
from engines.errors import ImageError
from scripts.endure.mutations import CHANGES, mutated, with_checksums
from scripts.endure.specimens import KINDS, SIZE, specimens

# Pillow warns of damaged metadata; the filter of engines.images is set before that of pytest.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


def test_a_seed_makes_the_same_files_again_and_another_one_others() -> None:
    files = specimens("PNG")
    once, again, other = (list(mutated(files, 50, seed)) for seed in (3, 3, 4))
    assert once == again
    assert len(set(once)) == 50
    assert sum(one == two for one, two in zip(once, other, strict=True)) < 3
    assert once[:20] == list(mutated(files, 20, 3))


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_every_change_changes_files_of_every_kind(change: object) -> None:
    assert callable(change)
    for kind in KINDS:
        files = specimens(kind)
        changed = 0
        for seed in range(20):
            data = bytearray(files[seed % len(files)])
            change(data, np.random.default_rng(seed), files)
            changed += bytes(data) != files[seed % len(files)]
        assert changed >= 5, kind


@pytest.mark.parametrize("kind", KINDS)
def test_some_of_the_files_are_still_read_and_some_are_not(kind: str) -> None:
    read = 0
    for data in mutated(specimens(kind), 100, 0):
        try:
            images.decode(data, 10**6)
        except ImageError:
            continue
        read += 1
    assert 3 <= read <= 97


def test_checksums_are_made_right_of_pngs_alone() -> None:
    (data, *_) = specimens("PNG")
    broken = bytearray(data)
    broken[16:20] = (SIZE[0] - 1).to_bytes(4, "big")  # the width
    with pytest.raises(ImageError):
        images.probe(bytes(broken), 10**6)
    assert images.probe(with_checksums(bytes(broken)), 10**6).width == SIZE[0] - 1
    assert with_checksums(data) == data
    assert with_checksums(data[:50]) == data[:50]
    (other, *_) = specimens("GIF")
    assert with_checksums(other) == other


def test_specimens_are_right_pictures_of_every_mode() -> None:
    modes = set()
    for kind in KINDS:
        for data in specimens(kind):
            assert images.decode(data, SIZE[0] * SIZE[1]).shape == (SIZE[1], SIZE[0], 3)
            modes.add(_mode(data))
    assert {"1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"} <= modes


def _mode(data: bytes) -> str:
    with Image.open(io.BytesIO(data)) as image:
        return image.mode
