"""How the endurance run is told and kept: a table on the screen, docs/results/endure.csv, docs/reliability.md.

Knows rows and the machine that they were counted on. A part that is run again takes the place of what it was before.
"""

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from rich.console import Console
from rich.table import Table

from scripts.bench import record
from scripts.bench.record import Place
from scripts.bench.show import WIDTH
from scripts.endure.row import Row
from scripts.performance.tables import WORDS, moment, table

RESULTS = record.RESULTS / "endure.csv"
PAGE = record.ROOT / "docs" / "reliability.md"
COMMAND = "make endure"
NUMBERS = ("cores", "tried", "lost", "wrong")


@dataclass(frozen=True, slots=True)
class Counted:
    """One row, and where it was counted."""

    place: Place
    row: Row


COLUMNS = tuple(field.name for kind in (Place, Row) for field in fields(kind))


def show(rows: Sequence[Row]) -> None:
    """Print all rows as a table."""
    screen = Console()
    screen = screen if screen.is_terminal else Console(width=WIDTH)
    shown = Table()
    for heading in ("part", "what was tried", "count", "lost", "wrong", "held", "figures"):
        shown.add_column(heading, justify="right" if heading in ("count", "lost", "wrong") else "left")
    for one in rows:
        numbers = (f"{number:,}" for number in (one.tried, one.lost, one.wrong))
        shown.add_row(one.part, one.what, *numbers, "yes" if one.held else "[bold red]no[/]", one.seen)
    screen.print(shown)


def summary(rows: Sequence[Row]) -> str:
    """Return all of it in one sentence."""
    tried, lost, wrong = (sum(getattr(one, name) for one in rows) for name in ("tried", "lost", "wrong"))
    held = sum(one.held for one in rows)
    return f"{held} of {len(rows)} lines held: {tried:,} requests, inputs and faults, {lost:,} lost, {wrong:,} wrong."


def save(rows: Sequence[Row], place: Place, path: Path = RESULTS, page: Path = PAGE) -> None:
    """Keep `rows` in the file, in place of all rows of their parts, and write the table of the page anew.

    Raises ValueError for a file of other columns, and for a page that has no place for the table.
    """
    parts = {one.part for one in rows}
    before = [one for one in read(path) if one.row.part not in parts] if path.exists() else []
    kept = sorted([*before, *(Counted(place, one) for one in rows)], key=lambda one: one.row.part)
    written = with_block(page.read_text(encoding="utf-8"), kept)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(one.place) | asdict(one.row) for one in kept)
    page.write_text(written, encoding="utf-8")


def read(path: Path = RESULTS) -> list[Counted]:
    """Return what is kept; raises ValueError for a file of other columns."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path} has other columns than are written now: delete it, and run {COMMAND} again")
        return [_counted(line) for line in reader]


def _counted(line: dict[str, str]) -> Counted:
    values = {name: int(value) if name in NUMBERS else value for name, value in line.items()}
    place, row = ({field.name: values[field.name] for field in fields(kind)} for kind in (Place, Row))
    return Counted(Place(**place), Row(**row))  # type: ignore[arg-type]  # the columns are theirs


def with_block(text: str, counted: Sequence[Counted]) -> str:
    """Return the text of the page with its table made anew; ValueError where that has no place."""
    before, begin, rest = text.partition("<!-- endure -->\n")
    _, end, after = rest.partition("<!-- end endure -->")
    if not (begin and end):
        raise ValueError("the page has no place for the table: <!-- endure --> … <!-- end endure -->")
    return f"{before}{begin}{block(counted)}\n{end}{after}"


def block(counted: Sequence[Counted]) -> str:
    """Return the table of the page, and below it when and on what each part was counted."""
    lines = [
        {
            "part": one.row.part,
            "what was tried": one.row.what,
            "count": f"{one.row.tried:,}",
            "lost": f"{one.row.lost:,}",
            "wrong": f"{one.row.wrong:,}",
            "held": WORDS["yes" if one.row.held else "no"],
            "figures": one.row.seen,
        }
        for one in counted
    ]
    return f"{table(lines)}\n\n{machines(counted)}" if lines else f"Not measured yet: `{COMMAND}`."


def machines(counted: Sequence[Counted]) -> str:
    """Return a sentence for each run: its parts, its moment, its machine, its commit and versions."""
    runs: dict[Place, list[str]] = {}
    for one in counted:
        parts = runs.setdefault(one.place, [])
        if one.row.part not in parts:
            parts.append(one.row.part)
    return "\n".join(
        f"{', '.join(parts).capitalize()}: {moment(place.date)}, {place.processor}, {place.cores} cores, commit "
        f"{place.commit}, Python {place.python}, torch {place.torch}, Pillow {place.pillow}.  "
        for place, parts in runs.items()
    ).rstrip()
