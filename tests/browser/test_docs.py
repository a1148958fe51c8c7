"""The page at /docs in a real browser: every route stands there, and its commands are those of the examples."""

import pytest
from playwright.async_api import expect

from tests.browser.tab import Tab
from tests.server.described import DOCUMENT

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="package")]


async def test_it_shows_every_route_with_its_answers(tab: Tab) -> None:
    await tab.go("docs")
    operations = [one for item in DOCUMENT["paths"].values() for one in item.values()]
    await expect(tab.find("article")).to_have_count(len(operations))
    for one in operations:
        article = tab.find(f"article#{one['operationId']}")
        await expect(article).to_contain_text(one["summary"])
        assert await article.locator(".status > strong").all_inner_texts() == sorted(one["responses"])
        await expect(tab.find(f"nav a[href='#{one['operationId']}']")).to_have_count(1)


async def test_its_commands_are_for_this_server(tab: Tab) -> None:
    await tab.go("docs")
    command = tab.find("article#predict pre").first
    await expect(command).to_contain_text("""-F 'entries={"clip":{"textual":{"modelName":"demo"}}}'""")
    await expect(command).to_contain_text(f"{tab.address}predict")


async def test_it_fits_a_phone(phone: Tab) -> None:
    await phone.go("docs")
    await expect(phone.find("article#predict")).to_be_visible()
    assert await phone.run("return document.documentElement.scrollWidth") == 390
