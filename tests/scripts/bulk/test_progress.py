"""Whoever looks at a run sees how far it is, and what failed is written down as it comes."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from scripts.bulk import progress as module
from scripts.bulk.progress import Progress


def test_a_line_now_and_then_where_there_is_no_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY_S", 0.0)
    monkeypatch.setattr(module, "SHOWN_S", 0.0)
    out = io.StringIO()
    with Progress(Console(file=out), tmp_path / "failed.txt") as progress:
        progress.known(1)
        progress.total(4)
        progress.done(b"a.jpg", None)
        progress.done(b"b.jpg", "It is cut off.")
    lines = out.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines[:3]] == ["0 of 3 photos", "1 of 3 photos", "2 of 3 photos"]
    assert lines[2].endswith("1 failed")
    assert (progress.embedded, progress.kept, progress.failed) == (1, 1, 1)


def test_a_terminal_gets_a_bar_with_rate_and_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHOWN_S", 0.0)
    out = io.StringIO()
    with Progress(Console(file=out, force_terminal=True, width=120), tmp_path / "failed.txt") as progress:
        progress.total(200)
        for number in range(100):
            progress.done(b"a.jpg", "broken" if number == 7 else None)
    shown = out.getvalue()
    assert "100/200" in shown
    assert "/s" in shown
    assert "1 failed" in shown


def test_what_failed_is_listed_and_the_first_of_it_remembered(tmp_path: Path) -> None:
    path = tmp_path / "failed.txt"
    with Progress(Console(quiet=True), path) as progress:
        for number in range(50):
            progress.done(b"\xff%d.jpg" % number, "It is\ncut off.")
        progress.unread(b"folder", "Permission denied")
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 51
    assert lines[0] == "\\xff0.jpg\tIt is cut off."
    assert lines[-1] == "folder\tIt cannot be looked into: Permission denied."
    assert progress.first == lines[: module.LISTED]


def test_nothing_is_left_where_nothing_failed(tmp_path: Path) -> None:
    path = tmp_path / "failed.txt"
    path.write_text("of the run before")
    with Progress(Console(quiet=True), path) as progress:
        progress.done(b"a.jpg", None)
    assert not path.exists()
