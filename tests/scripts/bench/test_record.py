"""Rows tell medians, spreads, ratios by round and goals, and come back from their files as they were."""

from dataclasses import fields, replace
from pathlib import Path

import pytest

from scripts.bench.record import COLUMNS, LIBRARIES, Place, Row, place, read, row, save

PLACE = Place("2026-11-23T12:00:00+00:00", "abc1234", "a computer", 2, "3.11.9", *("1.0" for _ in LIBRARIES))


def test_a_row_has_the_median_and_the_spread_of_both_sides() -> None:
    one = row("http", "pictures", "pictures/s", [10.0, 30.0, 20.0], [5.0, 10.0, 8.0])
    assert (one.ours, one.ours_low, one.ours_high) == (20.0, 10.0, 30.0)
    assert (one.baseline, one.baseline_low, one.baseline_high) == (8.0, 5.0, 10.0)
    assert one.rounds == 3


def test_the_ratio_is_that_of_each_round_not_of_the_medians() -> None:
    one = row("http", "pictures", "pictures/s", [10.0, 30.0, 20.0], [5.0, 10.0, 20.0])
    assert (one.ratio, one.ratio_low, one.ratio_high) == (2.0, 1.0, 3.0)


def test_what_has_no_baseline_has_no_ratio() -> None:
    one = row("queue", "lone", "µs", [3.0])
    assert one.baseline is one.ratio is one.ceiling is one.share is None


def test_another_number_of_rounds_is_refused() -> None:
    with pytest.raises(ValueError, match="argument 2"):
        row("http", "pictures", "pictures/s", [1.0, 2.0], [1.0])


@pytest.mark.parametrize(("unit", "share"), [("pictures/s", 0.25), ("ms", 4.0)])
def test_of_rates_the_ceiling_is_the_most_of_times_the_least(unit: str, share: float) -> None:
    assert row("http", "pictures", unit, [10.0], ceiling=40.0).share == share


@pytest.mark.parametrize(
    ("goal", "met"),
    [("", ""), ("ratio >= 2", "yes"), ("ratio >= 2.1", "no"), ("ours <= 10", "yes"), ("ours <= 9.9", "no")],
)
def test_a_goal_is_met_or_not(goal: str, met: str) -> None:
    assert row("http", "pictures", "pictures/s", [10.0], [5.0], goal=goal).met == met


def test_a_goal_for_a_ratio_is_not_met_without_one() -> None:
    assert row("http", "pictures", "pictures/s", [10.0], goal="ratio >= 2").met == "no"


def test_rows_come_back_from_the_file_of_their_subject(tmp_path: Path) -> None:
    first = row("http", "a, with a comma", "pictures/s", [10.0], [5.0], at=8, model="m", ceiling=20.0, goal="ours >= 1")
    second = row("text", "p50", "ms", [1.5])
    assert save([first, second], PLACE, tmp_path) == [tmp_path / "http.csv", tmp_path / "text.csv"]
    save([replace(first, at=32.0)], PLACE, tmp_path)
    one, other = read(tmp_path / "http.csv")
    assert (one["at"], other["at"]) == (8.0, 32.0)
    assert {field.name: one[field.name] for field in fields(Row) if field.name != "rounds"} == {
        field.name: getattr(first, field.name) for field in fields(Row) if field.name != "rounds"
    }
    assert one["processor"] == "a computer"
    (text,) = read(tmp_path / "text.csv")
    assert text["baseline"] is None
    assert text["at"] is None


def test_a_file_of_other_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "http.csv").write_text("date,speed\n2026,fast\n")
    with pytest.raises(ValueError, match="delete it and measure again"):
        save([row("http", "pictures", "pictures/s", [1.0])], PLACE, tmp_path)
    with pytest.raises(ValueError, match="delete it and measure again"):
        read(tmp_path / "http.csv")


def test_the_place_has_versions_and_a_commit() -> None:
    here = place("a computer", 2)
    assert all(getattr(here, name).split(".")[0].isdecimal() for name in ("torch", "numpy", "pillow"))
    assert set(COLUMNS) > {"date", "commit", "processor", "torch", "ratio", "share"}
