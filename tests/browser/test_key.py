"""The page before a server that asks for an API key: it asks a person, keeps it in its tab, accepts a no."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from aiohttp.test_utils import TestServer
from playwright.async_api import Browser, expect

from tests.browser.conftest import WIDE
from tests.browser.tab import Tab
from tests.server.fakes import FakeEngines, fake_app

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="package")]

KEY = "key-of-the-page-0123"


@pytest_asyncio.fixture(loop_scope="package")
async def guarded(browser: Browser) -> AsyncIterator[Tab]:
    """A tab before a server with a key; each refusal must have been taken out by the test."""
    server = TestServer(fake_app(FakeEngines(), api_keys=KEY))
    await server.start_server()
    tab = await Tab.open(browser, str(server.make_url("/")), WIDE, "light")
    try:
        yield tab
        await tab.close()
    finally:
        await server.close()


async def enter(tab: Tab, key: str) -> None:
    await tab.find("#key-value").fill(key)
    await tab.button("Use it").click()


async def test_the_page_asks_for_a_key_until_it_is_right_and_keeps_it_in_the_tab(guarded: Tab) -> None:
    tab = guarded
    await tab.go("app")
    await expect(tab.find("#key")).to_be_visible()
    await expect(tab.find("#key-wrong")).to_be_hidden()
    await enter(tab, "none of its keys 0123")
    await expect(tab.find("#key-wrong")).to_be_visible()
    await enter(tab, KEY)
    await expect(tab.find("#key")).to_be_hidden()
    await expect(tab.find("#clip option").first).to_be_attached()
    assert set(tab.refused) == {"401 /models"}
    assert len(tab.refused) == 2
    tab.refused.clear()
    await tab.page.reload()
    await expect(tab.find("#clip option").first).to_be_attached()
    await expect(tab.find("#key")).to_be_hidden()
    assert await tab.run("return localStorage.length + document.cookie.length") == 0


async def test_who_closes_the_question_is_not_asked_again_and_told_why_nothing_works(guarded: Tab) -> None:
    tab = guarded
    await tab.go("app")
    await expect(tab.find("#key")).to_be_visible()
    await tab.page.keyboard.press("Escape")
    await expect(tab.find("#loaded")).to_contain_text("asks for an API key")
    async with tab.page.expect_response("**/metrics"):
        pass  # the next look, a second later
    await expect(tab.find("#key")).to_be_hidden()
    assert all(refusal.startswith("401 ") for refusal in tab.refused)
    tab.refused.clear()
    await tab.page.goto("about:blank")  # it asks no more
    tab.refused.clear()
