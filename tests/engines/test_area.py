import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from engines import area
from engines.area import AreaTable, PackedTable

CPU = torch.device("cpu")


def expected(picture: NDArray[np.uint8], height: int, width: int) -> Tensor:
    return interpolate(torch.from_numpy(picture).permute(2, 0, 1)[None].double(), (height, width), mode="area")


def pictures(rng: np.random.Generator, count: int) -> list[NDArray[np.uint8]]:
    return [rng.integers(0, 256, (*rng.integers(1, 90, 2), 3), dtype=np.uint8) for _ in range(count)]


def test_levels_are_those_of_interpolate() -> None:
    rng = np.random.default_rng(0)
    shown = pictures(rng, 40)
    together = AreaTable.of(shown, CPU)
    for k, picture in enumerate(shown):
        alone = PackedTable(picture)
        for height, width in rng.integers(1, 150, (5, 2)).tolist():
            for level in (together.level(k, height, width), alone.level(0, height, width)):
                assert level.shape == (1, 3, height, width)
                assert level.dtype == torch.float32
                assert (level - expected(picture, height, width)).abs().max() < 1e-4


def test_crops_are_those_of_interpolate_also_of_several_pictures() -> None:
    rng = np.random.default_rng(1)
    shown = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((60, 40), (1, 7), (33, 90))]
    owners, boxes = [], []
    for _ in range(90):
        k = int(rng.integers(3))
        height, width, _ = shown[k].shape
        x, y = int(rng.integers(width)), int(rng.integers(height))
        owners.append(k)
        boxes.append((x, y, int(rng.integers(x + 1, width + 1)), int(rng.integers(y + 1, height + 1))))
    together = AreaTable.of(shown, CPU).crops(torch.tensor(owners), torch.tensor(boxes), 24)
    for owner, (x1, y1, x2, y2), crop in zip(owners, boxes, together, strict=True):
        assert (crop - expected(shown[owner][y1:y2, x1:x2], 24, 24)[0]).abs().max() < 1e-4
    for k, picture in enumerate(shown):
        own = [i for i, owner in enumerate(owners) if owner == k]
        assert len(own) > 20
        alone = PackedTable(picture).crops(torch.zeros(len(own)), torch.tensor(boxes)[own], 24)
        assert (alone - together[own]).abs().max() < 1e-4


def test_no_crops_are_none() -> None:
    picture = np.zeros((5, 5, 3), np.uint8)
    nothing = torch.zeros(0, dtype=torch.int64)
    assert PackedTable(picture).crops(nothing, nothing.view(0, 4), 24).shape == (0, 3, 24, 24)


def test_sums_of_a_large_picture_may_wrap_around() -> None:
    picture = np.full((2100, 4200, 3), 255, dtype=np.uint8)
    picture[-1, -1] = 0
    together, alone = AreaTable.of([picture], CPU), PackedTable(picture)
    assert int(together.sums.min()) < 0
    corner = torch.tensor([[4198, 2098, 4200, 2100]])
    for table in (together, alone):
        assert (table.level(0, 13, 26)[..., :-1, :] == 255).all()
        assert table.crops(torch.tensor([0]), corner, 2)[0, 0].tolist() == [[255, 255], [255, 0]]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (3, 1), (14, 13)])
def test_large_rectangles_are_summed_in_parts(height: int, width: int) -> None:
    rng = np.random.default_rng(2)
    picture = rng.integers(250, 256, (1301, 1523, 3), dtype=np.uint8)
    assert picture.size / 3 / height / width > area._MOST
    means = PackedTable(picture).level(0, height, width)
    assert (means - expected(picture, height, width)).abs().max() < 1e-3
    box = torch.tensor([[1, 2, 1520, 1300]])
    crop = PackedTable(picture).crops(torch.tensor([0]), box, 2)
    assert (crop - expected(picture[2:1300, 1:1520], 2, 2)).abs().max() < 1e-3
