"""Who is inside, and how long they may stay once the server is to end.

Knows requests only as blocks of code that run: at the end of the grace time those still inside are interrupted, and
each tells its client so.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from server.errors import ShuttingDown


class Door:
    """Counts the requests inside. `close_in` gives them a time limit; `empty` waits until all have left."""

    def __init__(self) -> None:
        self._inside: set[asyncio.Timeout] = set()
        self.visits = 0  # ever
        self._closes_at: float | None = None  # in the time of the event loop
        self._nobody = asyncio.Event()
        self._nobody.set()

    @property
    def closing(self) -> bool:
        """Whether the end has been announced."""
        return self._closes_at is not None

    @property
    def inside(self) -> int:
        """How many requests are inside."""
        return len(self._inside)

    @asynccontextmanager
    async def enter(self) -> AsyncIterator[None]:
        """Stay inside for the time of the block; raises ShuttingDown where the grace time ends before the block."""
        timeout = asyncio.timeout_at(self._closes_at)
        try:
            async with timeout:
                self.visits += 1
                self._inside.add(timeout)
                self._nobody.clear()
                try:
                    yield
                finally:
                    self._inside.discard(timeout)
                    if not self._inside:
                        self._nobody.set()
        except TimeoutError as error:
            if not timeout.expired():
                raise
            raise ShuttingDown("The server is shutting down: send the request again in a moment.") from error

    def close_in(self, seconds: float) -> None:
        """Interrupt everybody who is still inside in `seconds`; may be called again to shorten the time."""
        self._closes_at = asyncio.get_running_loop().time() + seconds
        for timeout in self._inside:
            if not timeout.expired():
                timeout.reschedule(self._closes_at)

    async def empty(self) -> None:
        """Wait until nobody is inside."""
        await self._nobody.wait()
