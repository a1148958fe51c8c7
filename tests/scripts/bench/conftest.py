"""Options that make the bench quick: the demo model, small pictures, rounds far too short for figures."""

from pathlib import Path

import pytest

from engines import catalog
from scripts.bench import ceiling, pictures
from scripts.bench.ceiling import Ceiling
from scripts.bench.options import Options

CEILING = Ceiling("a computer", 2, {"float32": 100.0, "bfloat16": 200.0, "int8": 400.0}, bandwidth=20.0, decoded=200.0)


@pytest.fixture
def most() -> Ceiling:
    """Return what a computer might do."""
    return CEILING


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Options:
    """Return what is asked of the bench, with pictures and matrices made small."""
    monkeypatch.setattr(pictures, "PREVIEW", (320, 240))
    monkeypatch.setattr(pictures, "ORIGINAL", (640, 480))
    monkeypatch.setitem(ceiling.SIDES, "cpu", 256)
    return Options(cache=tmp_path, models=(catalog.DEMO,), seconds=0.01, rounds=2, engine="eager", precision="float32")
