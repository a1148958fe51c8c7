"""API keys: where they are asked for, how they may be sent, files of them that change, comparing without telling."""

import base64
import hmac
import logging
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from server.app import create_app
from server.keys import KeyFileError, Keys
from server.routes import PREDICTOR
from server.settings import Settings, problems
from tests.server.fakes import FakeEngines, fake_app, serving
from tests.server.test_access import lines
from tests.server.test_app import TEXT, form

FIRST, SECOND = "first-key-0123456789", "zweiter-schlüssel-012"
BOTH = f"{FIRST},{SECOND}"


def password(key: str) -> str:
    return "Basic " + base64.b64encode(f"anyone:{key}".encode()).decode()


async def test_without_keys_everybody_is_let_in() -> None:
    async with serving(fake_app(FakeEngines())) as client:
        assert (await client.post("/predict", data=form(TEXT, text="x"))).status == 200
        assert (await client.get("/metrics")).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"x-api-key": FIRST},
        {"X-API-Key": SECOND},
        {"Authorization": f"Bearer {FIRST}"},
        {"Authorization": f"bearer  {SECOND}"},
        {"Authorization": password(SECOND)},
    ],
)
async def test_each_key_opens_in_each_way(headers: dict[str, str]) -> None:
    async with serving(fake_app(FakeEngines(), api_keys=BOTH)) as client:
        assert (await client.post("/predict", data=form(TEXT, text="x"), headers=headers)).status == 200
        assert (await client.get("/models", headers=headers)).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-api-key": ""},
        {"x-api-key": FIRST[:-1]},
        {"x-api-key": FIRST + "x"},
        {"x-api-key": BOTH},
        {"x-api-key": "ä" * 1000},
        {"Authorization": FIRST},
        {"Authorization": f"Digest {FIRST}"},
        {"Authorization": "Basic not base64"},
        {"Authorization": "Basic ÄÖ"},
        {"Authorization": "Basic " + base64.b64encode(FIRST.encode()).decode()},  # no password in it
        {"x-api-key": "wrong", "Authorization": f"Bearer {FIRST}"},
    ],
)
async def test_anything_else_is_401_with_one_line_that_has_no_key(
    headers: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    engines = FakeEngines()
    async with serving(fake_app(engines, api_keys=BOTH)) as client:
        response = await client.post("/predict", data=form(TEXT, text="x"), headers=headers)
        assert (response.status, response.reason) == (401, "API key required")
        assert response.headers["WWW-Authenticate"] == 'Bearer realm="Facet"'
        assert "x-api-key" in (await response.json())["detail"]
    assert len(lines(caplog)) == 1
    assert not any(part in caplog.text for part in (FIRST[:-1], SECOND[:-1]))
    assert engines.loads == []


async def statuses(client: Any, *paths: str) -> dict[str, int]:
    return {path: (await client.get(path)).status for path in paths}


async def test_what_is_free_by_default() -> None:
    async with serving(fake_app(FakeEngines(), api_keys=FIRST)) as client:
        free = (
            "/ping",
            "/health/live",
            "/health/ready",
            "/app",
            "/app/main.js",
            "/docs",
            "/docs/docs.js",
            "/openapi.json",
        )
        assert set((await statuses(client, *free)).values()) == {200}
        asked = ("/", "/models", "/metrics", "/nowhere", "/app/../models", "/ping/", "/PING", "/predict")
        assert set((await statuses(client, *asked)).values()) == {401}


async def test_what_is_free_can_be_chosen() -> None:
    async with serving(fake_app(FakeEngines(), api_keys=FIRST, api_key_free="metrics")) as client:
        found = await statuses(client, "/metrics", "/app", "/app/main.js", "/docs", "/openapi.json", "/ping")
        assert found == {
            "/metrics": 200,
            "/app": 401,
            "/app/main.js": 401,
            "/docs": 401,
            "/openapi.json": 401,
            "/ping": 200,
        }
        async with client.get("/app") as response:  # a browser then asks for it, and sends it with all that follows
            assert response.headers["WWW-Authenticate"].startswith("Basic ")
        assert (await client.get("/app", headers={"Authorization": password(FIRST)})).status == 200
    async with serving(fake_app(FakeEngines(), api_keys=FIRST, api_key_free="")) as client:
        assert set((await statuses(client, "/metrics", "/app", "/docs")).values()) == {401}


async def test_a_change_of_the_file_counts_from_the_next_request_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# of the photo app\n{FIRST}\n\n  {SECOND}  \n", encoding="utf-8")
    own = "the-key-of-the-settings"
    async with serving(fake_app(FakeEngines(), api_keys=own, api_key_file=file)) as client:

        async def opens(key: str) -> bool:
            return (await client.get("/models", headers={"x-api-key": key})).status == 200

        assert [await opens(key) for key in (FIRST, SECOND, own, "# of the photo app")] == [True, True, True, False]
        file.write_text(f"{SECOND}\nanother-key-0123456789\n", encoding="utf-8")
        assert [await opens(key) for key in (FIRST, SECOND, "another-key-0123456789", own)] == [False, True, True, True]
        file.unlink()
        assert [await opens(SECOND) for _ in range(3)] == [True] * 3
        assert [
            line.message for line in caplog.records if "stay good" in line.message and str(file) in line.message
        ] != []
        assert sum("stay good" in line.message for line in caplog.records) == 1
        file.write_text("short\n", encoding="utf-8")
        assert await opens(SECOND)
        file.write_text("# nobody\n", encoding="utf-8")
        assert [await opens(key) for key in (SECOND, own, "")] == [False, True, False]


@pytest.mark.parametrize("content", [None, "short\n"])
def test_a_file_that_will_not_do_at_the_start_ends_it(content: str | None, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(KeyFileError, match=r"cannot be read|under 16 letters"):
        create_app(Settings(api_key_file=file), lambda part: (), lambda: None)


def test_an_empty_file_lets_nobody_in(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.touch()
    empty = Keys(file=file)
    assert empty.wanted
    assert empty.known(b"") is None


def test_every_key_is_compared_each_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[int, int]] = []
    constant_time = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return constant_time(one, other)

    held = Keys([SecretStr(FIRST), SecretStr(SECOND), SecretStr("third-key-0123456789")])
    monkeypatch.setattr(hmac, "compare_digest", compare)
    assert held.known(FIRST.encode()) is not None
    assert held.known(b"x" * 100_000) is None
    assert compared == [(32, 32)] * 6  # the first one matched, and the others were compared all the same


def test_keys_are_not_shown_by_the_settings_nor_by_what_is_wrong_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    read = Settings(api_keys=BOTH)
    assert FIRST not in f"{read!r}{read.api_keys}{read.model_dump()}"
    monkeypatch.setenv("MACHINE_LEARNING_API_KEYS", f"{FIRST},hunter2")
    with pytest.raises(ValidationError) as caught:
        Settings()
    (sentence,) = problems(caught.value)
    assert "16 letters" in sentence
    assert "hunter2" not in sentence


async def test_the_owner_of_a_key_has_a_turn_of_its_own_in_the_queues(monkeypatch: pytest.MonkeyPatch) -> None:
    app = fake_app(FakeEngines(), api_keys=BOTH)
    flows = []
    answer = app[PREDICTOR].answer

    async def noted(ask: Any, flow: Any, watch: Any) -> Any:
        flows.append(flow)
        return await answer(ask, flow, watch)

    monkeypatch.setattr(app[PREDICTOR], "answer", noted)
    async with serving(app) as client:
        for key in (FIRST, SECOND, FIRST):
            response = await client.post("/predict", data=form(TEXT, text="x"), headers={"x-api-key": key})
            assert response.status == 200
    assert flows[0] == flows[2] != flows[1]
    assert FIRST not in str(flows)
