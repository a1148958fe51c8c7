"""The documents are true: tables, routes, variables, commands and links are held against the code."""

import importlib.util
import re
from pathlib import Path

import pytest

from scripts.docs import METRICS_PAGE, METRICS_TABLES, README, TABLES, with_tables
from server.settings import REPLACED, Settings, variable
from tests.server.fakes import FakeEngines, fake_app

ROOT = README.parent
TEXT = README.read_text(encoding="utf-8")
DOCUMENTS = [README, *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_tables_of_the_readme_are_those_of_the_code() -> None:
    assert with_tables(TEXT) == TEXT, "run python -m scripts.docs"


def test_the_page_of_metrics_lists_those_of_the_code() -> None:
    text = METRICS_PAGE.read_text(encoding="utf-8")
    assert with_tables(text, METRICS_TABLES) == text, "run python -m scripts.docs"


def test_a_readme_without_a_place_for_a_table_is_refused() -> None:
    with pytest.raises(ValueError, match="<!-- models -->"):
        with_tables(TEXT.replace("<!-- models -->", ""))


def test_what_was_measured_comes_with_its_command() -> None:
    rows = re.search(r"## Measured\n(.*?)\n## ", TEXT, re.DOTALL)
    assert rows is not None
    figures = re.findall(r"^\| [^|]+ \| ([^|]*\d[^|]*) \| ([^|]+) \|$", rows[1], re.MULTILINE)
    assert len(figures) >= 5
    assert all(command == "the same" or command.startswith("`.venv/bin/python -m ") for _, command in figures)


def test_every_table_has_rows() -> None:
    assert all(table().count("\n") > 3 for table in (*TABLES.values(), *METRICS_TABLES.values()))


def test_the_readme_lists_every_route_and_no_other() -> None:
    routes = {
        f"{route.method} {route.resource.canonical}"
        for route in fake_app(FakeEngines()).router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    assert set(re.findall(r"^\| `((?:GET|POST) /\S*)` \|", TEXT, re.MULTILINE)) == routes


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_variable_in_a_document_exists(path: Path) -> None:
    known = {variable(field) for field in Settings.model_fields} | {pattern.rstrip("*") for pattern in REPLACED}
    named = set(re.findall(r"\b(?:MACHINE_LEARNING|IMMICH)_[A-Z_]+", path.read_text(encoding="utf-8")))
    assert named <= known


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_in_a_document_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"`(?:[A-Z_]+=\S+ )*make ([a-z-]+)", text)) <= targets
    assert set(re.findall(r"^(?:[A-Z_]+=\S+ )*make ([a-z-]+)", text, re.MULTILINE)) <= targets
    modules = set(re.findall(r"python -m ((?:server|scripts)[.\w]*)", text))
    assert all(importlib.util.find_spec(module) for module in modules)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_and_heading_that_a_document_points_to_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    headings = {
        re.sub(r"[^a-z0-9 -]", "", line.lower()).strip().replace(" ", "-")
        for line in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in headings
        elif not target.startswith("https://"):
            assert (path.parent / target).exists(), target
    for target in re.findall(r"`((?:server|engines|scripts|tests|docs)/[\w./-]+)`", text):
        assert (ROOT / target).exists(), target
