from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from facenet_pytorch import MTCNN
from facenet_pytorch.models.mtcnn import PNet
from facenet_pytorch.models.utils.detect_face import nms_numpy
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from engines import mtcnn
from engines.area import AreaTable
from tests.engines.faces_data import crowd, montage, photo

CPU = torch.device("cpu")
Found = tuple[NDArray[np.float32], NDArray[np.float32]]

PHOTOS = ("astronaut.png", "camera.png", "coffee.png", "chelsea.png", "rocket.jpg", "motorcycle_left.png")
# Heads as index, left, upper, side; the first two indices are large ones, the others small portraits.
MONTAGES = {
    "one, large": (420, 420, [(0, 40, 20, 300)]),
    "cut by each border": (400, 300, [(0, -40, 60, 120), (1, 330, 60, 110), (0, 150, -50, 130), (1, 180, 240, 100)]),
    "from 30 to 160 pixels": (
        420,
        240,
        [(0, 5, 5, 30), (1, 45, 10, 45), (0, 100, 10, 70), (1, 180, 10, 100), (0, 260, 20, 160)],
    ),
    "fourteen": (420, 300, [(i % 5, 8 + 60 * (i % 7), 15 + 140 * (i // 7), 50) for i in range(14)]),
    "portraits": (360, 200, [(i + 2, 10 + 58 * (i % 6), 10 + 62 * (i // 6), 50) for i in range(18)]),
    "none": (200, 150, []),
}


@pytest.fixture(scope="module")
def nets() -> mtcnn.Nets:
    return mtcnn.Nets(*mtcnn.load_stages(), CPU)


@cache
def reference(min_face: int, min_score: float = 0.7) -> Any:
    return MTCNN(keep_all=True, min_face_size=min_face, thresholds=[0.6, 0.7, min_score], device="cpu")


def by_reference(image: Image.Image, min_face: int, min_score: float = 0.7) -> Found:
    boxes, scores = reference(min_face, min_score).detect(image)
    if boxes is None:
        return np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
    return boxes.astype(np.float32), scores.astype(np.float32)


def by_us(nets: mtcnn.Nets, *images: Image.Image, min_face: int = 20, min_score: float = 0.7) -> list[Found]:
    return mtcnn.detect(nets, [np.array(i) for i in images], [min_score] * len(images), min_face)


def assert_same(found: Found, expected: Found, pixels: float, score: float) -> None:
    """Pair the faces by their boxes, since equal scores may stand in any order."""
    assert len(found[0]) == len(expected[0])
    left = list(range(len(expected[0])))
    for box, rank in zip(*found, strict=True):
        nearest = min(left, key=lambda i: np.abs(expected[0][i] - box).max())
        left.remove(nearest)
        assert np.abs(expected[0][nearest] - box).max() <= pixels
        assert abs(expected[1][nearest] - rank) <= score


@pytest.mark.parametrize("min_face", [20, 40])
@pytest.mark.parametrize("name", PHOTOS)
def test_photos_have_the_faces_that_facenet_pytorch_finds(nets: mtcnn.Nets, name: str, min_face: int) -> None:
    (found,) = by_us(nets, photo(name), min_face=min_face)
    assert_same(found, by_reference(photo(name), min_face), 1, 1e-3)


@pytest.mark.parametrize("min_face", [20, 40])
@pytest.mark.parametrize("name", MONTAGES)
def test_montages_have_the_faces_that_facenet_pytorch_finds(nets: mtcnn.Nets, name: str, min_face: int) -> None:
    image = montage(*MONTAGES[name])
    (found,) = by_us(nets, image, min_face=min_face)
    assert_same(found, by_reference(image, min_face), 1, 1e-3)


def test_the_montages_hold_what_they_promise(nets: mtcnn.Nets) -> None:
    counts = {name: len(by_us(nets, montage(*MONTAGES[name]))[0][0]) for name in MONTAGES}
    assert counts["one, large"] == 1
    assert counts["cut by each border"] >= 2
    assert counts["from 30 to 160 pixels"] == 5
    assert counts["fourteen"] >= 12
    assert counts["none"] == 0


@pytest.mark.parametrize("seed", range(6))
def test_crowds_have_the_faces_that_facenet_pytorch_finds(nets: mtcnn.Nets, seed: int) -> None:
    image = crowd(seed, 300, 260, 9, 30, 140)
    (found,) = by_us(nets, image)
    assert_same(found, by_reference(image, 20), 1, 1e-3)


def test_a_picture_has_the_same_faces_in_any_batch(nets: mtcnn.Nets) -> None:
    images = [crowd(20 + i, 200 + 37 * i, 320 - 23 * i, 2 + i, 30, 140) for i in range(5)]
    images.insert(2, Image.new("RGB", (4000, 3)))
    images.insert(4, photo("astronaut.png"))
    alone = [by_us(nets, image)[0] for image in images]
    assert sum(len(boxes) for boxes, _ in alone) >= 12
    for order in (range(7), (6, 5, 4, 3, 2, 1, 0), (4, 4, 2), (3, 1)):
        together = by_us(nets, *(images[i] for i in order))
        for i, found in zip(order, together, strict=True):
            assert_same(found, alone[i], 1e-2, 1e-4)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_and_batches_of_a_gpu_find_what_one_thread_finds(nets: mtcnn.Nets, threads: int) -> None:
    pictures = [np.array(montage(*MONTAGES[name])) for name in MONTAGES] + [np.zeros((9, 9, 3), np.uint8)]
    scores = [0.5 + k / 100 for k in range(len(pictures))]
    alone = [mtcnn.detect(nets, [picture], [score], 20)[0] for picture, score in zip(pictures, scores, strict=True)]
    with ThreadPoolExecutor(threads) as pool:
        beside = mtcnn.detect(replace(nets, pool=pool), pictures, scores, 20)
    for found, expected in zip(beside, alone, strict=True):
        assert np.array_equal(found[0], expected[0])
        assert np.array_equal(found[1], expected[1])
    for found, expected in zip(mtcnn._together(nets, pictures, scores, 20), alone, strict=True):
        assert_same(found, expected, pixels=0.01, score=1e-4)


def test_p_net_with_its_scaling_folded_in_says_what_facenet_pytorchs_says(nets: mtcnn.Nets) -> None:
    levels = torch.from_numpy(np.array(photo("astronaut.png"))).permute(2, 0, 1)[None].float()
    theirs = PNet().eval()
    with torch.inference_mode():
        for side in (12, 13, 90, 201):
            part = levels[..., 30 : 30 + side, 150 : 250 + side]
            shifts, probabilities = theirs((part - 127.5) * 0.0078125)
            maps = nets.proposal(part)
            assert (maps[:, :4] - shifts).abs().max() < 1e-4
            assert (maps[:, 4].sigmoid() - probabilities[:, 1]).abs().max() < 1e-5


def test_the_number_of_crops_at_once_changes_nothing(nets: mtcnn.Nets, monkeypatch: pytest.MonkeyPatch) -> None:
    image = montage(*MONTAGES["fourteen"])
    (expected,) = by_us(nets, image)
    monkeypatch.setattr(mtcnn, "CROPS_AT_ONCE", 7)
    (found,) = by_us(nets, image)
    assert_same(found, expected, 1e-2, 1e-4)


@pytest.mark.parametrize("level", [0, 255])
@pytest.mark.parametrize(
    "size", [(1, 1), (4000, 3), (3, 4000), (11, 11), (12, 12), (19, 300), (20, 20), (20, 500), (21, 20), (150, 150)]
)
def test_degenerate_pictures_have_no_faces(nets: mtcnn.Nets, size: tuple[int, int], level: int) -> None:
    ((boxes, scores),) = by_us(nets, Image.new("RGB", size, (level, level, level)))
    assert boxes.shape == (0, 4)
    assert scores.shape == (0,)
    assert boxes.dtype == scores.dtype == np.float32


def test_thresholds_belong_to_their_picture(nets: mtcnn.Nets) -> None:
    image = crowd(252, 330, 280, 12, 30, 120)
    min_scores = [0.5, 0.7, 0.99, 1.0, 0.5, 0.7]
    together = mtcnn.detect(nets, [np.array(image)] * 6, min_scores, 20)
    for min_score, found in zip(min_scores, together, strict=True):
        assert_same(found, by_us(nets, image, min_score=min_score)[0], 1e-2, 1e-4)
        assert_same(found, by_reference(image, 20, min_score), 1, 1e-3)
        assert (found[1] > min_score).all()
    counts = [len(boxes) for boxes, _ in together]
    assert counts[0] > counts[2] > counts[3] == 0


def test_highest_score_first(nets: mtcnn.Nets) -> None:
    ((_, scores),) = by_us(nets, montage(*MONTAGES["fourteen"]), min_score=0.5)
    assert len(scores) > 10
    assert (np.diff(scores) <= 0).all()


def test_the_smallest_face_is_in_pixels_of_the_picture(nets: mtcnn.Nets) -> None:
    image = montage(*MONTAGES["from 30 to 160 pixels"])
    counts = [len(by_us(nets, image, min_face=min_face)[0][0]) for min_face in (20, 40, 80, 160, 500)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[2] > 0
    assert counts[4] == 0


def test_a_crop_outside_its_picture_goes_with_its_box() -> None:
    class TopLeftLevel(nn.Module):
        """Gives each crop the level of its first pixel, as score and as shift."""

        def forward(self, crops: Tensor) -> Tensor:
            return crops[:, 0, 0, :1].repeat(1, 5)

    pictures = [np.full((30, 40, 3), level, dtype=np.uint8) for level in (10, 20)]
    boxes = torch.tensor([[2.0, 2, 9, 9], [41, 5, 60, 20], [-30, -30, 0.9, 20], [38, 28, 90, 90], [5, -9, 9, -1]])
    owners = torch.tensor([0, 0, 1, 1, 1])
    table = AreaTable.of(pictures, CPU)
    kept, kept_owners, shifts, scores = mtcnn._examine(TopLeftLevel(), table, boxes, owners, 24)
    assert kept.tolist() == boxes[[0, 3]].tolist()
    assert kept_owners.tolist() == [0, 1]
    assert scores.tolist() == [10, 20]
    assert shifts[:, 0].tolist() == [10, 20]


def test_the_pyramid_ends_where_the_window_no_longer_fits() -> None:
    levels = list(mtcnn.pyramid(1080, 1440, 40))
    assert levels[0] == (0.3, 325, 433)
    assert all(min(height, width) >= 12 for _, height, width in levels)
    assert min(levels[-1][1:]) * mtcnn.PYRAMID_FACTOR < 14
    assert list(mtcnn.pyramid(39, 4000, 40)) == []
    assert len(list(mtcnn.pyramid(40, 40, 40))) == 1


def boxes_at(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    corners = rng.uniform(-20, 200, (count, 2))
    return np.concatenate([corners, corners + rng.uniform(5, 90, (count, 2))], 1).astype(np.float32)


@pytest.mark.parametrize("count", [0, 1, 2, 15, 300])
def test_suppression_keeps_what_the_greedy_loop_keeps(count: int) -> None:
    rng = np.random.default_rng(count)
    boxes, scores = boxes_at(rng, count), rng.uniform(size=count).astype(np.float32)
    expected: Sequence[int] = nms_numpy(boxes, scores, 0.7, "Min").tolist() if count else []
    kept = mtcnn.suppress_by_smaller(boxes, scores, 0.7)
    assert kept.tolist() == expected
    assert len(kept) < count or count < 15


def test_a_face_within_a_face_goes() -> None:
    boxes = np.array([[0, 0, 100, 100], [30, 30, 50, 50], [150, 0, 200, 50]], np.float32)
    scores = np.array([0.9, 0.8, 0.95], np.float32)
    assert mtcnn.suppress_by_smaller(boxes, scores, 0.7).tolist() == [2, 0]
