"""One tab of the browser: what a person does in it, and a watch over what it asks for and complains of."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from playwright.async_api import Browser, ConsoleMessage, Locator, Page, Request, Response, expect

WAIT_MS = 60_000  # models are loaded by the first photo, on a busy machine


class Tab:
    """A page that is watched. `flying` and `most` count requests to /predict that are on their way.

    `refused` are the answers of 400 and above, like "503 /predict": a test that expects some takes them out.
    """

    def __init__(self, page: Page, address: str) -> None:
        self.page = page
        self.address = address
        self.complaints: list[str] = []
        self.foreign: list[str] = []
        self.refused: list[str] = []
        self.flying = 0
        self.most = 0
        page.set_default_timeout(WAIT_MS)
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", self._asked)
        page.on("response", self._told)
        page.on("requestfinished", self._answered)
        page.on("requestfailed", self._answered)

    @classmethod
    async def open(
        cls, browser: Browser, address: str, size: tuple[int, int], scheme: Literal["light", "dark"]
    ) -> "Tab":
        """Open a tab of its own session; `size` is width and height in pixels."""
        context = await browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            device_scale_factor=2 if size[0] < 500 else 1,  # as phones have it
            color_scheme=scheme,
            reduced_motion="reduce",
        )
        return cls(await context.new_page(), address)

    async def close(self) -> None:
        """Close it; fails if something was wrong on the way."""
        await self.page.context.close()
        assert self.foreign == []
        assert self.refused == []
        assert self.complaints == []

    async def go(self, path: str) -> None:
        """Open a path of the server."""
        await self.page.goto(self.address + path)

    def find(self, selector: str) -> Locator:
        """Return what a selector finds."""
        return self.page.locator(selector)

    def button(self, name: str) -> Locator:
        """Return the button of this accessible name."""
        return self.page.get_by_role("button", name=name, exact=True)

    async def until_done(self, photos: int, failed: int = 0) -> None:
        """Return when the page says that this many photos are done."""
        trouble = f", {failed} failed" if failed else ""
        said = "1 photo" if photos == 1 else f"{photos} photos"
        await expect(self.find("#state")).to_have_text(f"{said} done{trouble}.", timeout=WAIT_MS)

    async def search(self, words: str) -> list[str]:
        """Search by words; return the names of the photos that are found, best first."""
        await self.find("#words").fill(words)
        await self.find("#words").press("Enter")
        await expect(self.find("#photos-count")).to_contain_text(f"“{words}”")
        return await self.labels()

    async def labels(self) -> list[str]:
        """Return what the tiles are called by a screen reader, in their order."""
        return [await tile.get_attribute("aria-label") or "" for tile in await self.find("#grid .tile").all()]

    async def drop(self, paths: Sequence[Path]) -> None:
        """Drag files or folders of the disk over the page and drop them, as the system does."""
        session = await self.page.context.new_cdp_session(self.page)
        data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            await session.send("Input.dispatchDragEvent", {"type": kind, "x": 300, "y": 300, "data": data})

    async def run(self, body: str) -> Any:
        """Run the body of an async function in the page and return its JSON value.

        By the debugger, which the page's policy allows; what the page itself runs stays under it.
        """
        session = await self.page.context.new_cdp_session(self.page)
        expression = f"(async () => {{ {body} }})()"
        answer = await session.send(
            "Runtime.evaluate", {"expression": expression, "awaitPromise": True, "returnByValue": True}
        )
        assert "exceptionDetails" not in answer, json.dumps(answer["exceptionDetails"])
        return answer["result"].get("value")

    def _heard(self, message: ConsoleMessage) -> None:
        # What a server refuses is a complaint, too, for the browser; it is watched by itself.
        if message.type in ("error", "warning") and "the server responded with a status" not in message.text:
            self.complaints.append(f"{message.text} ({message.location.get('url')})")

    def _asked(self, request: Request) -> None:
        if not re.match(rf"{re.escape(self.address)}|blob:{re.escape(self.address)}", request.url):
            self.foreign.append(request.url)
        if request.url.endswith("/predict"):
            self.flying += 1
            self.most = max(self.most, self.flying)

    def _told(self, response: Response) -> None:
        if response.status >= 400:
            self.refused.append(f"{response.status} {response.url.removeprefix(self.address[:-1])}")

    def _answered(self, request: Request) -> None:
        if request.url.endswith("/predict"):
            self.flying -= 1
