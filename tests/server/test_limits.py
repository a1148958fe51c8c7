"""Each limit of a request, through the application: its status, one line in the log, and a setting that moves it."""

import asyncio
import io
import logging
from typing import Any

import pytest
from PIL import Image

from tests.server.fakes import FakeEngines, fake_app, serving
from tests.server.test_access import lines
from tests.server.test_app import CLIP, FACES, TEXT, form, png, until_waiting
from tests.server.test_wire import END, MULTIPART, part


@pytest.mark.parametrize(
    ("settings", "body", "variable"),
    [
        ({"max_body_mb": 0.001}, part("image", b"x" * 2000) + END, "MAX_BODY_MB"),
        ({"max_part_mb": 0.001}, part("image", b"x" * 2000) + END, "parts of up to 1000 bytes"),
        ({"max_parts": 3}, part("text", b"x") * 4 + END, "at most 3 parts"),
        ({"max_text_bytes": 1000}, part("text", b"x" * 600) + part("entries", b"y" * 600) + END, "over 1000 bytes"),
        ({}, part("text", b"x" * 1_048_577) + END, "over 1048576 bytes"),
        ({}, part("x", b"") * 65 + END, "at most 64 parts"),
    ],
    ids=["body", "part", "parts", "text", "text by default", "parts by default"],
)
async def test_each_limit_of_a_form_is_413_with_one_line(
    settings: dict[str, Any], body: bytes, variable: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with serving(fake_app(FakeEngines(), **settings)) as client:
        async with client.post("/predict", data=io.BytesIO(body), headers=MULTIPART) as response:
            assert response.status == 413
            assert variable in (await response.json())["detail"]
        assert len(lines(caplog)) == 1
        assert (await client.post("/predict", data=form(TEXT, text="next"))).status == 200


async def test_a_text_of_less_is_cut_and_answered() -> None:
    async with serving(fake_app(FakeEngines())) as client:
        assert (await client.post("/predict", data=form(TEXT, text="word " * 200_000))).status == 200


async def test_a_picture_of_too_many_faces_is_413_with_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    engines = FakeEngines()
    wanted = {"facial-recognition": {**FACES["facial-recognition"]}}
    async with serving(fake_app(engines, max_faces=1)) as client:
        async with client.post("/predict", data=form(wanted, png())) as response:
            assert response.status == 413
            assert "2 faces, more than 1" in (await response.json())["detail"]
        assert len(lines(caplog)) == 1
        assert engines.models["recognition", "demo"].batches == []
        one = {"facial-recognition": {"detection": {"modelName": "demo", "options": {"minScore": 0.9}}}}
        assert len((await (await client.post("/predict", data=form(one, png()))).json())["facial-recognition"]) == 1


async def test_a_queue_is_full_by_the_pixels_in_it() -> None:
    """Pictures that ride undecoded weigh what they will be decoded to."""
    engines = FakeEngines()
    app = fake_app(engines, queue_pixels=64 * 48 * 2)
    jpeg = png_as_jpeg()
    async with serving(app) as client:
        assert (await client.post("/predict", data=form(CLIP, jpeg))).status == 200
        model = engines.models["visual", "demo"]
        model.takes_jpegs = True
        model.gate.clear()
        while model.running.acquire(blocking=False):
            pass
        running = asyncio.create_task(client.post("/predict", data=form(CLIP, jpeg)))
        assert await asyncio.to_thread(model.running.acquire, timeout=20)
        waiting = [asyncio.create_task(client.post("/predict", data=form(CLIP, jpeg))) for _ in range(2)]
        await until_waiting(app, 2)
        async with client.post("/predict", data=form(CLIP, jpeg)) as refused:
            assert (refused.status, refused.reason) == (503, "Queue full")
        model.gate.set()
        assert [(await task).status for task in (running, *waiting)] == [200] * 3


def png_as_jpeg() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (64, 48), (200, 30, 40)).save(out, "JPEG")
    return out.getvalue()
