"""Connections over real sockets: slow headers, too many of them, what is no HTTP, and the limit of open files."""

import asyncio
import logging
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from typing import Any

import orjson
import pytest

from server import connections
from server.connections import Limits, affordable
from server.headers import HEADERS
from tests.server.fakes import FakeEngines, fake_app, listening
from tests.server.test_app import until_inside

PING = b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n"
KIND = "Content-Type: application/x-www-form-urlencoded"
TEXT = b'entries={"clip":{"textual":{"modelName":"demo"}}}&text=hello'


class Caller:
    """One connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers with lower-case names, and body of the next answer."""
        async with asyncio.timeout(20):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in head[1:] if line)}
            return int(head[0].split()[1]), headers, await self.reader.readexactly(int(headers["content-length"]))

    async def ended(self) -> bool:
        """Wait for the end of the connection; return whether nothing came before it."""
        async with asyncio.timeout(20):
            try:
                return await self.reader.read() == b""
            except ConnectionError:
                return True


@asynccontextmanager
async def calling(port: int) -> AsyncIterator[Caller]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Caller(reader, writer)
    finally:
        writer.close()


@asynccontextmanager
async def calling_all(port: int, count: int) -> AsyncIterator[list[Caller]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(calling(port)) for _ in range(count)]


async def ping(port: int) -> int:
    async with calling(port) as caller:
        caller.send(PING)
        return (await caller.answer())[0]


def told(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [one for one in caplog.records if one.levelno >= logging.INFO and one.name.startswith(("server", "aiohttp"))]


async def test_headers_that_trickle_are_given_up_with_408_and_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with listening(fake_app(FakeEngines()), Limits(header_s=0.4)) as port, calling(port) as caller:

        async def trickle() -> None:
            for byte in PING[:-1] * 1000:
                caller.send(bytes([byte]))
                await asyncio.sleep(0.05)  # what is tried: bytes keep coming

        task = asyncio.create_task(trickle())
        status, headers, body = await caller.answer()
        task.cancel()
        assert (status, headers["connection"]) == (408, "close")
        assert "0.4 s" in orjson.loads(body)["detail"]
        assert headers.items() >= {name.lower(): value for name, value in HEADERS.items()}.items()
    assert [line.getMessage() for line in told(caplog)] == [
        "408 from 127.0.0.1: the headers of a request did not come within 0.4 s"
    ]


async def test_a_connection_on_which_nothing_comes_ends_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with listening(fake_app(FakeEngines()), Limits(header_s=0.2)) as port, calling(port) as caller:
        assert await caller.ended()
    assert told(caplog) == []


async def test_an_idle_connection_stays_for_the_time_that_is_set_and_its_next_request_has_its_own(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    limits = Limits(header_s=0.3, keepalive_s=30)
    async with listening(fake_app(FakeEngines()), limits) as port, calling(port) as caller:
        caller.send(PING)
        assert (await caller.answer())[0] == 200
        await asyncio.sleep(0.5)  # longer than headers may take
        caller.send(PING + PING)
        assert [(await caller.answer())[0] for _ in range(2)] == [200, 200]
        caller.send(PING[:10])
        assert (await caller.answer())[0] == 408
    async with listening(fake_app(FakeEngines()), Limits(keepalive_s=0.3)) as port, calling(port) as caller:
        caller.send(PING)
        await caller.answer()
        assert await caller.ended()


async def test_the_rest_of_a_body_that_was_refused_is_no_slow_header() -> None:
    app = fake_app(FakeEngines(), max_body_mb=0.001)
    async with listening(app, Limits(header_s=0.3)) as port, calling(port) as caller:
        caller.send(f"POST /predict HTTP/1.1\r\nHost: x\r\n{KIND}\r\nContent-Length: 5000\r\n\r\n".encode())
        assert (await caller.answer())[0] == 413
        for _ in range(10):
            caller.send(b"x" * 500)
            await asyncio.sleep(0.05)  # longer than headers may take
        caller.send(PING)
        assert (await caller.answer())[0] == 200


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let new connections count as idle at once."""
    monkeypatch.setattr(connections, "FRESH_S", 0)


@pytest.mark.usefixtures("at_once")
async def test_beyond_the_limit_the_connection_that_is_idle_for_longest_goes(caplog: pytest.LogCaptureFixture) -> None:
    async with listening(fake_app(FakeEngines()), Limits(count=3)) as port, calling_all(port, 3) as idle:
        assert await ping(port) == 200
        assert await idle[0].ended()
        for caller in idle[1:]:
            caller.send(PING)
            assert (await caller.answer())[0] == 200
    assert sum("more connections than the 3" in line.getMessage() for line in told(caplog)) == 1


@pytest.mark.usefixtures("at_once")
async def test_thousands_of_idle_connections_keep_nobody_out() -> None:
    async with listening(fake_app(FakeEngines()), Limits(count=50)) as port, calling_all(port, 500) as idle:
        assert [await ping(port) for _ in range(20)] == [200] * 20
        assert await idle[0].ended()


@pytest.mark.usefixtures("at_once")
async def test_where_none_is_idle_the_answer_is_503_and_the_server_still_says_that_it_lives(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engines = FakeEngines()
    engines.gate.clear()
    app = fake_app(engines)
    request = f"POST /predict HTTP/1.1\r\nHost: x\r\n{KIND}\r\nContent-Length: {len(TEXT)}\r\n\r\n".encode() + TEXT
    async with listening(app, Limits(count=3)) as port, calling_all(port, 3) as busy:
        for caller in busy:
            caller.send(request)
        await until_inside(app, 3)
        caplog.set_level(logging.INFO)
        caplog.clear()
        async with calling(port) as one_too_many:
            one_too_many.send(request)
            status, headers, body = await one_too_many.answer()
            assert (status, headers["connection"]) == (503, "close")
            assert int(headers["retry-after"]) >= 1
            assert "connections" in orjson.loads(body)["detail"]
        assert len([line for line in told(caplog) if line.name == "server.access"]) == 1
        assert await ping(port) == 200
        async with calling_all(port, 20) as flood:  # and say nothing: each makes room for the next
            assert all([await caller.ended() for caller in flood[:-1]])
        engines.gate.set()
        assert [(await caller.answer())[0] for caller in busy] == [200] * 3


async def test_a_request_that_just_came_is_not_closed_to_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """All bytes are there before the loop turns: more connections than there may be are accepted before one is read."""
    monkeypatch.setattr(connections, "FRESH_S", 10)
    async with listening(fake_app(FakeEngines()), Limits(count=20)) as port:
        with ExitStack() as stack:
            socks = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(20)]
            for sock in socks:
                sock.sendall(PING)
            late = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(15)]
            answers = [await asyncio.to_thread(sock.recv, 1000) for sock in socks]
            assert len(late) == 15
    assert sum(answer.startswith(b"HTTP/1.1 200") for answer in answers) == 20


async def test_beyond_twice_the_limit_nobody_gets_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "REST_S", 100)  # the answers stay on their way
    engines = FakeEngines()
    engines.gate.clear()
    app = fake_app(engines)
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\n{KIND}\r\nContent-Length: %d\r\n\r\n"
    async with listening(app, Limits(count=2)) as port, calling_all(port, 2) as busy:
        for caller in busy:
            caller.send((head % len(TEXT)).encode() + TEXT)
        await until_inside(app, 2)
        async with AsyncExitStack() as refused:
            for _ in range(2):
                caller = await refused.enter_async_context(calling(port))
                caller.send((head % 100_000).encode())  # the rest of such a body is waited for
                assert (await caller.answer())[0] == 503
            async with calling(port) as dropped:
                assert await dropped.ended()
        engines.gate.set()
        assert [(await caller.answer())[0] for caller in busy] == [200] * 2


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"".join(b"h%d: x\r\n" % i for i in range(500)) + b"\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: \x1b[31mred\r\nevil line\r\n\r\n",
        b"secret words\r\n\r\n",
    ],
    ids=["tls", "long line", "many headers", "length", "escape codes", "words"],
)
async def test_what_is_no_http_is_told_in_json_with_one_line_without_its_content(
    sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    app = fake_app(FakeEngines())
    async with listening(app) as port:
        async with calling(port) as caller:
            caller.send(sent)
            status, headers, body = await caller.answer()
        assert (status, headers["content-type"]) == (400, "application/json")
        assert set(orjson.loads(body)) == {"detail"}
        assert headers["server"] == "Facet"
        async with calling(port) as caller:
            caller.send(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b'facet_requests_total{route="other",status="400"} 1.0' in (await caller.answer())[2]
    (line,) = told(caplog)
    assert (line.levelno, line.exc_info) == (logging.INFO, None)
    assert "secret" not in caplog.text
    assert "evil" not in caplog.text


async def test_what_fails_beyond_all_handlers_is_told_in_json_and_the_log_has_the_reason(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = fake_app(FakeEngines())

    async def fail(request: Any, response: Any) -> None:
        if request.path == "/ping":
            raise RuntimeError("a signal failed")

    app.on_response_prepare.append(fail)
    async with listening(app) as port, calling(port) as caller:
        caller.send(PING)
        assert await caller.ended()
    assert "a signal failed" in caplog.text


async def test_answers_that_nobody_takes_are_given_up_with_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        async with listening(fake_app(FakeEngines()), Limits(write_s=0.3)) as port:
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, ("127.0.0.1", port))
            await loop.sock_sendall(sock, b"GET /app/drawings.js HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)
            async with asyncio.timeout(20):
                while not told(caplog):  # noqa: ASYNC110 - a state, no event
                    await asyncio.sleep(0.01)
            assert await ping(port) == 200
    assert [line.getMessage() for line in told(caplog)] == [
        "an answer was not taken for 0.3 s: its connection is closed"
    ]


async def test_an_answer_that_is_taken_slowly_comes_as_a_whole() -> None:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        async with listening(fake_app(FakeEngines()), Limits(write_s=0.2)) as port:
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, ("127.0.0.1", port))
            request = b"GET /app/drawings.js HTTP/1.1\r\nHost: x\r\n\r\n"
            await loop.sock_sendall(sock, request * 300 + request.replace(b"Host", b"Connection: close\r\nHost"))
            came = 0
            async with asyncio.timeout(30):
                while piece := await loop.sock_recv(sock, 200_000):
                    came += piece.count(b"HTTP/1.1 200")
                    await asyncio.sleep(0.001)  # slower than it could be
    assert came == 301


@pytest.fixture
def own_file_limit() -> Any:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_limit_of_open_files_is_raised_as_far_as_it_goes(
    own_file_limit: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    _, hard = own_file_limit
    resource.setrlimit(resource.RLIMIT_NOFILE, (1000, hard))
    assert affordable(700) == 700
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 1000
    assert affordable(1500) == 1500
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 1700
    assert caplog.records == []
    assert affordable(hard) == hard - 200
    assert "raise it with `ulimit -n`" in caplog.text
