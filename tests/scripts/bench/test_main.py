"""python -m scripts.bench: what is asked for is measured, told, saved, and stands in the last line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.bench import __main__ as bench
from scripts.bench import ceiling, pictures, queue, record
from scripts.bench.ceiling import Ceiling
from scripts.bench.options import Options
from scripts.bench.record import Row, read, row
from scripts.bench.turns import Ended


@pytest.fixture(autouse=True)
def quick(most: Ceiling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the ceiling and the queue take no time, and results go elsewhere."""
    monkeypatch.setattr(pictures, "PREVIEW", (64, 48))
    monkeypatch.setattr(ceiling, "measure", lambda device, jpeg: most)
    monkeypatch.setattr(queue, "measure", lambda options, most: [row("queue", "lone", "µs", [options.seconds])])
    monkeypatch.setattr(record, "ROOT", tmp_path)
    monkeypatch.setattr(record.save, "__defaults__", (tmp_path / "results",))


def test_the_ceiling_comes_first_and_the_rows_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["queue", "--seconds", "0.5", "--cache", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ceiling of a computer, 2 cores: 100 in float32")
    (one,) = json.loads(lines[-1])
    assert (one["what"], one["case"], one["ours"]) == ("queue", "lone", 0.5)
    assert not (tmp_path / "results").exists()


def test_what_is_saved_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["queue", "--save", "--cache", str(tmp_path)]) == 0
    assert "appended to results/queue.csv" in capsys.readouterr().out
    assert [one["case"] for one in read(tmp_path / "results" / "queue.csv")] == ["lone"]
    assert len(read(tmp_path / "results" / "ceiling.csv")) == 5


def test_what_cannot_be_run_is_told_after_what_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ended(options: Options, most: Ceiling) -> list[Row]:
        raise Ended("the server ended with 1: no weights")

    monkeypatch.setattr(queue, "measure", ended)
    assert bench.main(["queue", "--cache", str(tmp_path)]) == 1
    told = capsys.readouterr()
    assert "queue: the server ended with 1: no weights" in told.err
    assert json.loads(told.out.splitlines()[-1]) == []


def test_what_cannot_be_measured_is_told() -> None:
    command = [sys.executable, "-m", "scripts.bench", "weather"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own interpreter
    assert done.returncode == 2
    assert "cannot measure weather" in done.stderr
