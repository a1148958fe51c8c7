"""The baseline sees what open_clip's own transform makes of a picture, answers as ours does, and asks no more of it."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import FormData
from aiohttp.test_utils import TestClient, TestServer
from numpy.typing import NDArray
from open_clip.transform import AugmentationCfg, image_transform
from PIL import Image

from engines import catalog, towers
from scripts import scenes
from scripts.bench.baseline import Rival, create_app

NAMES = ("ViT-B-32__openai", "ViT-B-16-SigLIP__webli")


def rival_of(name: str, folder: Path) -> Rival:
    """Return the baseline of a model, without its networks."""
    entry = catalog.clip(name)
    mean, std = towers.mean_and_std(entry)
    about = {"size": entry.image_size, "mean": mean, "std": std, "squash": entry.resize == "squash"}
    (folder / "model.json").write_text(json.dumps(about))
    return Rival(folder)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(300, 400), (401, 299), (100, 50), (224, 224)])
def test_pixels_are_those_of_open_clips_transform(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    entry = catalog.clip(name)
    mean, std = towers.mean_and_std(entry)
    transform: Any = image_transform(
        entry.image_size,
        is_train=False,
        mean=mean,
        std=std,
        interpolation="bicubic",
        resize_mode=entry.resize,
        aug_cfg=AugmentationCfg(),
    )
    image = scenes.photo(np.random.default_rng(1), *size)
    rival = rival_of(name, tmp_path)
    pixels = rival.normalise(rival.resize(image))
    assert pixels.dtype == np.float32
    assert pixels.flags.c_contiguous
    np.testing.assert_allclose(pixels[0], transform(image).numpy(), atol=1e-6)


class Blind(Rival):
    """A baseline whose networks answer with what they were given."""

    def __init__(self) -> None:
        self.warmed: Sequence[str] = ()

    def warm(self, kinds: Sequence[str]) -> None:
        self.warmed = kinds

    def picture(self, data: bytes) -> tuple[tuple[int, int], NDArray[np.float32]]:
        return Image.open(io.BytesIO(data)).size, np.array([len(data)], np.float32)

    def text(self, text: str) -> NDArray[np.float32]:
        return np.array([len(text)], np.float32)


async def test_it_answers_forms_as_our_server_does() -> None:
    file = io.BytesIO()
    Image.new("RGB", (30, 20)).save(file, "JPEG")
    rival = Blind()
    async with TestClient(TestServer(create_app(rival, ("visual",)))) as client:
        assert await (await client.get("/ping")).text() == "pong"
        form = FormData({"entries": "{}"})
        form.add_field("image", file.getvalue(), filename="photo.jpg", content_type="image/jpeg")
        picture = await (await client.post("/predict", data=form)).json()
        assert (await client.get("/health/ready")).status == 200
        text = await (await client.post("/predict", data={"entries": "{}", "text": "a dog"})).json()
    assert picture == {"clip": f"[{len(file.getvalue())}.0]", "imageWidth": 30, "imageHeight": 20}
    assert text == {"clip": "[5.0]"}
    assert rival.warmed == ("visual",)
