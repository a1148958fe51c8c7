"""The wire contract over a real socket, with the demo models: what every client in the field relies on."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer

from scripts.scenes import photo as generated_photo
from server.app import create_app
from server.loading import Engines, engine_config
from server.routes import SHELF
from server.settings import Settings
from tests.server.contract import CASES, body, check_shape, encode, multipart, photo, picture
from tests.server.described import check_answer

pytestmark = pytest.mark.asyncio(loop_scope="module")

CLIP = b'{"clip":{"visual":{"modelName":"demo"}}}'
TEXT = b'{"clip":{"textual":{"modelName":"demo"}}}'
FACES = b'{"facial-recognition":{"detection":{"modelName":"demo"},"recognition":{"modelName":"demo"}}}'


class Client:
    """Posts bodies built by hand to one running application."""

    def __init__(self, app: web.Application, url: str, session: aiohttp.ClientSession) -> None:
        self.app = app
        self.url = url
        self.session = session

    async def post(self, data: Any, kind: str) -> tuple[int, Any]:
        async with self.session.post(self.url, data=data, headers={"Content-Type": kind}) as response:
            assert response.content_type == "application/json"
            return response.status, await response.json()

    async def fields(self, **fields: bytes) -> Any:
        status, answer = await self.post(*multipart(fields))
        assert status == 200, answer
        return answer


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(cache_folder: Path) -> AsyncIterator[Client]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        settings = Settings(cache_folder=cache_folder, engine="eager", precision="float32")
        engines = Engines(engine_config(settings))
        app = create_app(settings, engines.load, engines.release, engines.warm_up)
        server = TestServer(app)
        await server.start_server()
        async with aiohttp.ClientSession() as session:
            yield Client(app, str(server.make_url("/predict")), session)
        await server.close()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
async def test_a_case_of_the_contract(client: Client, case: dict[str, Any]) -> None:
    status, answer = await client.post(*body(case))
    allowed = case["status"] if isinstance(case["status"], list) else [case["status"]]
    assert status in allowed, answer
    check_answer("post", "/predict", status, "application/json", answer)
    if status != 200:
        assert set(answer) == {"detail"}
        assert len(answer["detail"]) > 20
    elif "shape" in case:
        check_shape(answer, case["shape"])


async def test_a_body_sent_in_single_bytes(client: Client) -> None:
    data, kind = multipart({"image": encode(photo().resize((64, 64)), "JPEG", quality=30), "entries": CLIP})
    whole = await client.post(data, kind)

    async def pieces() -> AsyncIterator[bytes]:
        for i in range(len(data)):
            yield data[i : i + 1]

    assert await client.post(pieces(), kind) == whole
    assert whole[0] == 200


async def test_parts_in_any_order_mean_the_same(client: Client) -> None:
    image = picture("jpeg")
    first = await client.fields(entries=CLIP, image=image, unknown=b"x")
    second = await client.fields(unknown=b"x", image=image, entries=CLIP)
    assert first == second


def vector(text: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array(json.loads(text))


async def test_1000_requests_of_32_clients_each_get_the_right_answer(client: Client) -> None:
    rng = np.random.default_rng(7)
    photos = [encode(generated_photo(rng, 320, 240), "JPEG", quality=85) for _ in range(64)]
    alone = [vector((await client.fields(entries=CLIP, image=one))["clip"]) for one in photos]
    apart = np.array(alone) @ np.array(alone).T - np.eye(64)
    assert apart.max() < 0.9999, "the photos must differ, or a mixed-up answer would not be seen"
    numbers = iter(range(1000))
    lowest = 1.0

    async def caller() -> None:
        nonlocal lowest
        for number in numbers:
            answer = await client.fields(entries=CLIP, image=photos[number % 64])
            lowest = min(lowest, float(vector(answer["clip"]) @ alone[number % 64]))

    await asyncio.gather(*(caller() for _ in range(32)))
    assert next(numbers, None) is None
    assert lowest >= 0.99999


async def test_mixed_tasks_at_once_do_not_disturb_each_other(client: Client) -> None:
    image = picture("photo-one-face")
    both = CLIP[:-1] + b"," + FACES[1:]
    expected = [
        await client.fields(entries=CLIP, image=image),
        await client.fields(entries=FACES, image=image),
        await client.fields(entries=both, image=image),
        await client.fields(entries=TEXT, text=b"a red circle"),
    ]
    asked = [
        client.fields(entries=CLIP, image=image),
        client.fields(entries=FACES, image=image),
        client.fields(entries=both, image=image),
        client.fields(entries=TEXT, text=b"a red circle"),
    ]
    for wanted, answer in zip(expected, await asyncio.gather(*asked), strict=True):
        assert set(answer) == set(wanted)
        if "clip" in wanted:
            assert float(vector(answer["clip"]) @ vector(wanted["clip"])) >= 0.99999
        for face, other in zip(answer.get("facial-recognition", []), wanted.get("facial-recognition", []), strict=True):
            assert face["boundingBox"] == other["boundingBox"]
            assert float(vector(face["embedding"]) @ vector(other["embedding"])) >= 0.99999


async def test_two_thresholds_on_one_model_at_once(client: Client) -> None:
    image = picture("photo-one-face")

    def asking(score: float) -> Any:
        options = {"modelName": "demo", "options": {"minScore": score}}
        return client.fields(entries=json.dumps({"facial-recognition": {"detection": options}}).encode(), image=image)

    answers = await asyncio.gather(*(asking(score) for score in [0.3, 0.9999999] * 8))
    counts = [len(answer["facial-recognition"]) for answer in answers]
    assert all(few == 0 for few in counts[1::2])
    assert all(many >= 1 for many in counts[::2])


async def test_a_client_that_hangs_up_in_the_queue_leaves_nothing_behind(client: Client) -> None:
    data, kind = multipart({"entries": CLIP, "image": encode(photo(), "PNG")})
    asked = [asyncio.create_task(client.post(data, kind)) for _ in range(20)]
    await asyncio.sleep(0.05)
    for task in asked[::2]:
        task.cancel()
    results = await asyncio.gather(*asked, return_exceptions=True)
    kept = [result for result in results[1::2] if not isinstance(result, BaseException)]
    assert [status for status, _ in kept] == [200] * 10
    async with asyncio.timeout(30):
        while any(loaded.queue.items for loaded in client.app[SHELF].loaded()):  # noqa: ASYNC110 - a state, no event
            await asyncio.sleep(0.01)


async def test_the_20000x1_picture_is_quick(client: Client) -> None:
    fields = {"entries": CLIP, "image": picture("png-20000x1")}
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        await client.fields(**fields)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.3


async def test_exif_is_applied_where_the_setting_says_so(cache_folder: Path) -> None:
    settings = Settings(cache_folder=cache_folder, exif=True)
    engines = Engines(engine_config(settings))
    server = TestServer(create_app(settings, engines.load, engines.release))
    async with server, aiohttp.ClientSession() as session:
        data, kind = multipart({"entries": CLIP, "image": picture("jpeg-exif6")})
        async with session.post(server.make_url("/predict"), data=data, headers={"Content-Type": kind}) as response:
            answer = await response.json()
    assert (answer["imageWidth"], answer["imageHeight"]) == (480, 640)


async def test_a_search_finds_the_picture_it_describes(client: Client) -> None:
    """Through the whole service: the demo was trained on bundled photos, so words must find them."""
    photos = {"a photo of a cat": "chelsea.png", "a cup of coffee": "coffee.png", "an astronaut": "astronaut.png"}
    images = [
        vector((await client.fields(entries=CLIP, image=encode(photo(name), "PNG")))["clip"])
        for name in photos.values()
    ]
    for number, text in enumerate(photos):
        words = vector((await client.fields(entries=TEXT, text=text.encode()))["clip"])
        assert int(np.argmax([image @ words for image in images])) == number, text
