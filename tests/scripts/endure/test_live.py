"""The client of the trials: what an answer tells, when a request is lost, and which lines of a log are bad."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from scripts.endure import live
from scripts.endure.live import Client, Lost, bad_lines, inherited

ANSWER = b"HTTP/1.1 503 Queue full\r\nServer-Timing: read;dur=1.5, run;dur=20.0\r\nContent-Length: 2\r\n\r\n{}"


@asynccontextmanager
async def answering(answer: bytes, seen: list[str]) -> AsyncIterator[int]:
    """Answer whoever comes with these bytes and close the connection; note who came."""

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        seen.append(writer.get_extra_info("peername")[0])
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(one, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_an_answer_tells_its_status_and_its_phases_and_the_source_is_a_flow() -> None:
    seen: list[str] = []
    async with answering(ANSWER, seen) as port, Client(port, "127.0.0.2") as client:
        reply = await client.get("/ping")
    assert (reply.status, reply.body) == (503, b"{}")
    assert reply.phases == {"read": 0.0015, "run": 0.02}
    assert 0 < reply.seconds < 10
    assert seen == ["127.0.0.2"]


@pytest.mark.parametrize("answer", [b"", ANSWER[:20], ANSWER[:-1]], ids=["nothing", "half a head", "half a body"])
async def test_a_connection_that_ends_without_a_whole_answer_is_a_lost_request(answer: bytes) -> None:
    async with answering(answer, []) as port, Client(port) as client:
        with pytest.raises(Lost, match="POST /predict"):
            await client.post(b"body", "text/plain")


async def test_a_body_comes_whole_with_its_length_and_type_also_a_large_one() -> None:
    async def count(request: web.Request) -> web.Response:
        return web.Response(text=f"{len(await request.read())} {request.content_length} {request.content_type}")

    app = web.Application(client_max_size=1 << 30)
    app.router.add_post("/predict", count)
    async with TestServer(app) as server, Client(server.port or 0) as client:
        for size in (0, 5, 3_000_000):
            reply = await client.post(bytes(size), "text/plain")
            assert reply.body.decode() == f"{size} {size} text/plain"


async def test_a_client_that_was_not_entered_says_so() -> None:
    with pytest.raises(RuntimeError, match="enter the client"):
        await Client(1).get("/ping")


def test_errors_and_tracebacks_in_a_log_are_bad_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "LOG", tmp_path)
    (tmp_path / "soak.log").write_text(
        '{"level":"info","message":"400 after 0.1 s: no error"}\n'
        '{"level":"warning","message":"slow"}\n'
        '{"level":"error","message":"cannot"}\n'
        '{"level":"warning","message":"a batch failed","traceback":"Trace"}\n'
        "Traceback (most recent call last):\n"
    )
    assert [line[:17] for line in bad_lines("soak")] == ['{"level":"error",', '{"level":"warning', "Traceback (most r"]


def test_settings_of_the_person_who_runs_it_stay_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MACHINE_LEARNING_MODEL_TTL", "7")
    monkeypatch.setenv("FACET_TEST_OTHER", "x")
    assert "MACHINE_LEARNING_MODEL_TTL" not in inherited()
    assert inherited()["FACET_TEST_OTHER"] == "x"
