"""Hours of everything at once against one live server: right requests, bad ones, hang-ups, idle times, unloads.

It goes in rounds. In each, some callers send at random what MIX says; then they stop until every model has left memory.
At that quiet moment nothing may be left of what was: no request inside, no pixels held, as many open files and threads
as ever, and no more memory. Knows when to send what and how to count it; what is sent stands in asks.py and bad.py.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import orjson
import psutil
from prometheus_client.parser import text_string_to_metric_families

from scripts.bench.served import Served
from scripts.bench.show import tell
from scripts.endure import samples
from scripts.endure.asks import Kind, learn
from scripts.endure.bad import STAGES, Bad, bad_requests, hang_up
from scripts.endure.live import Client, Lost, Reply, bad_lines, live
from scripts.endure.row import Options, Row
from scripts.endure.samples import Sample, held
from scripts.load import inputs
from scripts.load.answers import WrongAnswer

PART = "soak"
WHOLE_S, SHORT_S = 3600.0, 115.0
ROUND_S, SHORT_ROUND_S = 20.0, 5.0
TTL_S, POLL_S = 1.0, 0.2  # after which an idle model leaves memory, and how often the server looks for such
LEAVES_S = 20.0  # by which all models have left
CALLERS = (1, 4, 12, 24)
MIX = {"right": 0.76, "bad": 0.14, "hang up": 0.05, "look": 0.04, "pause": 0.01}
PAUSE_S = 0.5  # at most
# Of which kinds a round is: so that models leave while others work, not only all at once.
ROUNDS = (None, ("texts",), None, ("pictures", "texts"), None, ("faces", "pictures"))
HANG_UPS, BAD, LOOKED = "clients that hang up", "bad input", "metrics, health, lists"
LOOKS = ("/metrics", "/health/ready", "/models", "/ping")
LEFT = ("facet_requests_inside", "facet_queue_items", "facet_decoded_pixels_held", "facet_pictures_waiting")
LOADS = "facet_model_loads_total"
# Before it, libraries grow their pools and caches to what this load takes; from there on nothing may grow.
WARM_SHARE, WARM_S = 0.35, 600.0  # of the time, at most so long


@dataclass(slots=True)
class Count:
    """What became of the requests of one kind."""

    tried: int = 0
    lost: int = 0
    wrong: int = 0


@dataclass(slots=True)
class Soak:
    """One run: what is sent, and all that was counted."""

    server: Served
    process: psutil.Process
    kinds: Sequence[Kind]
    bad: Sequence[Bad]
    rng: np.random.Generator
    counts: dict[str, Count] = field(default_factory=dict)
    told: Counter[str] = field(default_factory=Counter)  # what was wrong, how often
    samples: list[Sample] = field(default_factory=list)
    peak: int = 0  # bytes resident at any time
    left: int = 0  # quiet moments at which something was left of what was

    @property
    def sent(self) -> int:
        """How many requests there were so far."""
        return sum(count.tried for count in self.counts.values())

    def state(self) -> str:
        """Return what the last quiet moment was like."""
        last = self.samples[-1]
        memory = f"{last.resident / 1e6:.1f} MB resident, {last.own / 1e6:.1f} MB of its own"
        return f"{last.requests:,} requests: {memory}, {last.files} open files, {last.threads} threads"

    def seen(self, name: str) -> str:
        """Return how many kinds there are of what was sent under `name`."""
        if name == BAD:
            return f"{len(self.bad)} kinds"
        if name == HANG_UPS:
            return f"at {len(STAGES)} stages"
        return next((f"{len(kind.bodies)} inputs" for kind in self.kinds if kind.name == name), "")

    def wrong(self, name: str, what: str) -> None:
        """Count something wrong, and say it the first time."""
        self.counts.setdefault(name, Count()).wrong += 1
        self.say(f"{name}: {what}")

    def say(self, sentence: str) -> None:
        """Say something once."""
        self.told[sentence] += 1
        if self.told[sentence] == 1:
            tell(sentence)


async def rows(options: Options) -> list[Row]:
    """Run for the time that `options` give."""
    seconds = options.seconds or (SHORT_S if options.short else WHOLE_S)
    settings = {
        "MACHINE_LEARNING_ENGINE": "eager",
        "MACHINE_LEARNING_PRECISION": "float32",
        "MACHINE_LEARNING_MODEL_TTL": str(TTL_S),
        "MACHINE_LEARNING_MODEL_TTL_POLL_S": str(POLL_S),
        "MACHINE_LEARNING_REQUEST_THREADS": "4",  # few enough that all are started while it warms up
    }
    began = time.perf_counter()
    async with live(PART, **settings) as server:
        async with Client(server.port) as client:
            kinds = await learn(client)
        photo = next(inputs.photos(1, 640))
        rng = np.random.default_rng(options.seed)
        soak = Soak(server, psutil.Process(server.pid), kinds, bad_requests(photo), rng)
        ends = began + seconds
        warm = began + min(WARM_S, WARM_SHARE * seconds)
        warm_samples = 0
        while time.perf_counter() < ends:
            of = ROUNDS[len(soak.samples) % len(ROUNDS)]
            await busy(soak, of, SHORT_ROUND_S if options.short else ROUND_S)
            await quiet(soak)
            tell(soak.state())
            if time.perf_counter() < warm:
                warm_samples = len(soak.samples)
        async with Client(server.port) as client:
            state = await metrics_of(client)
    whole = held(PART, soak.samples, warm_samples, soak.peak, short=options.short)
    return [*answered(soak), *behind(soak, state, bad_lines(PART)), *whole]


async def busy(soak: Soak, of: Sequence[str] | None, seconds: float) -> None:
    """Let callers send for so long, right requests only of the kinds that are named; None is all."""
    kinds = [kind for kind in soak.kinds if of is None or kind.name in of]
    ends = time.perf_counter() + seconds
    async with Client(soak.server.port) as client, asyncio.TaskGroup() as group:
        callers = [
            group.create_task(_call(soak, client, kinds, rng, ends))
            for rng in soak.rng.spawn(int(soak.rng.choice(CALLERS)))
        ]
        while not all(caller.done() for caller in callers):
            soak.peak = max(soak.peak, soak.process.memory_info().rss)
            await asyncio.wait(callers, timeout=POLL_S)


async def _call(soak: Soak, client: Client, kinds: Sequence[Kind], rng: np.random.Generator, ends: float) -> None:
    shares = np.array([kind.share for kind in kinds])
    while time.perf_counter() < ends:
        match rng.choice(list(MIX), p=list(MIX.values())):
            case "right":
                kind = kinds[int(rng.choice(len(kinds), p=shares / shares.sum()))]
                await _right(soak, client, kind, int(rng.integers(len(kind.bodies))))
            case "bad":
                await _bad(soak, client, soak.bad[int(rng.integers(len(soak.bad)))])
            case "hang up":
                soak.counts.setdefault(HANG_UPS, Count()).tried += 1
                kind = kinds[int(rng.integers(len(kinds)))]
                body, content_type = kind.bodies[int(rng.integers(len(kind.bodies)))]
                stage, rude = str(rng.choice(STAGES)), bool(rng.random() < 0.5)
                await hang_up(soak.server.port, stage, body, content_type, rng, rude=rude)
            case "look":
                await _look(soak, client, str(rng.choice(LOOKS)))
            case _:
                await asyncio.sleep(rng.uniform(0, PAUSE_S))


async def _right(soak: Soak, client: Client, kind: Kind, number: int) -> None:
    reply = await _counted(soak, kind.name, client, "POST", "/predict", *kind.bodies[number])
    if reply is None:
        return
    try:
        if reply.status != 200:
            raise WrongAnswer(f"it got {reply.status}: {reply.body[:200].decode(errors='replace')}")
        kind.checks[number](reply.body)
    except WrongAnswer as error:
        soak.wrong(kind.name, f"input {number}: {error}")


async def _bad(soak: Soak, client: Client, bad: Bad) -> None:
    reply = await _counted(soak, BAD, client, bad.method, bad.path, bad.body, bad.content_type)
    if reply is None:
        return
    said = reply.body[:200].decode(errors="replace")
    if reply.status != bad.status:
        soak.wrong(BAD, f"{bad.name} got {reply.status}, not {bad.status}: {said}")
    elif set(orjson.loads(reply.body)) != {"detail"}:
        soak.wrong(BAD, f"{bad.name} got {said}")


async def _look(soak: Soak, client: Client, path: str) -> None:
    reply = await _counted(soak, LOOKED, client, "GET", path)
    if reply is not None and reply.status != 200:
        soak.wrong(LOOKED, f"{path} got {reply.status}: {reply.body[:200]!r}")


async def _counted(
    soak: Soak, name: str, client: Client, method: str, path: str, body: bytes | None = None, content_type: str = ""
) -> Reply | None:
    """Send one request and count it; return None if it is lost."""
    count = soak.counts.setdefault(name, Count())
    count.tried += 1
    try:
        return await client.request(method, path, body, content_type)
    except Lost as error:
        count.lost += 1
        soak.say(f"{name}: lost: {error}")
        return None


async def quiet(soak: Soak) -> None:
    """Wait until every model has left, look whether anything else is left, and take a sample."""
    ends = time.perf_counter() + LEAVES_S
    async with Client(soak.server.port) as client:
        while loaded := [one["name"] for one in orjson.loads((await client.get("/models")).body)["loaded"]]:
            if time.perf_counter() > ends:
                break
            await asyncio.sleep(POLL_S)
        state = await metrics_of(client)
    if left := loaded + [name for name in LEFT if state[name]]:
        soak.left += 1
        soak.say(f"left at a quiet moment: {', '.join(left)}")
    soak.samples.append(await _settled(soak))


async def _settled(soak: Soak) -> Sample:
    """Return a sample once the server has closed the connections that we have closed."""
    last = samples.sample(soak.process, soak.sent)
    while True:
        await asyncio.sleep(POLL_S)
        now = samples.sample(soak.process, soak.sent)
        if now.files == last.files:
            return now
        last = now


async def metrics_of(client: Client) -> Counter[str]:
    """Return the sum of each metric over its labels, outcomes of model loads apart."""
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families((await client.get("/metrics")).body.decode()):
        for one in family.samples:
            found[one.name] += int(one.value)
            if one.name == LOADS:
                found[f"{LOADS} {one.labels['outcome']}"] += int(one.value)
    return found


def answered(soak: Soak) -> list[Row]:
    """Return a row for each kind of request."""
    return [
        Row(PART, name, one.tried, one.lost, one.wrong, soak.seen(name)) for name, one in sorted(soak.counts.items())
    ]


def behind(soak: Soak, state: Counter[str], errors: Sequence[str]) -> list[Row]:
    """Return what the server itself told: nothing is left at quiet moments, models come back, no errors are logged."""
    for line in errors[:3]:
        tell(line[:500])
    loaded, failed = state[f"{LOADS} loaded"], state[f"{LOADS} failed"]
    answers = sum(count.tried for count in soak.counts.values())
    return [
        Row(PART, "quiet moments with nothing left of what was", len(soak.samples), 0, soak.left),
        Row(PART, "models that were loaded, and left when idle", loaded + failed, 0, failed),
        Row(PART, "requests without an error of the server in its log", answers, 0, len(errors)),
    ]
