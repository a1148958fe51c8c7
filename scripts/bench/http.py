"""Pictures over HTTP, through the whole server, in turn with the baseline server. Both run, one is loaded at a time.

What a picture costs the server's processor is held against its parts alone: decode, prepare and network, called here
in batches of the size that so many callers fill.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from engines import catalog, images, models
from engines.clip import Visual
from scripts.bench import pictures, reference, served
from scripts.bench.ceiling import Ceiling, gflop
from scripts.bench.drive import Inputs, Rate, Round, drive
from scripts.bench.options import Options
from scripts.bench.record import Row, row
from scripts.bench.sentences import searches
from scripts.bench.show import say, tell
from scripts.bench.turns import Ended, in_turn, processor_time

CONCURRENCY = (1, 8, 32)
GROWTH = (1, 2, 4, 8, 16, 32, 64, 128, 256)
BUSY = 32  # callers of pictures beside which a text is sent
TEXTS = 1000
PARTS_S = 2.0
# What is wanted: pictures/s over the baseline's, by the precision that serves.
RATES = {"int8": 3.0}
RATE = 2.2

Found = Mapping[str, Sequence[Round]]


def measure(options: Options, ceiling: Ceiling) -> list[Row]:
    """Measure every concurrency, then a text beside pictures; with --growth also how throughput holds."""
    paths = pictures.photo_paths(options.cache)
    photos = [path.read_bytes() for path in paths]
    inputs = Inputs(paths, reference.of_pictures(options.model, photos, options.cache), searches(TEXTS))
    found: dict[int, Found] = {}
    with served.both(options, ("visual", "textual")) as servers:
        engine = servers["ours"].engines()["visual"].engine
        for callers in GROWTH if options.growth else CONCURRENCY:
            found[callers] = rounds(servers, options, inputs, f"http, concurrency {callers}", pictures=callers)
        beside = rounds(servers, options, inputs, f"http, a text beside {BUSY} pictures", pictures=BUSY, texts=1)
    precision = engine.split()[1]
    rate = RATES.get(precision, RATE)
    most = ceiling.items(precision, gflop(reference.visual(options.model, options.cache)))
    parts = _parts(options, photos, engine)
    tell_of = partial(row, "http", model=options.model, engine=engine)
    return [
        *itertools.chain.from_iterable(_of(callers, each, tell_of, most, rate) for callers, each in found.items()),
        *_cost(parts, {callers: each["ours"] for callers, each in found.items()}, tell_of),
        *(growth({callers: each["ours"] for callers, each in found.items()}, tell_of) if options.growth else ()),
        *_beside(beside, tell_of),
    ]


def rounds(
    servers: Mapping[str, served.Served],
    options: Options,
    inputs: Inputs,
    title: str,
    *,
    pictures: int = 0,
    texts: int = 0,
) -> Found:
    """Return what each server did under so many callers in each round, and say what the client cost."""

    def load(server: served.Served) -> Callable[[], Round]:
        return lambda: drive(server, options.model, options.seconds, inputs, pictures=pictures, texts=texts)

    found = in_turn(title, {name: load(server) for name, server in servers.items()}, options.rounds)
    client = max(one.client_busy for each in found.values() for one in each)
    say(f"{title}: the client used at most {client:.0%} of a core")
    return found


def of_pictures(found: Sequence[Round]) -> list[Rate]:
    """Return what the callers of pictures got."""
    return [one.pictures for one in found if one.pictures is not None]


def of_texts(found: Sequence[Round]) -> list[Rate]:
    """Return what the callers of texts got."""
    return [one.texts for one in found if one.texts is not None]


def milliseconds(rates: Sequence[Rate], name: str) -> list[float]:
    """Return the latencies called `name` of some rounds."""
    return [1000 * float(getattr(rate, name)) for rate in rates]


def _of(callers: int, found: Found, tell_of: Callable[..., Row], most: float, wanted: float) -> list[Row]:
    """Return the rows of one concurrency.

    `most` is the pictures/s that the matrix rate allows, `wanted` is how many times the baseline's it should be.
    """
    ours, theirs = of_pictures(found["ours"]), of_pictures(found["baseline"])
    rate, lone, tail = (
        f"ratio >= {wanted:g}" if callers in CONCURRENCY[1:] else "",
        "ratio <= 0.5" if callers == 1 else "",
        "ours <= 1.5" if callers == BUSY else "",
    )
    per_s = [one.per_s for one in ours], [one.per_s for one in theirs]
    tails = ([one.p99_s * one.per_s / callers for one in each] for each in (ours, theirs))
    cosines = [one.lowest_cosine for one in ours if one.lowest_cosine is not None]
    their_cosines = [one.lowest_cosine for one in theirs if one.lowest_cosine is not None]
    return [
        tell_of("pictures", "pictures/s", *per_s, at=callers, ceiling=most, goal=rate),
        tell_of("p50", "ms", milliseconds(ours, "p50_s"), milliseconds(theirs, "p50_s"), at=callers, goal=lone),
        tell_of("p99", "ms", milliseconds(ours, "p99_s"), milliseconds(theirs, "p99_s"), at=callers),
        tell_of("p99 over concurrency / throughput", "", *tails, at=callers, goal=tail),
        tell_of("lowest cosine to eager float32", "", cosines, their_cosines, at=callers, goal="ours >= 0.999"),
    ]


def _parts(options: Options, photos: Sequence[bytes], engine: str) -> Callable[[int], list[float]]:
    """Return a function from a batch size to the processor ms of one picture alone: decoded, prepared, computed.

    Raises Ended if the network would run on another engine here than the server's.
    """
    tell("http: the parts alone")
    (model,) = models.load("visual", catalog.clip(options.model), options.config())
    assert isinstance(model, Visual)  # noqa: S101 - see the kind
    here = f"{model.info.backend} {model.info.precision}"
    if here != engine:
        raise Ended(f"the server ran {engine}, the parts alone run {here}: measure again ({model.info.reason})")
    waiting = itertools.cycle(photos)

    def decoded() -> images.Pixels:
        return images.reduced(next(waiting), pictures.MAX_PIXELS, model.enough_pixels)[0]

    picture = decoded()
    item = model.prepare(picture)
    decode = processor_time(decoded, PARTS_S)
    prepare = processor_time(lambda: model.prepare(picture), PARTS_S)

    def alone(batch: int) -> list[float]:
        items = [item] * min(batch, model.buckets[-1])
        model.run(model.collate(items))  # the first one allocates
        compute = processor_time(lambda: model.run(model.collate(items)), PARTS_S) / len(items)
        return [1000 * seconds for seconds in (decode, prepare, compute)]

    return alone


def _cost(
    parts: Callable[[int], list[float]], found: Mapping[int, Sequence[Round]], tell_of: Callable[..., Row]
) -> list[Row]:
    """Return what a picture costs the server's processor, beside the sum of its parts alone."""
    rows = []
    for callers, each in found.items():
        alone = parts(callers)
        decode, prepare, compute = alone
        say(f"alone, batch {callers}: decode {decode:.1f}, prepare {prepare:.1f}, network {compute:.1f} ms of a core")
        busy = [1000 * one.server_busy / rate.per_s for one, rate in zip(each, of_pictures(each), strict=True)]
        rows.append(
            tell_of(
                *("processor time of a picture, baseline: its parts alone", "ms"),
                *(busy, [sum(alone)] * len(busy)),
                at=callers,
                goal="ratio <= 1.15" if callers in CONCURRENCY[1:] else "",
            )
        )
    return rows


def growth(found: Mapping[int, Sequence[Round]], tell_of: Callable[..., Row]) -> list[Row]:
    """Return how much of the best throughput is left at the worst concurrency behind it, round by round."""
    by_round = zip(*([rate.per_s for rate in of_pictures(each)] for each in found.values()), strict=True)
    left = [min(rates[rates.index(max(rates)) :]) / max(rates) for rates in by_round]
    return [tell_of("least throughput after the peak over the peak", "", left, goal="ours >= 0.95")]


def _beside(found: Found, tell_of: Callable[..., Row]) -> list[Row]:
    """Return the rows of a text beside many pictures."""
    ours, theirs = of_texts(found["ours"]), of_texts(found["baseline"])
    per_s = [one.per_s for one in ours], [one.per_s for one in theirs]
    beside = of_pictures(found["ours"]), of_pictures(found["baseline"])
    case = f"beside {BUSY} pictures: "
    return [
        tell_of(case + "texts of one caller", "texts/s", *per_s, at=BUSY),
        tell_of(case + "p50 of a text", "ms", milliseconds(ours, "p50_s"), milliseconds(theirs, "p50_s"), at=BUSY),
        tell_of(case + "p99 of a text", "ms", milliseconds(ours, "p99_s"), milliseconds(theirs, "p99_s"), at=BUSY),
        tell_of(case + "pictures", "pictures/s", *([one.per_s for one in each] for each in beside), at=BUSY),
    ]
