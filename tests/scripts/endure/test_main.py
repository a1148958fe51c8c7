"""The command line: which parts run with which options, and that a line that did not hold is an exit code."""

import json
from typing import Any

import pytest

from scripts.endure import __main__ as command
from scripts.endure import report
from scripts.endure.row import Options, Row


def part(name: str, lost: int, seen: list[tuple[str, Options]]) -> Any:
    async def rows(options: Options) -> list[Row]:
        seen.append((name, options))
        return [Row(name, "a trial", 5, lost, 0)]

    return rows


def parts(monkeypatch: pytest.MonkeyPatch, **lost: int) -> list[tuple[str, Options]]:
    """Put parts in place of the real ones that lose so many; return what will have been run."""
    seen: list[tuple[str, Options]] = []
    monkeypatch.setattr(command, "PARTS", {name: part(name, number, seen) for name, number in lost.items()})
    return seen


def test_all_parts_run_and_the_last_line_is_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = parts(monkeypatch, first=0, second=0)
    assert command.main([]) == 0
    assert seen == [("first", Options()), ("second", Options())]
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [(one["part"], one["held"]) for one in last] == [("first", True), ("second", True)]


def test_a_line_that_did_not_hold_ends_with_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    parts(monkeypatch, first=0, second=1)
    assert command.main([]) == 1
    assert command.main(["--only", "first"]) == 0


def test_a_part_that_breaks_off_fails_and_the_others_still_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def broken(options: Options) -> list[Row]:
        raise RuntimeError("the server is gone")

    seen = parts(monkeypatch, first=0, second=0)
    monkeypatch.setitem(command.PARTS, "first", broken)
    assert command.main([]) == 1
    assert [name for name, _ in seen] == ["second"]
    told = capsys.readouterr()
    assert "the server is gone" in told.out
    assert "Traceback" in told.err
    assert "1 of 2 lines held" in told.out


def test_options_reach_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = parts(monkeypatch, first=0, second=0)
    command.main(["--only", "second", "--short", "--seed", "7", "--seconds", "90"])
    assert seen == [("second", Options(short=True, seed=7, seconds=90))]


def test_what_was_counted_is_kept_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    parts(monkeypatch, first=0)
    kept: list[tuple[list[Row], int]] = []
    monkeypatch.setattr(report, "save", lambda rows, place: kept.append((rows, place.cores)))
    command.main([])
    assert not kept
    command.main(["--save"])
    ((rows, cores),) = kept
    assert rows == [Row("first", "a trial", 5, 0, 0)]
    assert cores >= 1


@pytest.mark.parametrize("line", [["--short", "--save"], ["--only", "nothing"], ["--seconds", "-1"]])
def test_a_wrong_command_line_is_refused(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(line)
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err
