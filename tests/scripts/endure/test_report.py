"""The report: what it prints, what it keeps, and that a part that is run again takes its own place alone."""

from dataclasses import replace
from pathlib import Path

import pytest

from scripts.bench.record import LIBRARIES, Place
from scripts.endure.report import Counted, block, read, save, show, with_block
from scripts.endure.row import Row

PLACE = Place("2026-11-24T12:00:00+00:00", "abc1234", "a computer", 2, "3.11.9", *("1.0" for _ in LIBRARIES))
LATER = replace(PLACE, date="2026-11-25T12:00:00+00:00", commit="def5678")
TEXTS = Row("soak", "texts, of many kinds", 1234, 0, 0, "p50 8 ms")
LOST = Row("faults", "kill -9", 10, 1, 0)
PAGE = "# Title\n<!-- endure -->\nold\n<!-- end endure -->\nend\n"


@pytest.mark.parametrize(("row", "held"), [(TEXTS, True), (LOST, False), (replace(TEXTS, tried=0), False)])
def test_a_row_holds_if_it_was_tried_and_nothing_was_lost_or_wrong(row: Row, held: bool) -> None:
    assert row.held is held


def test_the_table_shows_every_count(capsys: pytest.CaptureFixture[str]) -> None:
    show([TEXTS, LOST])
    lines = capsys.readouterr().out.splitlines()
    (texts,) = (line for line in lines if "texts, of many kinds" in line)
    (lost,) = (line for line in lines if "kill -9" in line)
    assert all(word in texts for word in ("soak", "1,234", "yes", "p50 8 ms"))
    assert all(word in lost for word in ("faults", "10", "1", "no"))


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    file, page = tmp_path / "results" / "endure.csv", tmp_path / "page.md"
    page.write_text(PAGE)
    save([TEXTS, LOST], PLACE, file, page)
    assert read(file) == [Counted(PLACE, LOST), Counted(PLACE, TEXTS)]
    assert "| soak | texts, of many kinds | 1,234 | 0 | 0 | yes | p50 8 ms |" in page.read_text()
    assert "| faults | kill -9 | 10 | 1 | 0 | **no** |" in page.read_text()
    assert "old" not in page.read_text()


def test_a_part_that_is_run_again_takes_its_own_place_alone(tmp_path: Path) -> None:
    file, page = tmp_path / "endure.csv", tmp_path / "page.md"
    page.write_text(PAGE)
    save([TEXTS, LOST], PLACE, file, page)
    again = replace(LOST, lost=0)
    save([again], LATER, file, page)
    assert read(file) == [Counted(LATER, again), Counted(PLACE, TEXTS)]
    assert "Faults: 2026-11-25 12:00 UTC, a computer, 2 cores, commit def5678" in page.read_text()
    assert "Soak: 2026-11-24 12:00 UTC" in page.read_text()


def test_a_page_without_a_place_is_refused_and_nothing_is_kept(tmp_path: Path) -> None:
    file, page = tmp_path / "endure.csv", tmp_path / "page.md"
    page.write_text("# Title\n")
    with pytest.raises(ValueError, match="<!-- endure -->"):
        save([TEXTS], PLACE, file, page)
    assert not file.exists()


def test_a_file_of_other_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "endure.csv").write_text("date,part\n")
    with pytest.raises(ValueError, match="run make endure again"):
        read(tmp_path / "endure.csv")


def test_where_nothing_was_counted_the_page_says_so() -> None:
    assert "Not measured yet: `make endure`." in with_block(PAGE, [])
    assert block([Counted(PLACE, TEXTS)]).startswith("| part | what was tried |")
