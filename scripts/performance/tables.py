"""Figures in words and in tables of Markdown. Does not know what was measured."""

from collections.abc import Mapping, Sequence

from scripts.bench.record import Row
from scripts.bench.show import number
from scripts.performance.results import Result, runs

COSINE = "cosine"  # of a case whose later digits count
SIGNS = {">=": "≥", "<=": "≤"}
WORDS = {"yes": "yes", "no": "**no**", "": ""}


def table(lines: Sequence[Mapping[str, str]]) -> str:
    """Return lines, which have all the same headings, as a table; columns without any word are left out."""
    headings = [heading for heading in lines[0] if any(line[heading] for line in lines)]
    rows = [headings, ["---"] * len(headings), *([line[heading] for heading in headings] for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def plain(results: Sequence[Result], *, at: str = "") -> str:
    """Return a table with a line for each result; `at` heads what they were measured at, "" leaves that out."""
    return table(
        [
            {
                "what": row.case,
                "model": row.model,
                "engine": row.engine,
                at: whole(row.at) if at else "",
                "unit": row.unit,
                "ours": ours(row),
                "baseline": theirs(row),
                "ratio": ratio(row),
                "of the ceiling": share(row),
                "target": target(row),
                "met": WORDS[row.met],
            }
            for row in (one.row for one in results)
        ]
    )


def ours(row: Row) -> str:
    """Return our figure with its spread."""
    return spread(row.ours, row.ours_low, row.ours_high, exact=COSINE in row.case)


def theirs(row: Row) -> str:
    """Return the baseline's figure with its spread, "" if there is none."""
    return spread(row.baseline, row.baseline_low, row.baseline_high, exact=COSINE in row.case)


def medians(row: Row | None) -> str:
    """Return ours and the baseline's figure without spreads, "" for no row."""
    if row is None:
        return ""
    figures = [row.ours] if row.baseline is None else [row.ours, row.baseline]
    return " / ".join(figure(each, exact=COSINE in row.case) for each in figures)


def ratio(row: Row) -> str:
    """Return ours over the baseline with its spread, "" if there is none."""
    return spread(row.ratio, row.ratio_low, row.ratio_high)


def share(row: Row) -> str:
    """Return the share of the ceiling, "" if there is none."""
    return "" if row.share is None else f"{row.share:.0%}"


def target(row: Row) -> str:
    """Return the goal in signs that people read, "" if there is none."""
    if not row.goal:
        return ""
    name, sign, bound = row.goal.split()
    return f"ratio {SIGNS[sign]} {bound}" if name == "ratio" else f"{SIGNS[sign]} {bound} {row.unit}".strip()


def spread(median: float | None, low: float | None, high: float | None, *, exact: bool = False) -> str:
    """Return a median, and the least and the most in brackets where these differ."""
    if median is None or low is None or high is None:
        return ""
    middle, least, most = (figure(each, exact=exact) for each in (median, low, high))
    return middle if least == most else f"{middle} ({least}–{most})"


def figure(value: float, *, exact: bool = False) -> str:
    """Return a figure with the digits that count, six behind the point if `exact`."""
    return f"{value:.6f}" if exact else number(value)


def whole(at: float | None) -> str:
    """Return a whole number, "" for none."""
    return "" if at is None else f"{at:,.0f}"


def measured(results: Sequence[Result]) -> str:
    """Return the sentence that says when and where these were measured."""
    dates: dict[str, list[str]] = {}
    for place in runs(results):
        dates.setdefault(f"{place.processor}, {place.cores} cores", []).append(moment(place.date))
    places = [f"{', '.join(each)} on {machine}" for machine, each in dates.items()]
    return f"Measured {'; '.join(places)}."


def moment(date: str) -> str:
    """Return a date of ISO 8601 as people read it, to the minute."""
    return f"{date[:16].replace('T', ' ')} UTC"
