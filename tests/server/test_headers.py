"""Headers of every answer, and other web pages: none may read, unless the settings name them."""

from typing import Any

import pytest
from pydantic import ValidationError

from server.headers import HEADERS
from server.settings import Settings
from tests.server.fakes import FakeEngines, fake_app, serving
from tests.server.test_app import CLIP, TEXT, form

PAGE = "https://photos.example.org"
PREFLIGHT = {"Origin": PAGE, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}


async def answers(client: Any) -> list[Any]:
    """Return answers of all kinds."""
    return [
        await client.get("/ping"),
        await client.get("/models"),
        await client.get("/metrics"),
        await client.get("/app"),
        await client.get("/openapi.json"),
        await client.get("/nowhere"),
        await client.get("/predict"),
        await client.post("/predict", data=form(TEXT, text="x")),
        await client.post("/predict", data=form(CLIP, b"no picture")),
        await client.post("/predict", data=b"x", headers={"Expect": "the impossible"}),
    ]


async def test_every_answer_has_them_and_the_pages_have_their_own_policy() -> None:
    async with serving(fake_app(FakeEngines())) as client:
        found = await answers(client)
        assert {response.status for response in found} >= {200, 400, 404, 405, 417}
        for response in found:
            for name, value in HEADERS.items():
                assert response.headers.getall(name) == [response.headers[name]]
                if name != "Content-Security-Policy" or response.url.path not in ("/app", "/openapi.json"):
                    assert response.headers[name] == value
            assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]
            assert "aiohttp" not in str(response.headers)


@pytest.mark.parametrize("settings", [{}, {"cors_origins": "https://another.example.org"}])
async def test_no_other_page_may_read_unless_it_is_named(settings: dict[str, str]) -> None:
    async with serving(fake_app(FakeEngines(), **settings)) as client:
        client.session.headers["Origin"] = PAGE
        for response in [*await answers(client), await client.options("/predict", headers=PREFLIGHT)]:
            assert not [name for name in response.headers if name.lower().startswith("access-control")]
            if response.method == "OPTIONS":
                assert response.status == 405


@pytest.mark.parametrize(("origins", "allowed"), [(f"http://a.example, {PAGE}", PAGE), ("*", "*")])
async def test_a_page_that_is_named_may_read_answers_and_errors(origins: str, allowed: str) -> None:
    settings: dict[str, Any] = {"cors_origins": origins, "api_keys": "key-of-the-test-0123"}
    async with serving(fake_app(FakeEngines(), **settings)) as client:
        async with client.options("/predict", headers=PREFLIGHT) as response:  # comes without a key
            assert response.status == 204
            assert response.headers["Access-Control-Allow-Origin"] == allowed
            assert "POST" in response.headers["Access-Control-Allow-Methods"]
            assert "x-api-key" in response.headers["Access-Control-Allow-Headers"].lower()
            assert "Access-Control-Allow-Credentials" not in response.headers
        async with client.get("/models", headers={"Origin": PAGE}) as response:
            assert (response.status, response.headers["Access-Control-Allow-Origin"]) == (401, allowed)
        sent = {"Origin": PAGE, "x-api-key": "key-of-the-test-0123"}
        async with client.post("/predict", data=form(TEXT, text="x"), headers=sent) as response:
            assert (response.status, response.headers["Access-Control-Allow-Origin"]) == (200, allowed)
            assert "Retry-After" in response.headers["Access-Control-Expose-Headers"]
            assert response.headers["Vary"] == "Origin"


@pytest.mark.parametrize(
    "origins", ["photos.example.org", "https://a.example/path", "https://a.example\r\nX: 1", "null"]
)
def test_what_is_no_origin_is_refused_at_the_start(origins: str) -> None:
    with pytest.raises(ValidationError, match="without a path"):
        Settings(cors_origins=origins)
