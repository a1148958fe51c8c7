"""Nobody waits for what others do: texts beside pictures, and ten pictures beside a thousand of somebody else's.

Two promises are measured on ViT-B-32 with random weights, whose speed is that of trained ones:

- with 32 pictures always on their way, a text that comes at a random moment takes at most one batch of pictures and
  twice what it takes alone; texts and batches each at their 99th percentile. How long the batches of the pictures took
  meanwhile stands in their answers, in Server-Timing;
- who sends ten pictures while another address has a thousand in the queue gets the last of them within twice the time
  of sharing evenly. Shared evenly, ten of the other are answered meanwhile, twenty in all; so in twice that time forty
  in all, thirty of the other. The batch on the device and the one that is put together already are not counted.
"""

import asyncio
import math
import re
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from scripts.bench.sentences import searches
from scripts.bench.show import tell
from scripts.endure.live import Client, Lost, Reply, live
from scripts.endure.row import Options, Row
from scripts.load import inputs

PART = "fairness"
MODEL = "ViT-B-32__openai"
PICTURES = {"clip": {"visual": {"modelName": MODEL}}}
TEXTS = {"clip": {"textual": {"modelName": MODEL}}}
SEARCHES = searches(200)
CONCURRENT = 32
SIDE = 1440  # pixels of the longer side, as clients send previews
ALONE, SHORT_ALONE = 60, 20  # texts by which the time of one alone is known
WHOLE_S, SHORT_S = 120.0, 4.0  # of texts beside pictures
# Batches that a text may wait for. Few texts have no 99th percentile; a slowest one tells one batch from two.
BATCHES, SHORT_BATCHES = 1.0, 1.5
FLOOD, SHORT_FLOOD, FEW = 1000, 104, 10
CUT = 2  # batches that are cut when somebody comes: one runs, one is put together ahead
OTHER = "127.0.0.2"  # a second address of the loopback: a flow of its own
POLL_S = 0.05
_INSIDE = re.compile(rb"^facet_requests_inside (\S+)", re.MULTILINE)


@dataclass(slots=True)
class Tally:
    """What became of one kind of requests; `right` are the statuses that they may get."""

    replies: list[Reply] = field(default_factory=list)
    right: tuple[int, ...] = (200,)
    lost: int = 0
    wrong: int = 0

    async def count(self, client: Client, body: tuple[bytes, str]) -> None:
        """Send one request and count what becomes of it."""
        try:
            reply = await client.post(*body)
        except Lost as error:
            tell(str(error))
            self.lost += 1
            return
        self.replies.append(reply)
        self.wrong += reply.status not in self.right

    @property
    def tried(self) -> int:
        """How many were sent."""
        return len(self.replies) + self.lost


async def rows(options: Options) -> list[Row]:
    """Measure both promises on one server."""
    settings = {
        "MACHINE_LEARNING_UNTRAINED": "true",
        "MACHINE_LEARNING_MODEL_TTL": "0",
        "MACHINE_LEARNING_PRELOAD__CLIP__VISUAL": MODEL,
        "MACHINE_LEARNING_PRELOAD__CLIP__TEXTUAL": MODEL,
    }
    photos = list(inputs.photos(8, SIDE))
    async with live("fairness", **settings) as server, Client(server.port) as client, Client(server.port, OTHER) as few:
        own = await text_alone(client, SHORT_ALONE if options.short else ALONE)
        seconds = SHORT_S if options.short else WHOLE_S
        batches = SHORT_BATCHES if options.short else BATCHES
        beside = await texts_beside_pictures(client, photos, own, seconds, batches, options.seed)
        flood = await few_beside_many(client, few, photos, SHORT_FLOOD if options.short else FLOOD)
    return [*beside, flood]


def picture(photos: Sequence[bytes], number: int) -> tuple[bytes, str]:
    """Return the form of a picture that nobody has sent before."""
    return inputs.form(PICTURES, "image", inputs.different(photos[number % len(photos)]))


def text(number: int) -> tuple[bytes, str]:
    """Return the form of a text."""
    return inputs.form(TEXTS, "text", SEARCHES[number % len(SEARCHES)].encode())


async def text_alone(client: Client, count: int) -> float:
    """Return the median of the seconds that a text takes on the quiet server; raises Lost if one gets no answer."""
    return statistics.median([(await client.post(*text(number))).seconds for number in range(count)])


async def texts_beside_pictures(
    client: Client, photos: Sequence[bytes], own: float, seconds: float, most: float, seed: int
) -> list[Row]:
    """Send text after text at random moments beside CONCURRENT pictures, for so many seconds.

    None may wait for more than `most` batches of pictures, and twice the seconds that it takes of its `own`.
    """
    tell(f"a text alone takes {1000 * own:.0f} ms; now beside {CONCURRENT} pictures for {seconds:.0f} s")
    pictures, texts = Tally(), Tally()
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for _ in range(CONCURRENT):
            group.create_task(_again_and_again(client, pictures, photos, stop))
        while pictures.tried < 2 * CONCURRENT:  # noqa: ASYNC110 - a count that many callers add to
            await asyncio.sleep(POLL_S)  # from here on they come as they will go on
        first, began = len(pictures.replies), time.perf_counter()
        rng = np.random.default_rng(seed)
        while time.perf_counter() - began < seconds:
            # A moment within a batch, so that every part of one is met, and nobody waits behind another text.
            await asyncio.sleep(rng.uniform(0, pictures.replies[-1].phases["run"]))
            await texts.count(client, text(texts.tried))
        spent, answered = time.perf_counter() - began, len(pictures.replies) - first
        stop.set()
    batches = batch_times(pictures.replies[first:])
    p99, batch = percentile(texts.replies), float(np.percentile(batches, 99))
    limit = most * batch + 2 * own
    seen = (
        f"p99 {1000 * p99:.0f} ms, limit {1000 * limit:.0f} ms: a batch of pictures {1000 * batch:.0f} ms "
        f"(median {1000 * statistics.median(batches):.0f}), a text alone {1000 * own:.0f} ms"
    )
    late = int(p99 > limit)
    rate = f"{answered / spent:.1f} pictures/s"
    return [
        Row(PART, f"texts beside {CONCURRENT} pictures", texts.tried, texts.lost, texts.wrong + late, seen),
        Row(PART, "pictures beside texts", pictures.tried, pictures.lost, pictures.wrong, rate),
    ]


def batch_times(replies: Sequence[Reply]) -> list[float]:
    """Return the seconds of each batch that these rode in: who rode together is told the same."""
    return sorted({reply.phases["run"] for reply in replies if "run" in reply.phases})


def largest_batch(replies: Sequence[Reply]) -> int:
    """Return how many rode together at most."""
    return max(Counter(reply.phases["run"] for reply in replies if "run" in reply.phases).values())


def percentile(replies: Sequence[Reply]) -> float:
    """Return the 99th percentile of the seconds of these."""
    return float(np.percentile([reply.seconds for reply in replies], 99))


async def _again_and_again(client: Client, tally: Tally, photos: Sequence[bytes], stop: asyncio.Event) -> None:
    while not stop.is_set():
        await tally.count(client, picture(photos, tally.tried))


async def few_beside_many(many: Client, few: Client, photos: Sequence[bytes], flood: int) -> Row:
    """Let `many` send so many pictures at once, and `few` ten when all of those are in."""
    tell(f"{flood} pictures of one address, and {FEW} of another behind them")
    theirs, ours = Tally(right=(200, 503)), Tally()  # a slow machine may tell some of so many to come again
    async with asyncio.TaskGroup() as group:
        for number in range(flood):
            group.create_task(theirs.count(many, picture(photos, number)))
        while await _inside(few) + theirs.tried < flood:  # noqa: ASYNC110 - the server is asked each time
            await asyncio.sleep(POLL_S)
        came, before = time.perf_counter(), theirs.tried
        await asyncio.gather(*(ours.count(few, picture(photos, number)) for number in range(FEW)))
        took, behind = time.perf_counter() - came, theirs.tried - before
    most = 3 * FEW + CUT * largest_batch(theirs.replies)
    seen = (
        f"{behind} of the others were answered before the last of the {FEW}, limit {most}; it came after {took:.1f} s, "
        f"the last of the others after {time.perf_counter() - came:.1f} s"
    )
    if flood - before <= most:
        seen += "; the others were nearly done when they came, which proves nothing"
    late = int(behind > most or flood - before <= most)
    return Row(
        PART,
        f"{FEW} pictures behind {flood} of another address",
        theirs.tried + ours.tried,
        theirs.lost + ours.lost,
        theirs.wrong + ours.wrong + late,
        seen,
    )


async def _inside(client: Client) -> int:
    found = _INSIDE.search((await client.get("/metrics")).body)
    if found is None:
        raise RuntimeError("/metrics does not tell how many requests are inside")
    return math.floor(float(found[1]))
