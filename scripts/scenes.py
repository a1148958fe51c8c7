"""Draws pictures that can be described in words: scenes of shapes with their captions, and photo-like pictures.

Everything comes from the random generator that is passed in: the same seed gives the same scenes, captions and
pixels. Knows nothing of networks or of what the pictures are used for.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import pi

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

COLOURS = {
    "red": (220, 30, 35),
    "orange": (250, 135, 15),
    "yellow": (250, 230, 40),
    "green": (35, 150, 50),
    "cyan": (40, 215, 220),
    "blue": (30, 60, 210),
    "purple": (120, 35, 160),
    "pink": (250, 150, 190),
    "brown": (115, 70, 35),
    "lime": (160, 240, 60),
}
# Grounds have colours of their own, so that a thing is told from its ground by what it is, not by what is around it:
# a network learns that much sooner.
GROUND_COLOURS = {"black": (15, 15, 15), "grey": (130, 130, 130), "white": (240, 240, 240)}
POSITIONS = {
    "at the top left": (0.28, 0.28),
    "at the top": (0.5, 0.28),
    "at the top right": (0.72, 0.28),
    "on the left": (0.28, 0.5),
    "in the centre": (0.5, 0.5),
    "on the right": (0.72, 0.5),
    "at the bottom left": (0.28, 0.72),
    "at the bottom": (0.5, 0.72),
    "at the bottom right": (0.72, 0.72),
}
SIZES = {"small": 0.14, "large": 0.27}  # radius as a share of the picture's side
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five"}
GROUNDS = ("plain", "gradient", "speckled", "striped")
OPPOSITES = {"left of": "right of", "above": "below"}
PREFIXES = ("a picture of ", "an image of ", "a drawing of ")


def _arc(radius: float, start: float, end: float, points: int = 28) -> NDArray[np.float64]:
    """Return points (n, 2) on a circle around the origin, from angle `start` to `end` in radians."""
    angle = np.linspace(start, end, points)
    return radius * np.stack([np.cos(angle), np.sin(angle)], 1)


def _star() -> NDArray[np.float64]:
    radius = np.tile([1.0, 0.42], 5)[:, None]
    return radius * _arc(1, -pi / 2, 1.5 * pi, 11)[:-1]


def _heart() -> NDArray[np.float64]:
    t = np.linspace(0, 2 * pi, 40)
    # The usual parametric heart curve, scaled to about the unit circle and turned upright (y grows downwards).
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x / 17, -y / 17 - 0.1], 1)


# Outlines as polygons (n, 2) within about the unit circle, y downwards.
OUTLINES = {
    "circle": _arc(0.92, 0, 2 * pi),
    "square": np.array([(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]),
    "triangle": np.array([(0, -1.0), (0.95, 0.75), (-0.95, 0.75)]),
    "star": _star(),
    "cross": np.array(
        [
            *[(-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3)],
            *[(0.3, 1), (-0.3, 1), (-0.3, 0.3), (-1, 0.3), (-1, -0.3), (-0.3, -0.3)],
        ]
    ),
    "heart": _heart(),
    "diamond": np.array([(0, -1.05), (0.68, 0), (0, 1.05), (-0.68, 0)]),
    # Its seam is upright: Pillow fills row by row, and a level seam would stay open.
    "ring": np.concatenate([_arc(1, pi / 2, 2.5 * pi), _arc(0.55, 2.5 * pi, pi / 2)]),
    "crescent": np.concatenate([_arc(1, 0.3 * pi, 1.7 * pi), np.add(_arc(0.826, 1.565 * pi, 0.435 * pi), (0.42, 0))]),
    "arrow": np.array([(-1, -0.25), (0.1, -0.25), (0.1, -0.75), (1, 0), (0.1, 0.75), (0.1, 0.25), (-1, 0.25)]),
}
SHAPES = tuple(OUTLINES)


@dataclass(frozen=True, slots=True)
class Scene:
    """What is in a picture, one of three kinds.

    One thing (count 1) has a size and a position. A group (count 2 to 5) is strewn over the picture. A pair is
    `shape` and `colour` in `relation` ("left of" or "above") to `other`, a (shape, colour).
    """

    shape: str
    colour: str
    count: int
    size: str | None
    position: str | None
    ground: str
    ground_colour: str
    relation: str | None = None
    other: tuple[str, str] | None = None


def scene(rng: Generator) -> Scene:
    """Return a random scene; the two of a pair differ in colour."""
    first, second = (str(colour) for colour in rng.permutation(list(COLOURS))[:2])
    bare = Scene(_pick(rng, SHAPES), first, 1, None, None, _pick(rng, GROUNDS), _pick(rng, GROUND_COLOURS))
    kind = rng.random()
    if kind < 0.45:
        return replace(bare, size=_pick(rng, SIZES), position=_pick(rng, POSITIONS))
    if kind < 0.7:
        return replace(bare, count=int(rng.integers(2, 6)))
    return replace(bare, relation=_pick(rng, OPPOSITES), other=(_pick(rng, SHAPES), second))


def sibling(of: Scene, rng: Generator) -> Scene:
    """Return a scene of the same kind, colours and background as `of`; in each other respect it may differ.

    Colours alone tell scenes that are drawn independently from each other; siblings take shapes, places, sizes,
    counts and the order of words.
    """

    def perhaps(value: str, options: Iterable[str]) -> str:
        return _pick(rng, options) if rng.random() < 0.5 else value

    shape = perhaps(of.shape, SHAPES)
    if of.other is not None and of.relation is not None:
        things = [(shape, of.colour), (perhaps(of.other[0], SHAPES), of.other[1])]
        if rng.random() < 0.5:
            things.reverse()
        (shape, colour), other = things
        return replace(of, shape=shape, colour=colour, other=other, relation=perhaps(of.relation, OPPOSITES))
    if of.position is not None and of.size is not None:
        return replace(of, shape=shape, size=perhaps(of.size, SIZES), position=perhaps(of.position, POSITIONS))
    return replace(of, shape=shape, count=int(rng.integers(2, 6)))


def caption(of: Scene, rng: Generator | None = None) -> str:
    """Describe `of` in words.

    Without `rng` the caption is complete: different scenes have different captions, and only one of them is true of
    a picture. With `rng` the wording varies and a detail may be left out.
    """
    size = of.size if of.size and (rng is None or rng.random() < 0.7) else None
    background = rng is None or rng.random() < 0.85
    position = of.position if of.position and (rng is None or rng.random() < 0.85) else None
    if of.other is not None and of.relation is not None:
        ends, relation = [_a(of.colour, of.shape), _a(of.other[1], of.other[0])], of.relation
        if rng is not None and rng.random() < 0.5:
            ends, relation = ends[::-1], OPPOSITES[relation]
        things = f"{ends[0]} {relation} {ends[1]}"
    elif of.count > 1:
        things = f"{NUMBERS[of.count]} {of.colour} {of.shape}{'es' if of.shape == 'cross' else 's'}"
    else:
        things = _a(*([size] if size else []), of.colour, of.shape)
    if position:
        things = f"{things} {position}"
    ground = _a(of.ground_colour, "gradient") if of.ground == "gradient" else _a(of.ground, of.ground_colour)
    if of.ground == "plain":
        ground = _a(of.ground_colour)
    ground = f"{ground} background"
    if rng is None:
        return f"{things} on {ground}"
    if rng.random() < 0.3:
        things = _pick(rng, PREFIXES) + things
    if not background:
        return things
    return f"{things} on {ground}" if rng.random() < 0.75 else f"on {ground}, {things}"


def draw(of: Scene, rng: Generator, size: int) -> Image.Image:
    """Draw `of` as an RGB picture of `size` x `size` pixels; what the scene leaves open is drawn from `rng`.

    Edges are not smoothed: draw larger than needed and resize.
    """
    image = _ground(of, rng, size)
    canvas = ImageDraw.Draw(image)
    for shape, colour, centre, radius in _places(of, rng):
        fill, middle = _shade(COLOURS[colour], rng), (centre[0] * size, centre[1] * size)
        outline = _outline(shape, middle, radius * size, rng.uniform(-0.14, 0.14))  # turned by at most 8 degrees
        canvas.polygon(outline, fill)
    return image


def photo(rng: Generator, width: int, height: int) -> Image.Image:
    """Return an RGB picture of `width` x `height` pixels with the statistics of a photo.

    Detail at every scale, soft and hard edges, sensor noise: as a JPEG of quality 80 it takes about as many bytes as
    a real photo of that size.
    """
    side = max(width, height)
    pixels = np.zeros((height, width, 3), np.float32)
    cells, strength = 2, 70.0
    while cells < side:
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
        box = (0.0, 0.0, cells * width / side, cells * height / side)
        fine = coarse.resize((width, height), Image.Resampling.BICUBIC, box)
        pixels += strength * (np.asarray(fine, np.float32) / 127.5 - 1)
        cells, strength = cells * 2, strength * 0.62
    pixels += rng.integers(90, 150, 3)
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    for soft in (side / 60, side / 400, 0.0):
        layer = image.copy()
        mask = Image.new("L", image.size, 0)
        on_layer, on_mask = ImageDraw.Draw(layer), ImageDraw.Draw(mask)
        for _ in range(14):
            centre = (rng.random() * width, rng.random() * height)
            outline = _outline(_pick(rng, SHAPES), centre, side * rng.uniform(0.01, 0.1), rng.uniform(0, 2 * pi))
            red, green, blue, opacity = (int(level) for level in rng.integers([0, 0, 0, 120], 256))
            on_layer.polygon(outline, (red, green, blue))
            on_mask.polygon(outline, opacity)
        image.paste(layer, (0, 0), mask.filter(ImageFilter.GaussianBlur(soft)))
    grain = rng.normal(0, 5, (height, width, 1)).astype(np.float32)
    return Image.fromarray((np.asarray(image, np.float32) + grain).clip(0, 255).astype(np.uint8))


def _pick(rng: Generator, options: Iterable[str]) -> str:
    choices = tuple(options)
    return choices[int(rng.integers(len(choices)))]


def _a(*words: str) -> str:
    return f"{'an' if words[0][0] in 'aeio' else 'a'} {' '.join(words)}"


def _shade(colour: tuple[int, int, int], rng: Generator) -> tuple[int, int, int]:
    """Return `colour` with each channel moved by at most 12 levels."""
    red, green, blue = (min(255, max(0, level + int(rng.integers(-12, 13)))) for level in colour)
    return red, green, blue


def _places(of: Scene, rng: Generator) -> list[tuple[str, str, tuple[float, float], float]]:
    """Return (shape, colour, centre, radius) of each thing, in shares of the side."""
    if of.other is not None:
        near, far = rng.uniform(0.22, 0.3), rng.uniform(0.7, 0.78)
        centres = [(near, rng.uniform(0.35, 0.65)), (far, rng.uniform(0.35, 0.65))]
        if of.relation == "above":
            centres = [(y, x) for x, y in centres]
        radius = rng.uniform(0.18, 0.22)
        return [(of.shape, of.colour, centres[0], radius), (*of.other, centres[1], radius)]
    if of.position is not None and of.size is not None:
        x, y = POSITIONS[of.position]
        centre = (x + rng.uniform(-0.03, 0.03), y + rng.uniform(-0.03, 0.03))
        return [(of.shape, of.colour, centre, SIZES[of.size] * rng.uniform(0.9, 1.1))]
    radius = rng.uniform(0.12, 0.14)
    return [
        (of.shape, of.colour, (x + rng.uniform(-0.02, 0.02), y + rng.uniform(-0.02, 0.02)), radius)
        for x, y in rng.permutation([(x, y) for x in (0.18, 0.5, 0.82) for y in (0.18, 0.5, 0.82)])[: of.count]
    ]


def _outline(shape: str, centre: tuple[float, float], radius: float, angle: float) -> list[tuple[float, float]]:
    """Return the polygon of `shape` in pixels, turned by `angle` in radians."""
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return [(x, y) for x, y in (radius * OUTLINES[shape] @ turn + centre).tolist()]


def _ground(of: Scene, rng: Generator, size: int) -> Image.Image:
    """Return the background, `size` x `size` pixels."""
    colour = np.array(_shade(GROUND_COLOURS[of.ground_colour], rng), np.float32)
    if of.ground == "plain":
        pixels = np.broadcast_to(colour, (size, size, 3))
    elif of.ground == "gradient":
        # From the colour a third of the way to black, or to white where it is dark itself, along one of the sides.
        end = 0.65 * colour + 0.35 * (255 if colour.mean() < 100 else 0)
        ramp = np.linspace(0, 1, size, dtype=np.float32)[:, None, None]
        across = np.broadcast_to(colour + ramp * (end - colour), (size, size, 3))
        pixels = np.rot90(across, int(rng.integers(4)))
    elif of.ground == "speckled":
        grain = max(1, size // 48)
        cells = -(-size // grain)
        levels = rng.normal(0, 20, (cells, cells, 1)).astype(np.float32)
        pixels = colour + levels.repeat(grain, 0).repeat(grain, 1)[:size, :size]
    else:
        period = rng.uniform(0.1, 0.16) * size
        along = np.arange(size, dtype=np.float32) + rng.uniform(0, period)
        levels = np.where(along % period < period / 2, 20, -20).astype(np.float32)[:, None, None]
        pixels = np.rot90(np.broadcast_to(colour + levels, (size, size, 3)), int(rng.integers(2)))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
