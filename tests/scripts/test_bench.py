"""The bench measures what it says, in rounds far too short for figures."""

import asyncio
import json
import subprocess
import sys
from typing import Any

import pytest

from scripts import bench


async def test_lone_items_come_back_quickly() -> None:
    seconds = sorted(await bench.lone_items(200))
    assert len(seconds) == 200
    assert 0 < seconds[100] < 0.01, "a lone item waits for no timer; the bench has the true figure"


def test_callers_get_most_of_what_the_model_does_alone() -> None:
    model = bench.Timed(0.002, 0.001)
    alone = bench.own_rate(model, object, 0.2)
    assert 500 < alone < 950  # 32 items in 34 ms at the best
    assert asyncio.run(bench.closed_loop(model, object, 0.5)) > 0.7 * alone


def test_the_ceiling_is_that_of_a_computer() -> None:
    assert 1 < bench.matrix_rate() < 100_000


def test_the_records_stand_in_the_last_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def quick(seconds: float) -> dict[str, Any]:
        return {"what": "quick", "seconds": seconds}

    monkeypatch.setitem(bench.BENCHES, "quick", quick)
    monkeypatch.setattr(sys, "argv", ["bench", "quick", "--seconds", "0.5"])
    bench.main()
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == [{"what": "quick", "seconds": 0.5}]


def test_what_cannot_be_measured_is_told() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scripts.bench", "weather"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "cannot measure weather" in done.stderr
