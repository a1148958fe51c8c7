"""An amount that requests share, first come first served: here the pixels that are held decoded at one time.

It bounds memory without turning anybody away: a picture waits in its compressed form until there is room to decode it.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Budget:
    """At most `capacity` of something in use at one time; a larger amount is let in when nothing else is in use."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def hold(self, amount: int) -> AsyncIterator[None]:
        """Wait for room, hold `amount` for the time of the block."""
        if self._waiting or not self._fits(amount):
            await self._turn(amount)
        else:
            self.used += amount
        try:
            yield
        finally:
            self._give_back(amount)

    def _fits(self, amount: int) -> bool:
        return self.used == 0 or self.used + amount <= self.capacity

    async def _turn(self, amount: int) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((amount, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # let in and cancelled in the same turn of the loop
                self._give_back(amount)
            else:
                self._let_in()  # the one behind may fit where this one did not
            raise

    def _give_back(self, amount: int) -> None:
        self.used -= amount
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting:
            amount, turn = self._waiting[0]
            if not turn.done():
                if not self._fits(amount):
                    return
                self.used += amount
                turn.set_result(None)
            self._waiting.popleft()
