"""What openapi.json says, and whether answers are as it says."""

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

PATH = Path(__file__).parents[2] / "server" / "page" / "openapi.json"
DOCUMENT: dict[str, Any] = json.loads(PATH.read_text(encoding="utf-8"))


def resolved(part: dict[str, Any]) -> dict[str, Any]:
    """Return what a part of the document is, or points to."""
    if "$ref" not in part:
        return part
    target: dict[str, Any] = DOCUMENT
    for name in part["$ref"].removeprefix("#/").split("/"):
        target = target[name]
    return target


def validator(schema: dict[str, Any]) -> Draft202012Validator:
    """Return what validates against a schema of the document."""
    return Draft202012Validator({**schema, "components": DOCUMENT["components"]})


def check_answer(method: str, path: str, status: int, kind: str, answer: Any) -> None:
    """Assert that a route may answer with this status, media type and body."""
    responses = DOCUMENT["paths"][path][method]["responses"]
    assert str(status) in responses, f"{method} {path} answers {status}, which is not described"
    content = resolved(responses[str(status)])["content"]
    assert kind in content, f"{method} {path} answers with {kind}, which is not described"
    validator(content[kind]["schema"]).validate(answer)
