"""Trials of what is done to the process: SIGTERM under full load, SIGSTOP and SIGCONT, SIGKILL and a new start."""

import asyncio
import signal
import tempfile
from pathlib import Path

from scripts.endure.faults.live import Live, Tally, live
from scripts.endure.faults.models import PART, row
from scripts.endure.row import Row

GRACE_S = 8.0  # the default of MACHINE_LEARNING_SHUTDOWN_GRACE_S, and what is left to close


async def terminated(rounds: int) -> Row:
    """SIGTERM under full load: every accepted request gets its result or a 503."""
    total, wrong, longest = Tally(), 0, 0.0
    for _ in range(rounds):
        async with live() as server, server.load(64) as tally:
            await server.answers(tally, 300)
            code, seconds = await server.end()
            wrong += (code != 0) + (seconds > GRACE_S + 4)
            longest = max(longest, seconds)
        _add(total, tally)
        wrong += sum(count for status, count in tally.statuses.items() if status not in (200, 503))
    told = f"{total.words()}; ended in {longest:.1f} s"
    return Row(PART, "SIGTERM under full load", rounds, total.lost, total.wrong + wrong, told)


async def stopped(server: Live, rounds: int, seconds: float) -> Row:
    """SIGSTOP and SIGCONT: all that was queued is answered after."""
    async with server.load() as tally:
        for _ in range(rounds):
            await server.answers(tally)
            server.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(seconds)
            server.process.send_signal(signal.SIGCONT)
        await server.answers(tally)
    return row("SIGSTOP and SIGCONT under load", rounds, tally, seen=f"stopped for {seconds:.0f} s each")


async def killed(rounds: int) -> Row:
    """SIGKILL under load, and a new start with the same cache folder: it serves as before."""
    total, tried = Tally(), 0
    with tempfile.TemporaryDirectory(prefix="facet-cache-") as name:
        for _ in range(rounds):
            async with live(Path(name)) as server:
                async with server.load(8) as tally:
                    await server.answers(tally, 50)
                _add(total, tally)
                await server.end(signal.SIGKILL)
                tried += 1
    return row("SIGKILL and a new start", tried, total, seen="the same folder each time")


def _add(total: Tally, tally: Tally) -> None:
    total.right += tally.right
    total.wrong += tally.wrong
    total.lost += tally.lost
    total.statuses += tally.statuses
