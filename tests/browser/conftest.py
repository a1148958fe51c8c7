"""A real Chromium, headless, before a real server with the demo models: what the page's tests share."""

import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp.test_utils import TestServer
from playwright.async_api import Browser, async_playwright

from server.app import create_app
from server.loading import Engines, engine_config
from server.settings import Settings
from tests.browser.tab import Tab

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
WIDE, NARROW = (1440, 900), (390, 844)
# In a container Chromium is root and has no user namespaces to build its sandbox from; it shows our own pages alone.
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage"]


def executable() -> str:
    """Return the path of a Chromium; without one the tests fail in CI, and are skipped elsewhere."""
    found = next((path for path in map(shutil.which, NAMES) if path), None)
    if found:
        return found
    reason = "there is no Chromium: install it, for example by apt-get install chromium"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def browser() -> AsyncIterator[Browser]:
    path = executable()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def address(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """Serve the demo models as a user gets them, without internet; return where."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        settings = Settings(cache_folder=tmp_path_factory.mktemp("cache"), engine="eager", precision="float32")
        engines = Engines(engine_config(settings))
        server = TestServer(create_app(settings, engines.load, engines.release, engines.warm_up))
        await server.start_server()
        yield str(server.make_url("/"))
        await server.close()


@pytest_asyncio.fixture(loop_scope="package")
async def tab(browser: Browser, address: str) -> AsyncIterator[Tab]:
    """A tab of the size of a desktop, which must not have complained or asked another server for anything."""
    tab = await Tab.open(browser, address, WIDE, "light")
    yield tab
    await tab.close()


@pytest_asyncio.fixture(loop_scope="package")
async def phone(browser: Browser, address: str) -> AsyncIterator[Tab]:
    """A tab of the size of a phone, in the dark."""
    tab = await Tab.open(browser, address, NARROW, "dark")
    yield tab
    await tab.close()


@pytest.fixture(scope="session")
def screenshots(request: pytest.FixtureRequest) -> Path | None:
    """Where screenshots are wanted, None if nowhere: see --screenshots in tests/conftest.py."""
    folder = request.config.getoption("--screenshots")
    return Path(folder) if folder else None
