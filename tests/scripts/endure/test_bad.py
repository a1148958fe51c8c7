"""Bad input and hang-ups: what they are made of. That they are answered as they must be is the soak's to see."""

import asyncio
import io

import numpy as np
import pytest
from PIL import Image

from scripts.endure.bad import BOUNDARY, STAGES, bad_requests, hang_up, png
from scripts.load import inputs


def test_there_are_many_kinds_and_no_two_are_alike() -> None:
    found = bad_requests(next(inputs.photos(1, 320)))
    assert len({one.name for one in found}) == len(found) > 30
    assert len({(one.method, one.path, one.content_type, one.body) for one in found}) == len(found)
    assert {one.status for one in found} == {400, 404, 405, 413, 422}


def test_a_bomb_names_its_size_and_is_small() -> None:
    bomb = png(3000, 2000)
    assert len(bomb) < 200
    with Image.open(io.BytesIO(bomb)) as image:
        assert image.size == (3000, 2000)


@pytest.mark.parametrize("stage", STAGES)
async def test_a_client_hangs_up_at_its_stage(stage: str) -> None:
    came: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received = b""
        while piece := await reader.read(65536):
            received += piece
            if stage == "at the answer" and received.endswith(b"end"):
                writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        came.set_result(received)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server, asyncio.timeout(10):
        port = server.sockets[0].getsockname()[1]
        await hang_up(port, stage, b"begin, middle, end", "text/plain", np.random.default_rng(1), rude=False)
        received = await came
    head, _, body = received.partition(b"\r\n\r\n")
    match stage:
        case "before a byte":
            assert received == b""
        case "in the head":
            assert head.startswith(b"POST /predict")
            assert b"\r\n\r\n" not in received
        case "after the head":
            assert head.endswith(b"Content-Length: 18")
            assert body == b""
        case "in the body":
            assert b"begin, middle, end".startswith(body)
            assert body != b"begin, middle, end"
        case _:
            assert body == b"begin, middle, end"
    assert BOUNDARY.encode() not in received
