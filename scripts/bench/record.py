"""What was measured, row by row, and the files that keep it.

Knows medians, spreads, goals and CSV. A row is one figure of ours, beside that of a baseline measured in turn where
there is one; its file is docs/results/<what>.csv. Does not know how anything is measured.
"""

import csv
import operator
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs/results"
LIBRARIES = ("torch", "torchvision", "openvino", "onnxruntime", "pillow", "numpy")
SIGNS = {"<=": operator.le, ">=": operator.ge}
DIGITS = 6


@dataclass(frozen=True, slots=True)
class Row:
    """One measured thing: medians over the rounds, `low` and `high` the least and the most of them.

    `ratio` is ours over the baseline, the median of the ratios of each round; `at` is the number that a case is
    measured at (concurrency, batch, pixels). `ceiling` is what the machine could do in the same unit, `share` what was
    reached of it. `goal` is like "ratio >= 2.2" or "ours <= 50", `met` yes or no. Empty is what does not apply.
    """

    what: str
    case: str
    unit: str
    at: float | None
    model: str
    engine: str
    ours: float
    ours_low: float
    ours_high: float
    baseline: float | None
    baseline_low: float | None
    baseline_high: float | None
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    ceiling: float | None
    share: float | None
    goal: str
    met: str
    rounds: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where and with what it was measured; `commit` ends in "+" where files differed from it."""

    date: str
    commit: str
    processor: str
    cores: int
    python: str
    torch: str
    torchvision: str
    openvino: str
    onnxruntime: str
    pillow: str
    numpy: str


COLUMNS = tuple(field.name for kind in (Place, Row) for field in fields(kind))


def row(
    what: str,
    case: str,
    unit: str,
    ours: Sequence[float],
    baseline: Sequence[float] = (),
    *,
    at: float | None = None,
    model: str = "",
    engine: str = "",
    ceiling: float | None = None,
    goal: str = "",
) -> Row:
    """Return the row of what each round measured; `baseline` is empty or has one figure for each of `ours`.

    A unit that ends in "/s" is a rate, of which more is better; of all others the ceiling is the least possible.
    """
    ratios = [a / b for a, b in zip(ours, baseline, strict=True)] if baseline else []
    mine, theirs, ratio = _spread(ours), _spread(baseline), _spread(ratios)
    median = mine[0]
    assert median is not None, "every row has a figure"  # noqa: S101 - the callers measure before they tell
    share = None
    if ceiling is not None:
        share = _rounded(median / ceiling if unit.endswith("/s") else ceiling / median)
    return Row(
        *(what, case, unit, at, model, engine),
        *mine,  # type: ignore[arg-type]  # ours is never empty
        *theirs,
        *ratio,
        ceiling=None if ceiling is None else _rounded(ceiling),
        share=share,
        goal=goal,
        met=_met(goal, {"ours": median, "ratio": ratio[0]}),
        rounds=len(ours),
    )


def _spread(figures: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    if not figures:
        return None, None, None
    return _rounded(statistics.median(figures)), _rounded(min(figures)), _rounded(max(figures))


def _rounded(figure: float) -> float:
    return float(f"{figure:.{DIGITS}g}")


def _met(goal: str, figures: Mapping[str, float | None]) -> str:
    """Return whether the figures meet a goal like "ratio >= 2.2": yes or no, "" where there is no goal."""
    if not goal:
        return ""
    name, sign, bound = goal.split()
    figure = figures[name]
    return "yes" if figure is not None and SIGNS[sign](figure, float(bound)) else "no"


def place(processor: str, cores: int) -> Place:
    """Return where this is measured, now."""
    return Place(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=_commit(),
        processor=processor,
        cores=cores,
        python=platform.python_version(),
        **{name: _version(name) for name in LIBRARIES},
    )


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""  # it is not installed


def _commit() -> str:
    """Return the commit of this checkout, "" if it is none. What --save and the documents change does not count."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603 - our own command

    try:
        dirty = git("status", "--porcelain", "--", ".", ":!docs")
        return git("rev-parse", "--short", "HEAD") + ("+" if dirty else "")
    except (OSError, subprocess.CalledProcessError):
        return ""  # an installed package, or no git


def save(rows: Sequence[Row], where: Place, folder: Path = RESULTS) -> list[Path]:
    """Append `rows` to the files of their subjects and return these; raises ValueError for a file of other columns."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {one.what: folder / f"{one.what}.csv" for one in rows}
    for what, path in paths.items():
        fresh = not path.exists()
        if not fresh:
            _check_columns(path)
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            if fresh:
                writer.writeheader()
            writer.writerows(asdict(where) | asdict(one) for one in rows if one.what == what)
    return list(paths.values())


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file, figures as numbers and None where there is none; raises ValueError as `save`."""
    _check_columns(path)
    numbers = {field.name for field in fields(Row) if "float" in str(field.type)}
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {name: (float(cell) if cell else None) if name in numbers else cell for name, cell in line.items()}
            for line in csv.DictReader(file)
        ]


def _check_columns(path: Path) -> None:
    with path.open(newline="", encoding="utf-8") as file:
        found = tuple(next(csv.reader(file), ()))
    if found != COLUMNS:
        raise ValueError(f"{path} has other columns than the bench writes now: delete it and measure again")
