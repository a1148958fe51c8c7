"""What the bench has saved, with where it was measured.

Knows rows, runs and which of them count. Does not know how they are shown, nor how anything was measured.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from pathlib import Path
from typing import TypeVar

from scripts.bench import record
from scripts.bench.options import BENCHES
from scripts.bench.record import Place, Row

SUBJECTS = ("ceiling", *BENCHES)  # other files there are not the bench's
# A processor is named with its architecture first, a GPU is not: see engines.machine.identity.
ARCHITECTURES = ("x86_64", "amd64", "aarch64", "arm64")
FACES = re.compile(r"(\d+) faces in (\d+)x(\d+), from (\d+) pixels")

Key = TypeVar("Key", bound=tuple[object, ...])


@dataclass(frozen=True, slots=True)
class Result:
    """One row and its run. All rows of a run have the same `place`."""

    place: Place
    row: Row

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU computed it."""
        return self.place.processor.partition(" ")[0].lower() not in ARCHITECTURES


@dataclass(frozen=True, slots=True)
class Group:
    """What a photo of the faces bench shows: how many faces, how large it is, the smallest face looked for."""

    faces: int
    width: int
    height: int
    smallest: int


def load(folder: Path) -> list[Result]:
    """Return all rows of the bench in `folder`, by date; raises ValueError for a file of other columns."""
    results = []
    for path in sorted(path for what in SUBJECTS if (path := folder / f"{what}.csv").exists()):
        for line in record.read(path):
            figures = {field.name: line[field.name] for field in fields(Row)} | {"rounds": int(line["rounds"])}
            where = {field.name: line[field.name] for field in fields(Place)} | {"cores": int(line["cores"])}
            results.append(Result(Place(**where), Row(**figures)))
    return sorted(results, key=lambda one: one.place.date)


def newest(results: Iterable[Result]) -> list[Result]:
    """Return the last result of every case, model, engine and kind of device; `results` are by date."""
    found: dict[tuple[object, ...], Result] = {}
    for one in results:
        row = one.row
        key = (one.on_gpu, row.what, row.case, row.at, row.model, row.engine)
        found.pop(key, None)  # so that a run stays together
        found[key] = one
    return list(found.values())


def of(results: Iterable[Result], what: str) -> list[Result]:
    """Return the newest results of a subject on a processor."""
    return newest(one for one in results if one.row.what == what and not one.on_gpu)


def waterfall(results: Iterable[Result], case: str) -> list[Result]:
    """Return the steps of the last run of the techniques for `case`, in order: its steps mean nothing without it."""
    steps = (one for one in results if one.row.what == "techniques" and not one.on_gpu)
    found = [one for one in steps if one.row.case.startswith(f"{case}: ")]
    last = [one for one in found if one.place == found[-1].place]
    return sorted(last, key=lambda one: one.row.at or 0)


def curve(results: Iterable[Result]) -> list[Result]:
    """Return those of the run that has the most different `at`, of the last such run, in their order.

    What is measured in different runs makes no curve, since a shared machine drifts.
    """
    by_date = grouped(results, lambda one: (one.place.date,))
    most = max(by_date.values(), key=lambda run: (len({one.row.at for one in run}), run[0].place.date), default=[])
    return sorted(most, key=lambda one: one.row.at or 0)


def grouped(results: Iterable[Result], key: Callable[[Result], Key]) -> dict[Key, list[Result]]:
    """Return the results by `key`, in the order of keys."""
    return {found: list(each) for found, each in groupby(sorted(results, key=key), key)}


def group_of(case: str) -> Group | None:
    """Return what a case of the faces bench measured, None if it is not the rate of a photo."""
    found = FACES.fullmatch(case)
    return Group(*(int(part) for part in found.groups())) if found else None


def runs(results: Sequence[Result]) -> list[Place]:
    """Return the runs that these results come from, the last one first."""
    found = {one.place.date: one.place for one in results}
    return [found[date] for date in sorted(found, reverse=True)]
