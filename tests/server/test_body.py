"""Bodies through the application: slow ones, trickling ones, room for all of them together, the time limit."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from server.routes import BODIES
from tests.server.fakes import FakeEngines, fake_app, listening, serving
from tests.server.test_access import lines
from tests.server.test_app import CLIP, TEXT, form, png, until_inside
from tests.server.test_connections import Caller, calling, calling_all

HEAD = (
    b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=XX\r\nContent-Length: %d\r\n\r\n"
)


async def until(state: Any) -> None:
    """Let the loop turn until `state()` is true."""
    async with asyncio.timeout(20):
        while not state():  # noqa: ASYNC110 - a state, no event
            await asyncio.sleep(0.001)


async def trickle(caller: Caller) -> None:
    while True:
        caller.send(b"-")
        await asyncio.sleep(0.02)  # what is tried: bytes keep coming


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"body_timeout_s": 0.3, "body_bytes_per_s": 10_000}, "bytes/s"),
        ({"request_timeout_s": 0.5}, "did not come within 0.5 s"),
    ],
    ids=["speed", "whole time"],
)
async def test_a_body_that_trickles_is_given_up_with_408_and_one_line(
    settings: dict[str, float], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with listening(fake_app(FakeEngines(), **settings)) as port, calling(port) as caller:
        caller.send(HEAD % 1_000_000)
        task = asyncio.create_task(trickle(caller))
        status, _, body = await caller.answer()
        task.cancel()
    assert status == 408
    assert says in body.decode()
    assert len(lines(caplog)) == 1


async def test_a_body_that_stops_is_given_up_with_408(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with listening(fake_app(FakeEngines(), body_timeout_s=0.2)) as port, calling(port) as caller:
        caller.send(HEAD % 1000 + b"--XX\r\n")
        status, _, body = await caller.answer()
    assert (status, b"No byte of the body came for 0.2 s" in body) == (408, True)
    assert len(lines(caplog)) == 1


async def test_a_slow_body_that_is_fast_enough_is_read() -> None:
    data = b'entries={"clip":{"textual":{"modelName":"demo"}}}&text=hello'

    async def pieces() -> AsyncIterator[bytes]:
        for byte in data:
            yield bytes([byte])
            await asyncio.sleep(0.01)

    async with serving(fake_app(FakeEngines(), body_timeout_s=0.2, body_bytes_per_s=10)) as client:
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        async with client.post("/predict", data=pieces(), headers=headers) as response:
            assert response.status == 200


async def test_all_bodies_together_have_their_limit_and_who_waits_is_answered_in_the_end() -> None:
    engines = FakeEngines()
    app = fake_app(engines, max_bodies_mb=0.2)
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(listening(app))
        slow = await stack.enter_async_context(calling(port))
        slow.send(HEAD % 150_000 + b"--XX\r\n")
        await until(lambda: app[BODIES].used == 150_000)
        callers = await stack.enter_async_context(calling_all(port, 5))
        for caller in callers:
            caller.send(HEAD % 100_000 + b"--XX\r\n" + b"x" * 99_994)
        await until(lambda: app[BODIES].waiting == 5)
        assert app[BODIES].used == 150_000
        async with calling(port) as small:  # a search does not wait behind photos
            text = b'entries={"clip":{"textual":{"modelName":"demo"}}}&text=hello'
            kind = b"application/x-www-form-urlencoded"
            head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n"
            small.send(head % (kind, len(text)) + text)
            assert (await small.answer())[0] == 200
        slow.writer.close()
        assert [(await caller.answer())[0] for caller in callers] == [413] * 5  # what they send is no form
        assert app[BODIES].used == 0


async def test_a_body_larger_than_the_room_for_all_is_read_alone() -> None:
    picture = png(400, 300) + b"x" * 100_000
    async with serving(fake_app(FakeEngines(), max_bodies_mb=0.07)) as client:
        responses = await asyncio.gather(*(client.post("/predict", data=form(CLIP, picture)) for _ in range(5)))
        assert [response.status for response in responses] == [200] * 5


async def test_the_room_of_a_client_that_hangs_up_is_given_back() -> None:
    app = fake_app(FakeEngines())
    async with listening(app) as port, calling_all(port, 20) as callers:
        for caller in callers:
            caller.send(HEAD % 1_000_000 + b"--XX\r\n")
        await until(lambda: app[BODIES].used == 20_000_000)
        for caller in callers:
            caller.writer.close()
        await until(lambda: app[BODIES].used == 0)
        await until_inside(app, 0)


async def test_what_is_not_computed_in_time_is_503_with_one_line_and_gives_its_place_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engines = FakeEngines()
    app = fake_app(engines, request_timeout_s=0.4)
    async with serving(app) as client:
        assert (await client.post("/predict", data=form(TEXT, text="warm"))).status == 200
        model = engines.models["textual", "demo"]
        model.gate.clear()
        caplog.set_level(logging.INFO)
        caplog.clear()
        async with client.post("/predict", data=form(TEXT, text="slow")) as response:
            assert (response.status, response.reason) == (503, "Not answered in time")
            assert int(response.headers["Retry-After"]) >= 1
            assert "0.4 s" in (await response.json())["detail"]
        assert len(lines(caplog)) == 1
        await until_inside(app, 0)
        model.gate.set()
        assert (await client.post("/predict", data=form(TEXT, text="next"))).status == 200
