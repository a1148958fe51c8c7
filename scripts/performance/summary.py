"""What was asked of the server, held against what was measured: the head of the performance page.

Knows the targets' names; their bounds stand in the rows. Where a target holds for many cases, the worst one speaks.
"""

import math
import re
from collections.abc import Sequence

from scripts.performance.results import Result, grouped, newest
from scripts.performance.tables import WORDS, ours, ratio, table, target, theirs, whole

NOT_YET = "not measured yet"
# What was asked, the subject of the bench, and its cases as a regular expression.
ASKED = (
    ("pictures/s over HTTP", "http", "pictures"),
    ("latency of a lone picture over HTTP", "http", "p50"),
    ("p99 of pictures over concurrency / throughput", "http", "p99 over .*"),
    ("throughput that is left after the peak, 1 to 256 callers", "http", "least throughput .*"),
    ("processor time of a picture over its parts alone", "http", "processor time .*"),
    ("cosine of pictures to eager float32", "http", "lowest cosine .*"),
    ("latency of a lone search text", "text", "p50"),
    ("64 search texts at once", "text", "texts"),
    ("share of tokenising in the time of a text", "text", "tokenising.*"),
    ("cosine of texts to eager float32", "text", "lowest cosine .*"),
    ("photos/s of faces found and embedded", "faces", ".* pixels"),
    ("overlap of boxes with facenet-pytorch's", "faces", ".* overlap .*"),
    ("cosine of faces to facenet-pytorch's", "faces", ".* cosine .*"),
    ("prepared pictures: greatest difference to open_clip's", "prepare", ".* greatest .*"),
    ("prepared pictures: mean difference to open_clip's", "prepare", ".* mean .*"),
    ("prepared pictures: cosine to open_clip's", "prepare", ".* cosine .*"),
    ("first `/ping` after the start", "start", "first .*"),
    ("longest wait for a `/ping` while models load", "start", "longest .*"),
    ("preloaded model ready after the first `/ping`", "start", "ready.*"),
    ("memory of both towers", "memory", "both towers, .*"),
    ("what the queue costs each of 10,000 that wait", "queue", "each .*"),
)


def summary(results: Sequence[Result]) -> str:
    """Return the table of targets, on a processor; one that no row has is not measured yet.

    Targets of cases that ASKED does not name follow at the end.
    """
    waiting = [one for one in newest(results) if one.row.goal and not one.on_gpu]
    lines = []
    for asked, what, cases in ASKED:
        found = [one for one in waiting if one.row.what == what and re.fullmatch(cases, one.row.case)]
        waiting = [one for one in waiting if one not in found]
        lines += _lines(asked, found) or [_line(asked)]
    for (asked,), found in grouped(waiting, lambda one: (f"{one.row.what}: {one.row.case}",)).items():
        lines += _lines(asked, found)
    return table(lines)


def _lines(asked: str, found: Sequence[Result]) -> list[dict[str, str]]:
    """Return a line for each model, engine and goal."""
    groups: dict[tuple[str, ...], list[Result]] = {}
    for one in found:
        row = one.row
        groups.setdefault((row.what, row.model, row.engine, row.goal), []).append(one)
    return [_line(asked, each) for each in groups.values()]


def _line(asked: str, found: Sequence[Result] = ()) -> dict[str, str]:
    """Return the line of the worst of `found`, which have one model, engine and goal; of none, that it is missing."""
    row = worst(found).row if found else None
    return {
        "what was asked": asked,
        "of": _of(found) if found else "",
        "unit": row.unit if row else "",
        "ours": ours(row) if row else "",
        "baseline": theirs(row) if row else "",
        "ratio": ratio(row) if row else "",
        "target": target(row) if row else "",
        "met": WORDS[row.met] if row else NOT_YET,
    }


def worst(results: Sequence[Result]) -> Result:
    """Return the one that is farthest from the goal that all of them have, or nearest above it."""
    name, sign, _ = results[0].row.goal.split()

    def badness(one: Result) -> float:
        figure: float | None = getattr(one.row, name)
        if figure is None:
            return math.inf  # there was nothing to compare with
        return figure if sign == "<=" else -figure

    return max(results, key=badness)


def _of(results: Sequence[Result]) -> str:
    """Return what the line of `results` is about, and which of them is the worst."""
    row = worst(results).row
    words = [" ".join(part for part in (row.model, row.engine) if part)]
    if len({one.row.case for one in results}) > 1:
        words.append(row.case)
    elif len({one.row.at for one in results}) > 1:
        words.append(f"at {whole(row.at)}")
    if len(results) > 1:
        words.append(f"worst of {len(results)}")
    return ", ".join(word for word in words if word)
