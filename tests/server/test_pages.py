"""The pages as they are served: whole, typed, kept to this server by their headers, and gone when turned off."""

import configparser
import re
from pathlib import Path

import pytest

from server import pages
from server.pages import FOLDER, TYPES, files
from tests.server.described import DOCUMENT
from tests.server.fakes import FakeEngines, fake_app, serving

PARTS = sorted(path for path in FOLDER.rglob("*") if path.is_file())
SVG = "http://www.w3.org/2000/svg"  # the name of a language, not an address that anything is fetched from


@pytest.mark.parametrize("name", ["app", "docs"])
async def test_a_page_and_all_that_it_is_made_of_is_served_with_its_headers(name: str) -> None:
    async with serving(fake_app(FakeEngines())) as client:
        for path in [f"/{name}", *(f"/{name}/{file}" for file in files(name))]:
            async with client.get(path) as response:
                assert response.status == 200
                assert response.headers["Content-Security-Policy"] == pages.POLICY
                assert response.headers["X-Content-Type-Options"] == "nosniff"
                assert response.headers["Content-Type"] in TYPES.values()
                assert len(await response.read()) > 100


def test_the_policy_allows_nothing_but_files_of_this_server() -> None:
    rules = dict(rule.split(" ", 1) for rule in pages.POLICY.split("; "))
    assert rules["default-src"] == "'none'"
    sources = {source for name, value in rules.items() if name.endswith("-src") for source in value.split()}
    assert sources == {"'none'", "'self'", "blob:"}


@pytest.mark.parametrize("path", PARTS, ids=lambda path: path.name)
def test_no_part_names_another_server(path: Path) -> None:
    assert not re.findall(r"(?:https?:)?//[a-z]\S*\.[a-z]", path.read_text(encoding="utf-8").replace(SVG, ""))


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.html")), ids=lambda path: path.parent.name)
def test_what_a_page_refers_to_is_there_and_nothing_runs_outside_of_files(path: Path) -> None:
    html = path.read_text(encoding="utf-8")
    name = path.parent.name
    referred = re.findall(rf'(?:src|href)="{name}/([^"]+)"', html)
    assert len(referred) >= 4
    assert set(referred) <= set(files(name))
    assert not re.findall(r"<script(?![^>]* src=)|<style|\sstyle=|\son[a-z]+=", html)


def test_every_module_that_a_module_imports_is_served() -> None:
    for name in ("app", "docs"):
        there = files(name)
        assert any(file.endswith(".js") for file in there)
        for file in there.values():
            assert set(re.findall(r'from "\./([^"]+)"', file.body.decode())) <= set(there)


def test_elements_are_built_in_one_module() -> None:
    builders = [path.name for path in PARTS if "document.createElement" in path.read_text(encoding="utf-8")]
    assert builders == ["dom.js"]


@pytest.mark.parametrize("name", ["app", "docs"])
async def test_a_slash_behind_a_page_leads_to_it_also_within_a_folder_of_a_proxy(name: str) -> None:
    async with serving(fake_app(FakeEngines())) as client:
        async with client.get(f"/{name}/", allow_redirects=False) as response:
            assert response.status == 308
            assert response.headers["Location"] == f"../{name}"
        async with client.get(f"/{name}/") as response:
            assert (response.status, response.url.path) == (200, f"/{name}")
    async with serving(fake_app(FakeEngines(), page=False)) as client, client.get("/app/") as response:
        assert response.status == 404


def test_the_document_lists_the_files_of_each_page() -> None:
    for name in ("app", "docs"):
        (parameter,) = DOCUMENT["paths"][f"/{name}/{{file}}"]["get"]["parameters"]
        assert parameter["schema"]["enum"] == list(files(name))


@pytest.mark.parametrize("file", ["nothing.js", "index.html", "..%2Fopenapi.json", "%2e%2e%2f%2e%2e%2fapp.py"])
async def test_nothing_else_is_served(file: str) -> None:
    async with serving(fake_app(FakeEngines())) as client, client.get(f"/app/{file}") as response:
        assert response.status == 404
        assert "detail" in await response.json()


async def test_the_page_can_be_turned_off_and_the_documentation_stays() -> None:
    async with serving(fake_app(FakeEngines(), page=False)) as client:
        statuses = {}
        for path in ("/app", "/app/main.js", "/docs", "/docs/docs.js", "/openapi.json"):
            async with client.get(path) as response:
                statuses[path] = response.status
    assert statuses == {"/app": 404, "/app/main.js": 404, "/docs": 200, "/docs/docs.js": 200, "/openapi.json": 200}


def test_the_package_takes_all_parts_along() -> None:
    config = configparser.ConfigParser()
    config.read(FOLDER.parents[1] / "setup.cfg", encoding="utf-8")
    pattern = config["options.package_data"]["server"]
    assert set(PARTS) <= {path for path in FOLDER.parent.glob(pattern) if path.is_file()}
