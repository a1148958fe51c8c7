"""The plots of the performance page, as small SVGs: the same rows give the same bytes.

Knows what is drawn over what. A curve is of one run, since a shared machine drifts between runs; where rows differ in
machine or date the page says so. Does not know which rows count (results.py).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter, StrMethodFormatter

from scripts.bench.record import Row
from scripts.performance.results import Group, Result, curve, group_of, grouped, waterfall
from scripts.performance.tables import figure

OVER_HTTP = ("pictures", "p50", "p99")  # cases that stand side by side
FOLDER = "performance"  # beside the page
COLOURS = ("#0b62a4", "#c8500a", "#2a7f3f", "#7a3e9d", "#8a6d00", "#444444")
BASELINE: dict[str, Any] = {"linestyle": "--", "marker": "o", "fillstyle": "none"}
OURS: dict[str, Any] = {"linestyle": "-", "marker": "o"}
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "facet",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}
SIDES = 3.4  # inches of a panel


def draw(results: Sequence[Result], folder: Path) -> list[Path]:
    """Write the plots of all that was measured into FOLDER under `folder` and return them; others there are deleted."""
    plots: dict[str, Callable[[], Figure]] = {name: partial(_served, shown) for name, shown in served(results).items()}
    if any(falls := techniques(results).values()):
        plots["techniques"] = partial(_techniques, [found for found in falls if found])
    if found := faces(results):
        plots["faces"] = partial(_faces, found)
    target = folder / FOLDER
    target.mkdir(exist_ok=True)
    paths = [target / f"{name}.svg" for name in plots]
    for stale in set(target.glob("*.svg")) - set(paths):
        stale.unlink()
    with style.context(STYLE):
        for path, make in zip(paths, plots.values(), strict=True):
            make().savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    return paths


def served(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Return what the plots of pictures over HTTP show, by file name: of each engine the run with the most callers."""
    found = [one for one in results if one.row.what == "http" and one.row.case in OVER_HTTP and not one.on_gpu]
    shown: dict[str, list[Result]] = {}
    for (model, _), each in grouped(found, lambda one: (one.row.model, one.row.engine)).items():
        points = curve(each)
        if len({one.row.at for one in points}) > 1:
            shown.setdefault(f"http-{model}", []).extend(points)
    return shown


def techniques(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Return the steps that are drawn, for a picture and for a text."""
    return {case: waterfall(results, case) for case in ("picture", "text")}


def faces(results: Sequence[Result]) -> list[Result]:
    """Return the photos that are drawn: those of the run with the most."""
    return curve(one for one in results if one.row.what == "faces" and not one.on_gpu and group_of(one.row.case))


def _panels(rows: int, columns: int, height: float = SIDES) -> tuple[Figure, list[Axes]]:
    whole = Figure(figsize=(SIDES * max(columns, 2), height * rows), layout="constrained")
    return whole, list(whole.subplots(rows, columns, squeeze=False).flat)


def _served(found: Sequence[Result]) -> Figure:
    """Draw pictures/s with its spread, and the median latency with a line up to p99, over the callers."""
    whole, (rate, latency) = _panels(1, 2)
    engines = grouped(found, lambda one: (one.row.engine,))
    for ((engine,), each), colour in zip(engines.items(), cycle(COLOURS), strict=False):
        rows = {case: [one.row for one in each if one.row.case == case] for case in OVER_HTTP}
        _rates(rate, rows["pictures"], engine, colour)
        _latencies(latency, rows["p50"], {row.at: row for row in rows["p99"]}, colour)
    callers = sorted({one.row.at for one in found if one.row.at})
    for axes in (rate, latency):
        axes.set_xscale("log", base=2)
        _ticks(axes, callers)
        axes.set_xlabel("callers at a time")
    rate.set_ylabel("pictures/s")
    rate.set_ylim(bottom=0)
    _legend(rate, fontsize=8)
    _logarithmic(latency, "ms: median, bar up to p99")
    return whole


def _rates(axes: Axes, rows: Sequence[Row], engine: str, colour: str) -> None:
    """Draw rates over `at` with their spread, ours and the baseline's in the same run."""
    for look, name, label in ((OURS, "ours", engine), (BASELINE, "baseline", "baseline in the same run")):
        known = [row for row in rows if getattr(row, name) is not None]
        if known:
            at = [row.at or 0 for row in known]
            low, high = ([getattr(row, f"{name}_{end}") for row in known] for end in ("low", "high"))
            axes.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(at, [getattr(row, name) for row in known], color=colour, label=label, **look)


def _latencies(axes: Axes, p50: Sequence[Row], p99: Mapping[float | None, Row], colour: str) -> None:
    """Draw the median latency over `at`, with a bar up to the p99, ours and the baseline's."""
    for look, name in ((OURS, "ours"), (BASELINE, "baseline")):
        known = [
            row for row in p50 if getattr(row, name) is not None and getattr(p99.get(row.at), name, None) is not None
        ]
        median = [getattr(row, name) for row in known]
        # Spreads are of rounds: of one round the median may lie above the p99 of another.
        bars = [max(0.0, getattr(p99[row.at], name) - getattr(row, name)) for row in known]
        axes.errorbar([row.at or 0 for row in known], median, [[0.0] * len(bars), bars], color=colour, **look)


def _legend(axes: Axes, **options: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(**options)


def _logarithmic(axes: Axes, label: str) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_ylabel(label)


def _ticks(axes: Axes, at: Sequence[float]) -> None:
    axes.xaxis.set_major_locator(FixedLocator(list(at)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(ScalarFormatter())


def _techniques(falls: Sequence[Sequence[Result]]) -> Figure:
    """Draw the time after each technique, and what it saved, beside how many times as fast the way became."""
    whole, panels = _panels(len(falls), 1, height=2.6)
    for axes, steps in zip(panels, falls, strict=True):
        rows = [one.row for one in steps]
        case = rows[0].case.partition(": ")[0]
        names = [row.case.removeprefix(f"{case}: ") for row in rows]
        axes.barh(names, [row.ours for row in rows], color=COLOURS[0])
        saved = [max(0.0, (row.baseline or row.ours) - row.ours) for row in rows]
        axes.barh(names, saved, left=[row.ours for row in rows], color=COLOURS[0], alpha=0.25)
        for number, row in enumerate(rows):
            gain = f", {figure(1 / row.ratio)}×" if row.ratio else ""
            axes.annotate(
                f"{figure(row.ours)} ms{gain}",
                (max(row.ours, row.baseline or 0), number),
                xytext=(4, 0),
                textcoords="offset points",
                verticalalignment="center",
            )
        axes.set_xlim(0, 1.4 * max(row.ours for row in rows))  # room for the words
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(f"ms of one {case}, alone; light: what the technique saved")
    return whole


def _faces(found: Sequence[Result]) -> Figure:
    """Draw the ms of a photo over its pixels, over its faces, and over the smallest face that is looked for."""
    whole, panels = _panels(1, 3)
    groups = [(group, one.row) for one in found if (group := group_of(one.row.case))]
    sizes = {(group.width, group.height) for group, _ in groups}
    # Most photos are of one size with different faces; those of all sizes have as many faces.
    usual = max(sizes, key=lambda size: sum((group.width, group.height) == size for group, _ in groups))
    of_usual = [(group, row) for group, row in groups if (group.width, group.height) == usual]
    others = {group.faces for group, _ in groups if (group.width, group.height) != usual}
    sized = [(group, row) for group, row in groups if group.faces in others]
    pixels, count, smallest = panels
    _costs(pixels, sized, lambda group: group.width * group.height / 1e6, lambda group: f"from {group.smallest} pixels")
    _costs(count, of_usual, lambda group: group.faces, lambda group: f"from {group.smallest} pixels")
    _costs(smallest, of_usual, lambda group: group.smallest, lambda group: f"{group.faces} faces", baseline=False)
    pixels.set_xlabel(f"megapixels, {', '.join(str(number) for number in sorted(others))} faces")
    count.set_xlabel(f"faces in {usual[0]}x{usual[1]}")
    smallest.set_xlabel(f"smallest face in pixels, {usual[0]}x{usual[1]}")
    for axes in panels:
        _logarithmic(axes, "ms of a photo")
    _ticks(smallest, sorted({group.smallest for group, _ in of_usual}))
    _legend(pixels, fontsize=7)
    _legend(count, fontsize=7)
    _legend(smallest, fontsize=7, title="ours", loc="center left", bbox_to_anchor=(1, 0.5))
    return whole


def _costs(
    axes: Axes,
    points: Sequence[tuple[Group, Row]],
    at: Callable[[Group], float],
    name: Callable[[Group], str],
    *,
    baseline: bool = True,
) -> None:
    """Draw the ms of photos over `at`, a line for each `name`."""
    labels = dict.fromkeys(name(group) for group, _ in points)
    for label, colour in zip(labels, cycle(COLOURS), strict=False):
        each = sorted(((group, row) for group, row in points if name(group) == label), key=lambda one: at(one[0]))
        axes.plot(
            [at(group) for group, _ in each], [1000 / row.ours for _, row in each], color=colour, label=label, **OURS
        )
        theirs = [(at(group), 1000 / row.baseline) for group, row in each if row.baseline]
        if baseline and theirs:
            axes.plot(*zip(*theirs, strict=True), color=colour, label=f"{label}, facenet-pytorch", **BASELINE)
