"""The fixed inputs of the gate: photos, faces, noise, black, white; texts short, long and in other scripts.

The photos lie in the package, since a server in use has no others at hand: astronaut and hubble_deep_field are by NASA
(public domain), rocket by SpaceX, camera by Lav Varshney, chelsea by Stefan van der Walt, coffee by Rachel Michetti
(all CC0); scaled from the copies of scikit-image. Knows nothing of networks.
"""

from functools import cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

PHOTOS = ("astronaut", "camera", "chelsea", "coffee", "rocket", "hubble_deep_field")
# Around the heads of astronaut and camera: left, upper, right, lower.
HEADS = (("astronaut", (150, 0, 300, 190)), ("camera", (112, 50, 188, 144)))

# The first ones are as long as searches are; all are different in meaning.
TEXTS = (
    "dog",
    "a red bicycle",
    "birthday party with cake and candles",
    "schneebedeckte Berge",
    "un gato durmiendo",
    "夜景",
    "закат над морем",
    "شاطئ",
    "🎂🎉",
    "a photo of two children who build a sand castle on the beach while their dog runs after a ball",
    "screenshot of a bank transfer, 1,234.56 EUR, dated 2024-03-17, reference number 0049-XK-77",
    "ein altes Schwarz-Weiß-Foto einer Hochzeit mit vielen Gästen vor einer kleinen Kirche im Schnee",
    "the view from the top of the tower over the roofs of the old town, the river with its three bridges, the green "
    "hills behind, and far away, hardly to be seen in the haze of an August afternoon, the first mountains; in front a "
    "man with a straw hat who looks into a map, and a child that feeds pigeons although a sign says not to, twice, in "
    "five languages, and a woman who takes a picture of both of them",
    "東京の夜の街並みと、雨に濡れた道路に映るネオンサイン",
)


@cache
def photo(name: str) -> Image.Image:
    """Return one of PHOTOS in RGB."""
    with resources.files("engines").joinpath(f"data/gate/{name}.jpg").open("rb") as file:
        return Image.open(file).convert("RGB")


def plain(size: tuple[int, int]) -> tuple[Image.Image, ...]:
    """Return white noise, black and white, each `size` (width, height) pixels."""
    noise = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise), Image.new("RGB", size, "black"), Image.new("RGB", size, "white")


def pictures() -> tuple[Image.Image, ...]:
    """Return what a picture tower is examined on: photos, parts of photos, noise, black and white."""
    photos = [photo(name) for name in PHOTOS]
    parts = [ImageOps.mirror(photo("astronaut").crop((0, 200, 300, 480))), photo("coffee").crop((60, 40, 340, 300))]
    return (*photos, *parts, *plain((256, 256)))


def faces(side: int) -> NDArray[np.uint8]:
    """Return what a recogniser is examined on: heads in different light and size, and things that are no heads."""
    heads = [head(index) for index in range(len(HEADS))]
    shown = [
        *heads,
        *(ImageOps.mirror(image) for image in heads),
        *(image.point(lambda level: level // 2) for image in heads),
        *(image.resize((24, 30), Image.Resampling.BILINEAR) for image in heads),
        photo("chelsea").crop((120, 40, 300, 240)),
        *plain((side, side)),
    ]
    return np.stack([np.asarray(image.resize((side, side), Image.Resampling.BILINEAR)) for image in shown])


def head(index: int) -> Image.Image:
    """Return one of the two heads in HEADS."""
    name, box = HEADS[index]
    return photo(name).crop(box)


def crowds() -> tuple[NDArray[np.uint8], ...]:
    """Return what a detector is examined on, each (H, W, 3): a portrait, crowds of many sizes, and no face at all.

    Large and small, so that the pyramid has levels of many sizes.
    """
    coffee = photo("coffee")
    wide = _crowd(coffee.resize((960, 720)), 11, 12)
    tall = _crowd(coffee.resize((500, 840)), 12, 7)
    large = _crowd(coffee.resize((1440, 1080)), 13, 5)
    shown = [photo("astronaut"), wide, tall, large, photo("rocket"), *plain((161, 97))]
    return tuple(np.array(image) for image in shown)


def _crowd(background: Image.Image, seed: int, count: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    for index in range(count):
        face = head(index % len(HEADS))
        side = round(float(np.exp(rng.uniform(np.log(30), np.log(220)))))
        place = int(rng.integers(0, background.width - side)), int(rng.integers(0, background.height - side))
        background.paste(face.resize((side, round(side * face.height / face.width))), place)
    return background
