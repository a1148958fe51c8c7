"""Search texts over HTTP, through the whole server, in turn with the baseline server: alone, and 64 at once."""

from functools import partial

from engines import catalog, tokenizer
from scripts.bench import reference, served
from scripts.bench.ceiling import Ceiling, gflop
from scripts.bench.drive import Inputs
from scripts.bench.http import milliseconds, of_texts, rounds
from scripts.bench.options import Options
from scripts.bench.record import Row, row
from scripts.bench.sentences import searches
from scripts.bench.turns import processor_time

TEXTS = 400
CALLERS = 64
USUAL = 12  # tokens of a text of 3 to 8 words, both ends included
TOKENISING_S = 0.5


def measure(options: Options, ceiling: Ceiling) -> list[Row]:
    """Measure a lone caller, then 64, and what share of the time of a text is tokenising."""
    texts = searches(TEXTS)
    inputs = Inputs(texts=texts, text_vectors=reference.of_texts(options.model, texts, options.cache))
    with served.both(options, ("textual",)) as servers:
        engine = servers["ours"].engines()["textual"].engine
        found = {
            callers: rounds(servers, options, inputs, f"text, concurrency {callers}", texts=callers)
            for callers in (1, CALLERS)
        }
    tokenize, _ = tokenizer.load(catalog.clip(options.model), options.config())
    tokenising = processor_time(lambda: [tokenize(text, None) for text in texts], TOKENISING_S) / len(texts)
    most = ceiling.items(engine.split()[1], gflop(reference.textual(options.model, options.cache), USUAL))
    tell_of = partial(row, "text", model=options.model, engine=engine)
    rows = []
    for callers, each in found.items():
        ours, theirs = of_texts(each["ours"]), of_texts(each["baseline"])
        lone = callers == 1
        per_s = [one.per_s for one in ours], [one.per_s for one in theirs]
        cosines = [one.lowest_cosine for one in ours if one.lowest_cosine is not None]
        shares = [tokenising * one.per_s for one in ours]
        p50 = milliseconds(ours, "p50_s"), milliseconds(theirs, "p50_s")
        p99 = milliseconds(ours, "p99_s"), milliseconds(theirs, "p99_s")
        rows += [
            tell_of("texts", "texts/s", *per_s, at=callers, ceiling=most, goal="" if lone else "ratio >= 5"),
            tell_of("p50", "ms", *p50, at=callers, goal="ratio <= 0.3" if lone else ""),
            tell_of("p99", "ms", *p99, at=callers),
            tell_of("tokenising, share of the time", "", shares, at=callers, goal="ours <= 0.1"),
            tell_of("lowest cosine to eager float32", "", cosines, at=callers, goal="ours >= 0.999"),
        ]
    return rows
