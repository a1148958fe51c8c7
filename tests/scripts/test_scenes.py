"""The generator of pictures: repeatable, complete in its captions, and drawing what it says."""

import io
from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from scripts import scenes
from scripts.scenes import COLOURS, GROUND_COLOURS, GROUNDS, POSITIONS, SHAPES, Scene

STAR = Scene("star", "yellow", 1, "small", "at the top left", "plain", "white")
SQUARES = Scene("square", "blue", 3, None, None, "striped", "black")
PAIR = Scene("circle", "red", 1, None, None, "gradient", "grey", "left of", ("square", "blue"))


def some(count: int, seed: int = 0) -> Sequence[Scene]:
    rng = np.random.default_rng(seed)
    return [scenes.scene(rng) for _ in range(count)]


def test_one_seed_gives_the_same_scenes_captions_and_pixels() -> None:
    def everything(seed: int) -> list[tuple[Scene, str, bytes]]:
        rng = np.random.default_rng(seed)
        drawn = [scenes.scene(rng) for _ in range(20)]
        return [(one, scenes.caption(one, rng), scenes.draw(one, rng, 48).tobytes()) for one in drawn]

    assert everything(1) == everything(1)
    assert everything(1) != everything(2)


def test_there_is_enough_to_tell_apart() -> None:
    found = some(3000)
    assert {one.shape for one in found} == set(SHAPES)
    assert {one.colour for one in found} == set(COLOURS)
    assert {one.ground_colour for one in found} == set(GROUND_COLOURS)
    assert {one.ground for one in found} == set(GROUNDS)
    assert {one.position for one in found} == {*POSITIONS, None}
    assert {one.count for one in found} == {1, 2, 3, 4, 5}
    assert {one.relation for one in found} == {"left of", "above", None}
    assert len(SHAPES) >= 8
    assert len(COLOURS) >= 10
    assert len(POSITIONS) == 9


def test_the_colours_of_a_pair_differ() -> None:
    pairs = [one for one in some(500) if one.other is not None]
    assert len(pairs) > 50
    assert all(one.other is not None and one.colour != one.other[1] for one in pairs)


def test_complete_captions() -> None:
    assert scenes.caption(STAR) == "a small yellow star at the top left on a white background"
    assert scenes.caption(SQUARES) == "three blue squares on a striped black background"
    assert scenes.caption(PAIR) == "a red circle left of a blue square on a grey gradient background"
    arrow = replace(STAR, shape="arrow", colour="orange", size="large", ground="speckled")
    assert scenes.caption(arrow) == "a large orange arrow at the top left on a speckled white background"
    assert scenes.caption(replace(SQUARES, shape="cross", count=5)).startswith("five blue crosses on")


def test_different_scenes_have_different_complete_captions() -> None:
    different = set(some(3000))
    assert len({scenes.caption(one) for one in different}) == len(different)


def test_varied_captions_say_nothing_untrue() -> None:
    rng = np.random.default_rng(3)
    of_pair = {scenes.caption(PAIR, rng) for _ in range(300)}
    assert len(of_pair) > 8
    for caption in of_pair:
        first_is_circle = caption.index("red circle") < caption.index("blue square")
        assert ("left of" in caption) is first_is_circle
        assert ("right of" in caption) is not first_is_circle
    assert any(caption.startswith("on a grey gradient background, ") for caption in of_pair)
    of_star = {scenes.caption(STAR, rng) for _ in range(300)}
    assert all("yellow star" in caption for caption in of_star)
    assert {"small" in caption for caption in of_star} == {True, False}
    assert {"top left" in caption for caption in of_star} == {True, False}
    assert {"white background" in caption for caption in of_star} == {True, False}
    assert all("three blue squares" in scenes.caption(SQUARES, rng) for _ in range(50))


def test_siblings_share_kind_colours_and_ground_and_differ_otherwise() -> None:
    rng = np.random.default_rng(4)
    for one in (STAR, SQUARES, PAIR):
        siblings = [scenes.sibling(one, rng) for _ in range(200)]
        for sibling in siblings:
            assert (sibling.ground, sibling.ground_colour) == (one.ground, one.ground_colour)
            assert colours(sibling) == colours(one)
            assert (sibling.count > 1, sibling.other is None) == (one.count > 1, one.other is None)
        for field in fields(Scene):
            values = {getattr(sibling, field.name) for sibling in siblings}
            free = getattr(one, field.name) is not None and not field.name.startswith("ground")
            assert (len(values) > 1) == (free and varies(field.name, one))


def colours(one: Scene) -> set[str]:
    return {one.colour, *([one.other[1]] if one.other else [])}


def varies(name: str, one: Scene) -> bool:
    """Whether siblings of a scene differ in this: the colour only where the two of a pair change places."""
    return {"colour": one.other is not None, "count": one.count > 1}.get(name, True)


@pytest.mark.parametrize("position", POSITIONS)
def test_a_thing_is_drawn_at_its_place_in_its_colour(position: str) -> None:
    image = scenes.draw(replace(STAR, shape="circle", position=position), np.random.default_rng(0), 100)
    x, y = POSITIONS[position]
    pixels = np.asarray(image).astype(int)
    yellow = np.abs(pixels - COLOURS["yellow"]).max(2) <= 12
    rows, columns = np.nonzero(yellow)
    assert abs(columns.mean() / 100 - x) < 0.05
    assert abs(rows.mean() / 100 - y) < 0.05
    assert 0.04 < yellow.mean() < 0.07  # a circle with a radius of 0.13 of the side: pi * 0.13 ** 2 = 0.053
    assert (np.abs(pixels - GROUND_COLOURS["white"]).max(2) <= 12).mean() > 0.9


def test_the_first_of_a_pair_is_on_the_left_or_above() -> None:
    for relation, axis in (("left of", 1), ("above", 0)):
        for seed in range(5):
            image = scenes.draw(replace(PAIR, relation=relation), np.random.default_rng(seed), 100)
            pixels = np.asarray(image).astype(int)
            red, blue = (
                np.nonzero(np.abs(pixels - COLOURS[colour]).max(2) <= 12)[axis].mean() for colour in ("red", "blue")
            )
            assert red + 25 < blue


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [2, 5])
def test_a_group_has_as_many_things_as_it_says(shape: str, count: int) -> None:
    group = replace(SQUARES, shape=shape, count=count, ground="plain", ground_colour="white")
    pixels = np.asarray(scenes.draw(group, np.random.default_rng(count), 160)).astype(int)
    blue = np.abs(pixels - COLOURS["blue"]).max(2) <= 12
    assert islands(blue) == count


def islands(mask: NDArray[np.bool_]) -> int:
    """Count the connected regions of a mask (H, W), without specks such as the thin ends of a crescent."""
    left = {(int(row), int(column)) for row, column in zip(*np.nonzero(mask), strict=True)}
    found = 0
    while left:
        edge, area = [left.pop()], 0
        while edge:
            row, column = edge.pop()
            area += 1
            for near in [(row + down, column + right) for down in (-1, 0, 1) for right in (-1, 0, 1)]:
                if near in left:
                    left.remove(near)
                    edge.append(near)
        found += area > 5
    return found


def test_photo_like_pictures() -> None:
    first = scenes.photo(np.random.default_rng(0), 1440, 1080)
    assert first.mode == "RGB"
    assert first.size == (1440, 1080)
    assert 200_000 < jpeg_bytes(first) < 400_000
    small = [scenes.photo(np.random.default_rng(seed), 90, 160) for seed in (0, 0, 1)]
    assert small[0].size == (90, 160)
    assert small[0].tobytes() == small[1].tobytes() != small[2].tobytes()
    assert np.asarray(first).std() > 30


def jpeg_bytes(image: Image.Image) -> int:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return len(buffer.getvalue())
