"""Faults injected into a live server under load: which trials there are, and in what order.

Every trial counts the answers of all other requests too, held against those of the quiet server. Knows how much of each
makes the full set and how much the miniature; what a trial does stands in models.py, clients.py and ends.py.
"""

from scripts.endure.faults import clients, ends, models
from scripts.endure.faults.live import live
from scripts.endure.row import Options, Row


async def rows(options: Options) -> list[Row]:
    """Run all trials; the miniature takes about a minute."""
    short = options.short
    async with live() as server:
        found = [
            await models.guilty_items(server, 3 if short else 100),
            await models.dying_threads(server, 2 if short else 20),
            await models.little_memory(server),
            await models.loads(server),
        ]
        found.append(await models.failing_engine(server))
        found.append(await clients.hanging_up(server, 4 if short else 50))
        found.append(await clients.idle_connections(server, 500 if short else 5000))
        found.append(await clients.slow_senders(server, 200, 4.0 if short else 40.0))
        found.append(await ends.stopped(server, 1 if short else 5, 1.0 if short else 5.0))
        found.append(await models.returning_engine(server))
    found.append(await ends.terminated(1 if short else 5))
    found.append(await models.clocks())
    if not short:
        found.append(await models.folders())
        found.append(await ends.killed(5))
    return found
