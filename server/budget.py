"""An amount that requests share, in turn between flows: pixels that are held decoded, or threads that decode them.

It bounds memory and work without turning anybody away: a picture waits in its compressed form until its turn comes.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager

_Turn = tuple[int, "asyncio.Future[None]"]


class Budget:
    """At most `capacity` of something in use at one time; a larger amount is let in when nothing else is in use."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used = 0
        self.waiting = 0
        self._flows: OrderedDict[Hashable, deque[_Turn]] = OrderedDict()

    def waiting_of(self, flow: Hashable) -> int:
        """Return how many of one flow wait."""
        return len(self._flows.get(flow, ()))

    @asynccontextmanager
    async def hold(self, amount: int, flow: Hashable = None) -> AsyncIterator[None]:
        """Wait for room, hold `amount` for the time of the block."""
        await self.acquire(amount, flow)
        try:
            yield
        finally:
            self.release(amount)

    async def acquire(self, amount: int, flow: Hashable = None) -> None:
        """Wait for room; whoever calls this calls `release` in the end."""
        if not self.waiting and self._fits(amount):
            self.used += amount
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._flows.setdefault(flow, deque()).append((amount, turn))
        self.waiting += 1
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # let in and cancelled in the same turn of the loop
                self.release(amount)
            else:
                self._let_in()  # the one behind may fit where this one did not
            raise

    def release(self, amount: int) -> None:
        """Give back what `acquire` gave."""
        self.used -= amount
        self._let_in()

    def _fits(self, amount: int) -> bool:
        return self.used == 0 or self.used + amount <= self.capacity

    def _let_in(self) -> None:
        while self._flows:
            flow, turns = next(iter(self._flows.items()))
            amount, turn = turns[0]
            if not turn.done() and not self._fits(amount):
                return  # nobody overtakes: a large one would wait for ever
            turns.popleft()
            self.waiting -= 1
            if turns:
                self._flows.move_to_end(flow)
            else:
                del self._flows[flow]
            if not turn.done():
                self.used += amount
                turn.set_result(None)
