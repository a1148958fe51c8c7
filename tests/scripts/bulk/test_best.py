"""What is found in groups is what a search through everything at once finds."""

from pathlib import Path

import numpy as np
import pytest

from scripts.bulk import best
from scripts.bulk.best import nearest
from scripts.bulk.index import Index
from scripts.bulk.table import Row, opened
from tests.scripts.bulk.data import ABOUT, row
from tests.server.fakes import unit

ROWS = [row(number) for number in range(100)]


def indexed(out: Path, rows: list[Row]) -> Path:
    index = Index(out, ABOUT)
    index.begin()
    index.write(rows)
    index.finish()
    return out


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(best, "ROWS", 7)


@pytest.mark.parametrize("top", [1, 3, 100, 500])
def test_the_best_of_all_groups_come_in_order(tmp_path: Path, top: int) -> None:
    out = indexed(tmp_path / "i.parquet", [*ROWS, row(100, failure="cut off")])
    wanted = unit("a search")
    scores = {one.photo.path.decode(): float(one.embedding @ wanted) for one in ROWS if one.embedding is not None}
    found = nearest(*opened(out), wanted, top)
    assert [match.path for match in found] == sorted(scores, key=lambda path: -scores[path])[:top]
    assert [match.score for match in found] == pytest.approx(sorted(scores.values(), reverse=True)[:top], abs=1e-6)
    assert {(match.width, match.height, match.copies) for match in found} == {(640, 480, 0)}


def test_equal_files_are_one_match(tmp_path: Path) -> None:
    twins = [Row(one.photo, one.engine, one.size, ROWS[5].digest, ROWS[5].embedding) for one in ROWS[50:80]]
    out = indexed(tmp_path / "i.parquet", [*ROWS[:50], *twins, *ROWS[80:]])
    wanted = ROWS[5].embedding
    assert wanted is not None
    first, second = nearest(*opened(out), wanted, 2)
    assert (first.path, first.copies, first.also) == ("5.jpg", 30, [f"{number}.jpg" for number in range(50, 60)])
    assert second.score < first.score
    assert np.isclose(first.score, 1.0)


def test_an_index_of_failures_has_no_match(tmp_path: Path) -> None:
    out = indexed(tmp_path / "i.parquet", [row(0, failure="cut off")])
    assert nearest(*opened(out), unit("a search"), 3) == []
