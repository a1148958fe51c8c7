"""How the bench speaks to a person: tables on standard output, progress on standard error."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from scripts.bench.record import Row

WIDTH = 170  # of tables that go to a file


def tell(sentence: str) -> None:
    """Say what is being done."""
    Console(stderr=True).print(sentence, style="dim", markup=False, highlight=False, soft_wrap=True)


def say(sentence: str) -> None:
    """Print a sentence among the results."""
    Console(soft_wrap=True).print(sentence, markup=False, highlight=False)


def show(rows: Sequence[Row]) -> None:
    """Print rows of one subject as a table."""
    table = Table(title=rows[0].what, title_justify="left")
    for heading in ("what", "at", "unit", "ours", "baseline", "ratio", "of ceiling", "goal", "met"):
        table.add_column(heading, justify="left" if heading in ("what", "unit", "goal") else "right")
    for one in rows:
        table.add_row(
            " ".join(part for part in (one.case, one.engine) if part),
            "" if one.at is None else f"{one.at:g}",
            one.unit,
            _with_spread(one.ours, one.ours_low, one.ours_high),
            _with_spread(one.baseline, one.baseline_low, one.baseline_high),
            _with_spread(one.ratio, one.ratio_low, one.ratio_high),
            "" if one.share is None else f"{one.share:.0%}",
            one.goal,
            one.met,
        )
    screen = Console()
    (screen if screen.is_terminal else Console(width=WIDTH)).print(table)


def _with_spread(median: float | None, low: float | None, high: float | None) -> str:
    if median is None or low is None or high is None:
        return ""
    return number(median) if low == high else f"{number(median)} ({number(low)}–{number(high)})"


def number(figure: float) -> str:
    """Return a figure with three digits that count, and all those before the point."""
    return f"{figure:,.0f}" if abs(figure) >= 100 else f"{figure:.3g}" if abs(figure) < 0.9995 else f"{figure:#.3g}"
