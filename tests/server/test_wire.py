"""Forms in and JSON out, without models: shapes, encodings, limits, the three generations."""

import asyncio
import zlib
from typing import Any

import aiohttp
import numpy as np
import orjson
import pytest
from aiohttp import web

from server import wire
from server.body import Limits
from server.errors import BadForm, BadInput, RequestError, errors_to_answers
from server.wire import Answer, Ask, Face, parse, render
from tests.server.fakes import serving


async def echo(request: web.Request) -> web.Response:
    """Answer what the form was read as, for the tests of reading."""
    form = await wire.read_form(request, Limits(body=10_000, part=10_000, idle_s=0.3))
    return web.json_response({name: value.decode("latin-1") for name, value in form.items()})


@pytest.fixture
async def client() -> Any:
    app = web.Application(middlewares=[errors_to_answers], client_max_size=1)  # the limit is read_form's alone
    app.router.add_post("/", echo)
    async with serving(app) as client:
        yield client


def part(name: str, value: bytes, *headers: bytes) -> bytes:
    lines = [b'Content-Disposition: form-data; name="' + name.encode() + b'"; filename="blob"', *headers]
    return b"--XX\r\n" + b"\r\n".join(lines) + b"\r\n\r\n" + value + b"\r\n"


END = b"--XX--\r\n"
MULTIPART = {"Content-Type": "multipart/form-data; boundary=XX"}


async def test_multipart_by_an_ordinary_client(client: Any) -> None:
    form = aiohttp.FormData()
    form.add_field("image", b"\x00\xff\r\n--", filename="blob", content_type="application/octet-stream")
    form.add_field("entries", "{}")
    form.add_field("other", "ignored")
    async with client.post("/", data=form) as response:
        assert await response.json() == {"image": "\x00\xff\r\n--", "entries": "{}"}


async def test_a_body_in_single_bytes_of_every_chunking(client: Any) -> None:
    body = part("image", b"\r\n--X\r\n-\r\n") + part("text", "grün".encode()) + END

    async def pieces() -> Any:
        for byte in body:
            yield bytes([byte])
            await asyncio.sleep(0)

    async with client.post("/", data=pieces(), headers=MULTIPART) as response:
        assert await response.json() == {"image": "\r\n--X\r\n-\r\n", "text": "grün".encode().decode("latin-1")}


async def test_urlencoded_with_utf8_and_plus_signs(client: Any) -> None:
    async with client.post("/", data={"text": "grün und + & = 日本", "unknown": "1"}) as response:
        assert (await response.json())["text"].encode("latin-1").decode() == "grün und + & = 日本"


async def test_urlencoded_as_plain_utf8(client: Any) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    async with client.post("/", data="text=grün&".encode(), headers=headers) as response:
        assert (await response.json())["text"].encode("latin-1").decode() == "grün"


async def test_the_last_field_of_a_name_counts(client: Any) -> None:
    async with client.post("/", data=part("text", b"one") + part("text", b"two") + END, headers=MULTIPART) as response:
        assert await response.json() == {"text": "two"}


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"Content-Type": "application/json"}, b"{}", 422),
        ({"Content-Type": "multipart/form-data"}, b"--XX--", 422),
        (MULTIPART, b"", 422),
        (MULTIPART, b"no boundary at all", 422),
        (MULTIPART, part("text", b"x"), 422),
        (MULTIPART, part("text", b"x", b"Content-Encoding: gzip") + END, 422),
        (MULTIPART, part("text", b"x", b"Content-Transfer-Encoding: BASE64") + END, 422),
        (MULTIPART, part("text", b"x", b"Content-Transfer-Encoding: quoted-printable") + END, 422),
        (MULTIPART, part("text", b"x", b"Content-Type: multipart/mixed; boundary=YY") + END, 422),
        (MULTIPART, b"--XX\r\n\r\nno headers\r\n" + END, 422),
        (MULTIPART, part("x", b"") * 65 + END, 413),
        (MULTIPART, part("x", b"", *[b"X-%d: 1" % i for i in range(30)]) + END, 413),
        (MULTIPART, part("image", b"x" * 10_000) + END, 413),
        ({"Content-Type": "application/x-www-form-urlencoded"}, b"text=" + b"x" * 10_000, 413),
        ({"Content-Type": "application/x-www-form-urlencoded"}, b"\xff\xfe", 422),
        ({"Content-Type": "application/x-www-form-urlencoded"}, b"x=1&" * 64, 413),
        ({"Content-Type": "application/x-www-form-urlencoded"}, b"no-pairs", 200),
        ({"Content-Type": "application/x-www-form-urlencoded"}, b"text=x&", 200),
        ({"Content-Type": "application/x-www-form-urlencoded"}, b"", 200),
    ],
    ids=lambda value: None if isinstance(value, dict) else str(value)[:40],
)
async def test_what_is_no_form_is_refused_with_a_sentence(
    client: Any, headers: dict[str, str], body: bytes, status: int
) -> None:
    async with client.post("/", data=body, headers=headers) as response:
        assert response.status == status
        if status != 200:
            assert (await response.json())["detail"].endswith(".")


async def test_a_body_without_length_is_counted_while_it_is_read(client: Any) -> None:
    sent = 0

    async def endless() -> Any:
        nonlocal sent
        yield part("image", b"")[:-2]
        while sent < 100_000_000:
            sent += 5000
            yield b"x" * 5000
            await asyncio.sleep(0)

    try:
        async with client.post("/", data=endless(), headers=MULTIPART) as response:
            assert response.status == 413
    except aiohttp.ClientOSError:
        pass  # the answer came while the client was still sending, and it saw the reset first
    assert sent < 100_000_000


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br"])
async def test_an_encoded_body_is_refused_whole_or_broken(client: Any, encoding: str) -> None:
    for body in (zlib.compress(part("image", b"\x00" * 5_000_000) + END), b"garbage"):
        async with client.post("/", data=body, headers={**MULTIPART, "Content-Encoding": encoding}) as response:
            assert response.status == 422
            assert "Content-Encoding" in (await response.json())["detail"]


async def test_a_body_that_stops_coming_is_given_up(client: Any) -> None:
    reader, writer = await asyncio.open_connection(client.host, client.port)
    head = (
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\nContent-Type: multipart/form-data; boundary=XX\r\n\r\n"
    )
    writer.write(head.encode() + b"--XX\r\n")
    async with asyncio.timeout(20):
        assert (await reader.readline()).startswith(b"HTTP/1.1 408 Request body too slow")
    writer.close()
    await writer.wait_closed()


async def test_a_header_that_is_no_utf8_is_not_echoed(client: Any) -> None:
    body = b'--XX\r\nContent-Disposition: form-data; name="\xff"\r\n\r\nx\r\n' + END
    async with client.post("/", data=body, headers=MULTIPART) as response:
        assert response.status == 422
        assert "UnicodeDecodeError" not in (await response.json())["detail"]


def entries(value: Any, **fields: bytes) -> dict[str, bytes]:
    return {"entries": orjson.dumps(value), **fields}


def test_all_tasks_of_one_request() -> None:
    ask = parse(
        entries(
            {
                "facial-recognition": {
                    "recognition": {"modelName": "r"},
                    "detection": {"modelName": "d", "options": {"minScore": 0.25, "more": [1]}},
                },
                "clip": {"visual": {"modelName": "v"}},
                "ocr": {"detection": {"modelName": "o", "options": {"maxResolution": 736}}},
            },
            image=b"...",
        )
    )
    assert ask == Ask(visual="v", detection="d", recognition="r", ocr=True, min_score=0.25, image=b"...")


def test_a_text_with_its_language() -> None:
    ask = parse(entries({"clip": {"textual": {"modelName": "t", "options": {"language": "pt-BR"}}}}, text=b" "))
    assert ask == Ask(textual="t", language="pt-BR", text=" ")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (None, Ask(visual="m", textual="m", either=True, bare=True, text="x")),
        (b"{}", Ask(visual="m", textual="m", either=True, bare=True, text="x")),
        (b'{"mode":"vision"}', Ask(visual="m", bare=True, text="x")),
        (b'{"mode":"text"}', Ask(textual="m", bare=True, text="x")),
    ],
)
def test_the_oldest_form(options: bytes | None, expected: Ask) -> None:
    form = {"modelName": b"m", "modelType": b"clip", "text": b"x"}
    assert parse(form if options is None else {**form, "options": options}) == expected


def test_the_oldest_form_of_faces_reads_its_threshold() -> None:
    form = {"modelName": b"m", "modelType": b"facial-recognition", "options": b'{"minScore":1,"minFaces":3}'}
    assert parse(form) == Ask(detection="m", recognition="m", min_score=1, bare=True)


@pytest.mark.parametrize(
    ("form", "error"),
    [
        (entries({"clip": {}}), BadForm),
        (entries({"clip": {"textual": {"modelName": "t", "options": {"language": 5}}}}), BadForm),
        (entries({"facial-recognition": {"detection": {"modelName": "t", "options": {"minScore": True}}}}), BadForm),
        (entries({"ocr": {"recognition": {"modelName": "t", "options": {"minScore": "x"}}}}), BadForm),
        ({"entries": b"\xff"}, BadForm),
        ({"entries": b'{"clip":{"visual":{"modelName":"a"}}}', "text": b"\xff"}, BadForm),
        ({"modelType": b"clip"}, BadForm),
        ({"modelType": b"clip", "modelName": b"m", "options": b'{"mode":"smell"}'}, BadForm),
        ({"modelType": b"clip", "modelName": b"m", "options": b"nonsense"}, BadInput),
        ({}, BadForm),
    ],
)
def test_wrong_shapes(form: dict[str, bytes], error: type[RequestError]) -> None:
    with pytest.raises(error):
        parse(form)


VECTOR = np.array([0.1, -0.25, 1 / 3], np.float32)
FACE = Face(np.array([-1.5, 2.5, 10.49, 20.51], np.float32), 0.75, VECTOR)


def test_entries_are_answered_with_strings_of_shortest_float32_decimals() -> None:
    body = orjson.loads(render(Ask(visual="v"), Answer((640, 480), VECTOR, [FACE]), "string"))
    assert body == {
        "clip": "[0.1,-0.25,0.33333334]",
        "facial-recognition": [
            {
                "boundingBox": {"x1": -2, "y1": 2, "x2": 10, "y2": 21},
                "score": 0.75,
                "embedding": "[0.1,-0.25,0.33333334]",
            }
        ],
        "imageWidth": 640,
        "imageHeight": 480,
    }
    assert np.array_equal(np.array(orjson.loads(body["clip"]), np.float32), VECTOR)


def test_middle_clients_get_arrays() -> None:
    body = orjson.loads(render(Ask(textual="t"), Answer(embedding=VECTOR), "list"))
    assert list(body) == ["clip"]
    assert np.array_equal(np.array(body["clip"], np.float32), VECTOR)


def test_detection_alone_has_no_embedding_and_no_faces_is_an_empty_list() -> None:
    boxes = orjson.loads(render(Ask(), Answer((1, 1), None, [Face(FACE.box, 0.5, None)]), "string"))
    assert set(boxes["facial-recognition"][0]) == {"boundingBox", "score"}
    assert orjson.loads(render(Ask(), Answer((1, 1), None, []), "string"))["facial-recognition"] == []


def test_the_oldest_clients_get_the_bare_value() -> None:
    assert orjson.loads(render(Ask(bare=True), Answer((6, 4), VECTOR), "string")) == pytest.approx(VECTOR.tolist())
    (face,) = orjson.loads(render(Ask(bare=True), Answer((6, 4), None, [FACE]), "string"))
    assert (face["imageWidth"], face["imageHeight"], face["embedding"]) == (6, 4, pytest.approx(VECTOR.tolist()))
    assert orjson.loads(render(Ask(bare=True), Answer((6, 4), None, []), "string")) == []


def test_a_row_of_a_batch_that_is_not_contiguous_is_rendered_as_it_reads() -> None:
    rows = np.arange(8, dtype=np.float32).reshape(4, 2)
    assert orjson.loads(render(Ask(), Answer(embedding=rows[:, 1]), "string"))["clip"] == "[1.0,3.0,5.0,7.0]"
    assert orjson.loads(render(Ask(bare=True), Answer(embedding=rows[:, 1]), "string")) == [1, 3, 5, 7]


def test_an_empty_ocr_answer() -> None:
    body = orjson.loads(render(Ask(ocr=True), Answer((6, 4)), "string"))
    assert body["ocr"] == {"text": [], "box": [], "boxScore": [], "textScore": []}
