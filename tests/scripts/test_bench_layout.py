"""The layout bench tries each way to share the cores and says what came out."""

from pathlib import Path

import orjson
import pytest

from engines import machine
from scripts import bench_layout


def test_every_layout_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MACHINE_LEARNING_CACHE_FOLDER", str(tmp_path))
    monkeypatch.setenv("MACHINE_LEARNING_PRECISION", "float32")
    monkeypatch.setattr(machine, "cores", lambda: 2)
    monkeypatch.setattr(bench_layout, "ROUNDS", 1)
    monkeypatch.setattr(bench_layout, "PHOTOS", 2)
    assert bench_layout.main(["demo", "--seconds", "0.2"]) == 0
    records = orjson.loads(capsys.readouterr().out.splitlines()[-1])
    layouts = {(one["decoding_threads"], one["computing_threads"], one["streams"]) for one in records}
    assert layouts == {(d, c, s) for d in (1, 2) for c in (1, 2) for s in (1, 2) if s <= c}
    assert all(one["pictures_per_s"] > 0 for one in records)
