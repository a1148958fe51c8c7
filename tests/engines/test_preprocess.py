import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from numpy.typing import NDArray
from open_clip.transform import image_transform
from PIL import Image

from engines.catalog import ResizeMode
from engines.preprocess import plan, prepare


def noise(width: int, height: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def photograph(name: str, width: int, height: int) -> NDArray[np.uint8]:
    with Image.open(Path(skimage.data.data_dir, name)) as file:
        return np.array(file.convert("RGB").resize((width, height)))


def reference(pixels: NDArray[np.uint8], size: int, mode: ResizeMode) -> NDArray[np.uint8]:
    transform: Any = image_transform(size, is_train=False, resize_mode=mode)
    transform.transforms = transform.transforms[:-2]  # without ToTensor and Normalize
    return np.asarray(transform(Image.fromarray(pixels)))


def difference(ours: NDArray[np.uint8], theirs: NDArray[np.uint8]) -> NDArray[np.int64]:
    assert ours.shape == theirs.shape
    return np.abs(ours.astype(np.int64) - theirs.astype(np.int64))


RANDOM = np.random.default_rng(7)
SIZES = [
    *[tuple(RANDOM.integers(1, 40, 2)) for _ in range(6)],
    *[tuple(RANDOM.integers(50, 1300, 2)) for _ in range(8)],
    *[(int(RANDOM.integers(300, 1200)), int(RANDOM.integers(4, 30))) for _ in range(6)],
    *[(int(RANDOM.integers(4, 30)), int(RANDOM.integers(300, 1200))) for _ in range(6)],
    (1, 1),
    (160, 160),
    (161, 160),
    (160, 700),
    (230, 1074),  # Pillow 13 takes the rows of this one first
    (700, 160),
]


@pytest.mark.parametrize("mode", ["shortest", "squash"])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_pixels_are_within_a_level_of_open_clips_and_equal_where_little_shrinks(
    width: int, height: int, mode: ResizeMode
) -> None:
    pixels = noise(int(width), int(height))
    apart = difference(prepare(pixels, 160, mode), reference(pixels, 160, mode))
    if min(width, height) < 2 * 160:
        assert apart.max() == 0
    assert apart.max() <= 1
    assert apart.mean() <= 0.01


@pytest.mark.parametrize(("size", "mode"), [(224, "shortest"), (384, "squash")])
@pytest.mark.parametrize("name", ["astronaut.png", "chelsea.png", "coffee.png"])
@pytest.mark.parametrize(("width", "height"), [(1440, 1080), (1080, 1440), (4000, 3000), (1000, 3000)])
def test_photos_of_usual_sizes_are_within_a_level_of_open_clips(
    width: int, height: int, name: str, size: int, mode: ResizeMode
) -> None:
    pixels = photograph(name, width, height)
    apart = difference(prepare(pixels, size, mode), reference(pixels, size, mode))
    assert apart.max() <= 1
    assert apart.mean() <= 0.01


@pytest.mark.parametrize("name", ["astronaut.png", "chelsea.png", "coffee.png"])
@pytest.mark.parametrize(
    ("width", "height", "size"),
    [
        (648, 390, 336),
        (459, 1048, 384),
        (762, 2256, 448),
        (430, 1854, 288),
        (1698, 133, 336),
        (18, 158, 336),
        (2, 900, 96),
    ],
)
def test_photos_of_odd_shapes_are_within_a_level_of_open_clips(name: str, width: int, height: int, size: int) -> None:
    photo = photograph(name, width, height)
    assert difference(prepare(photo, size, "shortest"), reference(photo, size, "shortest")).max() <= 1


def test_the_result_is_an_array_of_its_own() -> None:
    ours = prepare(noise(300, 200), 224, "shortest")
    assert ours.shape == (224, 224, 3)
    assert ours.dtype == np.uint8
    assert ours.flags.writeable
    assert ours.flags.c_contiguous


def test_offsets_round_half_to_even_or_down() -> None:
    # 224 scaled: 227 pixels leave 3 over: 1.5 rounds to 2 and cuts to 1.
    assert plan(227, 224, 224, "shortest").left == 2
    assert plan(227, 224, 224, "shortest", floor_offset=True).left == 1
    assert plan(224, 225, 224, "shortest").top == 0
    assert plan(640, 480, 224, "squash", floor_offset=True) == plan(480, 640, 224, "squash")


def test_the_floor_of_the_offset_moves_the_crop_by_one_pixel() -> None:
    whole = noise(227, 224)
    assert np.array_equal(prepare(whole, 224, "shortest"), whole[:, 2:226])
    assert np.array_equal(prepare(whole, 224, "shortest", floor_offset=True), whole[:, 1:225])


def test_a_strip_is_close_to_what_its_middle_gives() -> None:
    strip = noise(20000, 3)
    apart = difference(prepare(strip, 96, "shortest"), prepare(strip[:, 9900:10100], 96, "shortest"))
    assert apart.max() <= 1


STRIP = """
import resource, time
import numpy as np
from engines.preprocess import prepare
strips = [np.tile(np.uint8([200, 10, 30]), (*size, 1)) for size in ((1, 20000), (20000, 1))]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.process_time()
for strip in strips:
    assert (prepare(strip, 512, "shortest") == (200, 10, 30)).all()
seconds = time.process_time() - start
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
print(seconds, grown)
"""


def test_a_strip_of_20000_pixels_is_cheap() -> None:
    run = subprocess.run([sys.executable, "-c", STRIP], capture_output=True, text=True, check=True)  # noqa: S603 - our own text
    seconds, mebibytes = (float(word) for word in run.stdout.split())
    assert seconds < 0.3
    assert mebibytes < 100
