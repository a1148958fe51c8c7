"""The parts of the performance page that are made from what was measured, one function for each.

Each takes all results and returns Markdown. Knows the cases of the bench that are put side by side; all others of a
subject follow in a plain table. Does not know how figures are written (tables.py) or drawn (plots.py).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from scripts.bench.options import MODEL
from scripts.bench.record import Row
from scripts.performance import plots
from scripts.performance.results import Group, Result, group_of, grouped, newest, of, runs, waterfall
from scripts.performance.summary import NOT_YET, summary
from scripts.performance.tables import (
    WORDS,
    figure,
    measured,
    medians,
    moment,
    ours,
    plain,
    ratio,
    share,
    spread,
    table,
    target,
    theirs,
    whole,
)

COMMAND = ".venv/bin/python -m scripts.bench"
# What else is measured with each number of callers: medians of ours and of the baseline.
CHECKS = (
    "p99 over concurrency / throughput",
    "processor time of a picture, baseline: its parts alone",
    "lowest cosine to eager float32",
)
HELD = ("resident", "proportional", "unique", "peak")
ENDS = ("overlap of boxes", "cosine of embeddings")
NO_GPU = f"Not measured: no GPU. On a machine that has one: `{COMMAND} engine faces http --device cuda --save`."


def not_yet(*whats: str) -> str:
    """Return what stands where nothing was measured of some subjects, of any where none is named."""
    return f"{NOT_YET.capitalize()}: `{' '.join((COMMAND, *whats))} --save`."


def subject(results: Sequence[Result], what: str, *, at: str = "") -> str:
    """Return everything of a subject in one table."""
    found = of(results, what)
    return f"{plain(found, at=at)}\n\n{measured(found)}" if found else not_yet(what)


def machines(results: Sequence[Result]) -> str:
    """Return the runs that the figures of the page come from, with commands that measure the same, and the ceiling."""
    found = runs(newest(results))
    lines = [
        {
            "date": moment(place.date),
            "machine": f"{place.processor}, {place.cores} cores",
            "commit": place.commit,
            "versions": ", ".join(
                f"{name} {version}"
                for name, version in (
                    ("Python", place.python),
                    ("torch", place.torch),
                    ("torchvision", place.torchvision),
                    ("OpenVINO", place.openvino),
                    ("ONNX Runtime", place.onnxruntime),
                    ("Pillow", place.pillow),
                    ("NumPy", place.numpy),
                )
                if version
            ),
            "to repeat": f"`{command([one for one in results if one.place == place])}`",
        }
        for place in found
    ]
    if not lines:
        return not_yet()
    ceiling = of(results, "ceiling")
    return _parts(table(lines), f"What the machine can do at best:\n\n{plain(ceiling)}" if ceiling else "")


def command(run: Sequence[Result]) -> str:
    """Return a command that measures what `run` did: its subjects, precision, model, device and rounds."""
    rows = [one.row for one in run]
    whats = list(dict.fromkeys(row.what for row in rows if row.what != "ceiling"))
    served = {row.engine.rpartition(" ")[2] for row in rows if row.what in ("http", "text", "start")}
    models = list(
        dict.fromkeys(row.model for row in rows if row.what not in ("bulk", "ceiling", "faces") and row.model)
    )
    rounds = max(row.rounds for row in rows)
    words = [COMMAND, *whats]
    words += ["--precision int8"] if served == {"int8"} else []
    words += [f"--model {' '.join(models)}"] if models not in ([], [MODEL]) else []
    words += ["--growth"] if any("after the peak" in row.case for row in rows) else []
    words += ["--device cuda"] if run[0].on_gpu else []
    return " ".join([*words, f"--rounds {rounds} --save"])


def http(results: Sequence[Result]) -> str:
    """Return throughput and latency of pictures by model, engine and callers, the plots, and all else over HTTP."""
    found = of(results, "http")
    if not found:
        return not_yet("http")
    beside = [one for one in found if one.row.case in (*plots.OVER_HTTP, *CHECKS) and one.row.at is not None]
    places = grouped(beside, lambda one: (one.row.model, one.row.engine, one.row.at or 0.0))
    by_case = [{one.row.case: one.row for one in each} for each in places.values()]
    rest = [one for one in found if one not in beside]
    drawn = [
        _image(name, f"Throughput and latency of {name.removeprefix('http-')} over the number of callers", shown, found)
        for name, shown in plots.served(results).items()
    ]
    return _parts(
        table([_rates(rows) for rows in by_case]) if by_case else "",
        *drawn,
        table([_callers(rows) | {case: medians(rows.get(case)) for case in CHECKS} for rows in by_case])
        if any(case in rows for rows in by_case for case in CHECKS)
        else "",
        plain(rest, at="callers") if rest else "",
        measured(found),
    )


def _callers(rows: Mapping[str, Row]) -> dict[str, str]:
    one = next(iter(rows.values()))
    return {"model": one.model, "engine": one.engine, "callers": whole(one.at)}


def _rates(rows: Mapping[str, Row]) -> dict[str, str]:
    """Return a line of one model, engine and number of callers from its rows by case."""
    rate = rows.get("pictures")
    line = {
        "pictures/s": ours(rate) if rate else "",
        "baseline": theirs(rate) if rate else "",
        "ratio": ratio(rate) if rate else "",
        "of the ceiling": share(rate) if rate else "",
    }
    return _callers(rows) | line | {f"{name}, ours / baseline, ms": medians(rows.get(name)) for name in ("p50", "p99")}


def techniques(results: Sequence[Result]) -> str:
    """Return the waterfalls of a picture and of a text, with their plot."""
    falls = {case: found for case in ("picture", "text") if (found := waterfall(results, case))}
    if not falls:
        return not_yet("techniques")
    shown = [one for found in falls.values() for one in found]
    image = _image("techniques", "Time of one picture and of one text with each technique", shown, shown)
    return _parts(*(_fall(case, found) for case, found in falls.items()), image, measured(shown))


def _fall(case: str, steps: Sequence[Result]) -> str:
    first = steps[0].row
    return table(
        [
            {
                f"one {case}": row.case.removeprefix(f"{case}: "),
                "ms with it": ours(row),
                "ms without": theirs(row),
                "times as fast": spread(*(_inverse(part) for part in (row.ratio, row.ratio_high, row.ratio_low))),
                "in all": figure(first.ours / row.ours),
            }
            for row in (one.row for one in steps)
        ]
    )


def _inverse(part: float | None) -> float | None:
    return 1 / part if part else None


def faces(results: Sequence[Result]) -> str:
    """Return photos/s by faces, size and smallest face, how equal the faces are, and the plots."""
    found = of(results, "faces")
    if not found:
        return not_yet("faces")
    groups = {one.row.case: group for one in found if (group := group_of(one.row.case))}
    rows = {one.row.case: one.row for one in found}
    ends = {case: [f"{case}: lowest {end}" for end in ENDS] for case in groups}
    rest = [one for one in found if one.row.case not in {*groups, *(end for each in ends.values() for end in each)}]
    lines = [_group(group, rows[case], [rows.get(end) for end in ends[case]]) for case, group in groups.items()]
    drawn = plots.faces(results)
    image = _image("faces", "Cost of a photo over pixels, faces and the smallest face", drawn, found) if drawn else ""
    return _parts(table(lines) if lines else "", image, plain(rest) if rest else "", measured(found))


def _group(group: Group, row: Row, equal: Sequence[Row | None]) -> dict[str, str]:
    line = {
        "faces": str(group.faces),
        "photo": f"{group.width}x{group.height}",
        "from": f"{group.smallest} pixels",
        "photos/s": ours(row),
        "facenet-pytorch": theirs(row),
        "ratio": ratio(row),
        "target": target(row),
        "met": WORDS[row.met],
    }
    return line | {f"lowest {end}": ours(other) if other else "" for end, other in zip(ENDS, equal, strict=True)}


def memory(results: Sequence[Result]) -> str:
    """Return what a server holds, by model, engine and step."""
    found = of(results, "memory")
    if not found:
        return not_yet("memory")
    steps: dict[tuple[str, str, str], dict[str, Row]] = {}
    for one in found:
        step, _, name = one.row.case.rpartition(", ")
        steps.setdefault((one.row.model, one.row.engine, step), {})[name] = one.row
    lines = [
        {"model": model, "engine": engine, "with": step}
        | {f"{name}, ours / baseline, MB": medians(rows.get(name)) for name in HELD}
        for (model, engine, step), rows in steps.items()
    ]
    return _parts(table(lines), measured(found))


def gpu(results: Sequence[Result]) -> str:
    """Return everything that a GPU computed, or that there was none."""
    found = newest(one for one in results if one.on_gpu)
    subjects = grouped(found, lambda one: (one.row.what,))
    tables = [f"`{what}`\n\n{plain(each, at='at')}" for (what,), each in subjects.items()]
    return _parts(*tables, measured(found)) if found else NO_GPU


def _image(name: str, words: str, shown: Sequence[Result], found: Sequence[Result]) -> str:
    """Return the link to a plot of `shown`, with its runs where they are not those of `found`, told at the end."""
    link = f"![{words}]({plots.FOLDER}/{name}.svg)"
    return link if runs(shown) == runs(found) else f"{link}\n\nThe plot: {measured(shown)}"


def _parts(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)


BLOCKS: dict[str, Callable[[Sequence[Result]], str]] = {
    "summary": summary,
    "machines": machines,
    "http": http,
    "techniques": techniques,
    "text": partial(subject, what="text", at="callers"),
    "faces": faces,
    "decode": partial(subject, what="decode"),
    "prepare": partial(subject, what="prepare"),
    "engine": partial(subject, what="engine", at="batch"),
    "start": partial(subject, what="start"),
    "memory": memory,
    "queue": partial(subject, what="queue"),
    "gpu": gpu,
}
