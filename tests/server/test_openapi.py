"""openapi.json: a valid document, of the routes that there are, of requests as they come and answers as they are."""

import configparser
from typing import Any

import orjson
import pytest
from jsonschema import ValidationError
from openapi_spec_validator import validate

from server.routes import BUILDS
from tests.server.contract import CASES
from tests.server.described import DOCUMENT, PATH, check_answer, resolved, validator
from tests.server.fakes import FakeEngines, fake_app, serving
from tests.server.test_app import CLIP, FACES, TEXT, form, png

# 422 for what is asked for, not for how: no schema tells that.
OF_THE_CATALOGUE = {"unknown model", "model name is a path", "face model for clip"}
FORM = DOCUMENT["paths"]["/predict"]["post"]["requestBody"]["content"]
KINDS = {"multipart": "multipart/form-data", "urlencoded": "application/x-www-form-urlencoded"}


def test_the_document_is_valid_openapi() -> None:
    validate(DOCUMENT)
    assert DOCUMENT["openapi"].startswith("3.1.")


def test_it_describes_every_route_and_no_other() -> None:
    routes = {
        (route.resource.canonical, route.method.lower())
        for route in fake_app(FakeEngines()).router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    assert {(path, method) for path, item in DOCUMENT["paths"].items() for method in item} == routes


def test_its_version_is_that_of_the_package() -> None:
    config = configparser.ConfigParser()
    config.read(PATH.parents[2] / "setup.cfg", encoding="utf-8")
    assert DOCUMENT["info"]["version"] == config["metadata"]["version"]


def test_every_example_is_what_its_schema_says() -> None:
    media = list(FORM.values())
    for item in DOCUMENT["paths"].values():
        for operation in item.values():
            media += [
                one for part in operation["responses"].values() for one in resolved(part).get("content", {}).values()
            ]
    examples = [(one["schema"], example["value"]) for one in media for example in one.get("examples", {}).values()]
    assert len(examples) >= 7
    for schema, value in examples:
        validator(schema).validate(value)


def sent(case: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a case as the document sees them: JSON read, files as strings."""
    return {name: _field(name, value) for name, value in case["form"].items()}


def _field(name: str, value: Any) -> Any:
    text = value if isinstance(value, str) else value.get("@repeat", "bytes") * value.get("times", 1)
    if name not in ("entries", "options"):
        return text
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_a_form_of_the_contract_is_described_as_the_server_takes_it(case: dict[str, Any]) -> None:
    takes = validator(FORM[KINDS[case["encoding"]]]["schema"]).is_valid(sent(case))
    if case["status"] == 200:
        assert takes
    elif case["status"] == 422 and case["name"] not in OF_THE_CATALOGUE:
        assert not takes


async def test_answers_of_our_own_routes_are_as_described() -> None:
    engines = FakeEngines()
    async with serving(fake_app(engines, ocr="empty")) as client:
        for entries, image, text in ((CLIP, png(), None), (TEXT, None, "x"), (FACES, png(), None)):
            async with client.post("/predict", data=form(entries, image, text)) as response:
                check_answer("post", "/predict", response.status, response.content_type, await response.json())
                assert response.status == 200
        for path, item in DOCUMENT["paths"].items():
            if "get" in item and "{" not in path:
                async with client.get(path) as response:
                    kind = response.content_type
                    body = orjson.loads(await response.read()) if kind.endswith("json") else await response.text()
                check_answer("get", path, response.status, kind, body)


async def test_a_build_that_is_under_way_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    app = fake_app(FakeEngines())
    monkeypatch.setattr(app[BUILDS], "state", lambda part: "running")
    async with serving(app) as client:
        async with client.post("/predict", data=form(TEXT, text="x")) as response:
            assert response.status == 200
        async with client.get("/models") as response:
            answer = await response.json()
    assert answer["loaded"][0]["build"] == "running"
    check_answer("get", "/models", 200, "application/json", answer)


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (200, {"clip": [1, 0], "faces": []}),
        (200, {"clip": "1, 0"}),
        (200, {"facial-recognition": []}),
        (400, {"detail": "x", "more": 1}),
        (418, {"detail": "x"}),
    ],
)
def test_an_answer_that_is_not_as_described_is_seen(status: int, answer: Any) -> None:
    with pytest.raises((ValidationError, AssertionError)):
        check_answer("post", "/predict", status, "application/json", answer)
