"""Pictures of extreme shapes, in every format, on the whole way to CLIP's square and to faces: as cheap as others."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from engines import images, mtcnn, preprocess
from scripts.endure.specimens import KINDS, encode

MAX_PIXELS = 10_000_000
SIZES = [(1, 1), (1, 20_000), (20_000, 1), (2, 60_000), (60_000, 2), (50, 30_000), (30_000, 50)]
LONGEST = {"JPEG": 65_500, "WEBP": 16_383, "AVIF": 30_000}  # that the format, or Pillow's writer of it, can have


@pytest.fixture(scope="module")
def nets() -> mtcnn.Nets:
    return mtcnn.Nets(*mtcnn.load_stages(), torch.device("cpu"))


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("kind", KINDS)
def test_a_strip_is_read_squared_and_searched(kind: str, size: tuple[int, int], nets: mtcnn.Nets) -> None:
    width, height = (min(side, LONGEST.get(kind, side)) for side in size)
    noise = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(noise).convert("L" if kind == "GIF" else "RGB")  # no time spent on choosing 256 colours
    data = encode(image, kind, **({"speed": 10} if kind == "AVIF" else {}))
    assert images.probe(data, MAX_PIXELS) == images.Header(kind, width, height)
    pixels, told = images.reduced(data, MAX_PIXELS, 900)
    assert pixels.shape == (height, width, 3)
    assert told == (width, height)
    for mode in ("shortest", "squash"):
        assert preprocess.prepare(pixels, 224, mode).shape == (224, 224, 3)
    ((boxes, scores),) = mtcnn.detect(nets, [pixels], [0.7], 40)
    assert boxes.shape == (len(scores), 4)


COST = """
import resource, time
import numpy as np, torch
from engines import mtcnn, preprocess
from tests.engines.test_aspects import SIZES
nets = mtcnn.Nets(*mtcnn.load_stages(), torch.device("cpu"))

def way(width, height):
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    for mode in ("shortest", "squash"):
        preprocess.prepare(pixels, 384, mode)
    mtcnn.detect(nets, [pixels], [0.7], 40)

way(640, 480)  # what a picture costs that has nothing odd
for size in [*SIZES, (9001, 1100), (1100, 9001)]:
    grown, spent = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    way(*size)
    spent = time.process_time() - spent
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - grown
    print(*size, spent, grown * 1024)
"""


def test_a_strip_costs_no_more_than_its_pixels() -> None:
    """The pixels themselves are 3 bytes each, the table of the detector 8, levels and windows some more."""
    run = subprocess.run([sys.executable, "-c", COST], capture_output=True, text=True, check=True)  # noqa: S603 - our own text
    lines = [[float(word) for word in line.split()] for line in run.stdout.splitlines()]
    assert len(lines) == len(SIZES) + 2
    for width, height, seconds, grown in lines:
        assert seconds < 1.5 + width * height * 1e-6, (width, height)
        assert grown < 60e6 + 40 * width * height, (width, height)
