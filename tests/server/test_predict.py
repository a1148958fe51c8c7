"""Pictures that a model takes as they came: only then undecoded, and decoded after all where it cannot read them."""

import asyncio
import gc
import io
import threading
from typing import Any

import numpy as np
import orjson
import pytest
from PIL import Image

from engines.errors import ImageError
from engines.model import Kind
from server.routes import PREDICTOR, SHELF
from server.wire import Ask
from tests.server.fakes import FakeEngines, FakeModel, fake_app, serving, unit
from tests.server.test_app import CLIP, FACES, form, png

VISUAL: tuple[Kind, str] = ("visual", "demo")


def jpeg(width: int = 64, height: int = 48, colour: tuple[int, int, int] = (200, 30, 40)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(out, "JPEG")
    return out.getvalue()


class Taking(FakeEngines):
    """Makes models that take JPEGs as they come."""

    def __init__(self, *, reads: bool = True) -> None:
        super().__init__()
        self._reads = reads

    def load(self, part: Any) -> tuple[FakeModel, ...]:
        models = super().load(part)
        for model in models:
            model.takes_jpegs = True
            model.reads_jpegs = self._reads
        return models


async def vector_of(client: Any, image: bytes, entries: Any = CLIP) -> Any:
    response = await client.post("/predict", data=form(entries, image))
    assert response.status == 200, await response.text()
    body = await response.json()
    assert (body["imageWidth"], body["imageHeight"]) == (64, 48)
    return np.array(orjson.loads(body["clip"]), np.float32)


async def test_a_jpeg_goes_undecoded_to_a_model_that_takes_it() -> None:
    engines = Taking()
    async with serving(fake_app(engines)) as client:
        vector = await vector_of(client, jpeg())
    assert np.allclose(vector, unit("jpeg", jpeg()))
    assert engines.models[VISUAL].jpegs == [len(jpeg())]


@pytest.mark.parametrize(
    ("image", "entries", "settings"),
    [(png(), CLIP, {}), (jpeg(), {**CLIP, **FACES}, {}), (jpeg(), CLIP, {"exif": True})],
    ids=["a PNG", "faces too", "turned by EXIF"],
)
async def test_all_else_is_decoded_first(image: bytes, entries: Any, settings: dict[str, Any]) -> None:
    engines = Taking()
    async with serving(fake_app(engines, **settings)) as client:
        await vector_of(client, image, entries)
    assert engines.models[VISUAL].jpegs == []
    assert sum(engines.models[VISUAL].batches) == 1


async def test_what_the_model_cannot_read_is_decoded_after_all() -> None:
    engines = Taking(reads=False)
    async with serving(fake_app(engines)) as client:
        vector = await vector_of(client, jpeg())
        plain = FakeEngines()
        async with serving(fake_app(plain)) as other:
            assert np.allclose(vector, await vector_of(other, jpeg()))
    assert engines.models[VISUAL].jpegs == [len(jpeg())]
    assert sum(engines.models[VISUAL].batches) == 2


async def test_a_damaged_one_fails_alone() -> None:
    engines = Taking(reads=False)
    damaged = jpeg()[:300] + b"\xff\xd9"
    async with serving(fake_app(engines)) as client:
        await vector_of(client, jpeg())
        responses = await asyncio.gather(
            *(client.post("/predict", data=form(CLIP, image)) for image in (damaged, jpeg(), jpeg(colour=(1, 2, 3))))
        )
        assert [response.status for response in responses] == [400, 200, 200]


async def test_the_pixels_of_undecoded_pictures_bound_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.loading.GPU_DECODED_PIXELS", 2 * 64 * 48)
    engines = Taking()
    app = fake_app(engines)
    async with serving(app) as client:
        await vector_of(client, jpeg())
        model = engines.models[VISUAL]
        model.gate.clear()
        requests = [asyncio.create_task(vector_of(client, jpeg())) for _ in range(6)]
        await asyncio.to_thread(model.running.acquire)  # of the first request
        await asyncio.to_thread(model.running.acquire)
        async with asyncio.timeout(20):
            while sum(loaded.queue.items for loaded in app[SHELF].loaded()) < 3:  # noqa: ASYNC110 - a state, no event
                await asyncio.sleep(0.001)
        model.gate.set()
        await asyncio.gather(*requests)
    assert max(model.batches) == 2
    assert sum(model.batches) == 7


async def test_nobody_is_told_of_a_broken_picture_whose_client_hung_up(monkeypatch: pytest.MonkeyPatch) -> None:
    looks, hung_up = threading.Event(), threading.Event()

    def broken(data: bytes, max_pixels: int) -> None:
        looks.set()
        assert hung_up.wait(10)
        raise ImageError("broken")

    monkeypatch.setattr("server.predict.images.probe", broken)
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
    app = fake_app(FakeEngines())
    async with serving(app):
        caller = asyncio.create_task(app[PREDICTOR].answer(Ask(visual="demo", image=b"x"), flow=None))
        assert await asyncio.to_thread(looks.wait, 10)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        hung_up.set()
        await app[PREDICTOR]._picture_turns.acquire(app[PREDICTOR]._picture_turns.capacity)  # the thread has ended
        await asyncio.sleep(0)
        gc.collect()
    assert told == []
