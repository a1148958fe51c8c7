"""The bench of bulk measures whole runs on its photos, and refuses figures of runs that lost one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts.bench import bulk
from scripts.bench.bulk import full_batches, measure, thumbnails
from scripts.bench.ceiling import Ceiling
from scripts.bench.options import Options
from scripts.bench.turns import Ended


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SIZE": (120, 90), "DRAWN": 4, "FOLDER": 20, "PHOTOS": 60, "ENGINE_S": 0.0}.items():
        monkeypatch.setattr(bulk, name, value)
    bulk._drawn.cache_clear()


def test_every_thumbnail_is_another_file_and_drawn_once(tmp_path: Path) -> None:
    folder = thumbnails(tmp_path, 45)
    files = sorted(folder.rglob("*.jpg"))
    assert len({path.read_bytes() for path in files}) == 45
    before = [path.stat().st_mtime_ns for path in files]
    assert thumbnails(tmp_path, 45) == folder
    assert [path.stat().st_mtime_ns for path in files] == before


def test_a_run_is_measured_against_full_batches(options: Options, most: Ceiling) -> None:
    against, large, again, growth = measure(options, most)
    assert against.baseline is not None
    assert against.goal == "ratio >= 0.9"
    assert against.model == "demo"
    assert large.at == again.at == 60
    assert again.ours > large.ours > 0
    assert growth.unit == "MB"


def test_a_photo_that_is_not_embedded_is_no_figure(options: Options, most: Ceiling) -> None:
    (thumbnails(options.cache, bulk.PHOTOS) / "001/21.jpg").write_bytes(b"broken")
    with pytest.raises(Ended, match="1 photos were not embedded"):
        measure(options, most)


def test_the_baseline_runs_the_largest_batch_alone() -> None:
    sizes = []

    class Model:
        buckets = (1, 2, 4)

        def collate(self, items: Any) -> Any:
            return items

        def run(self, batch: Any) -> None:
            sizes.append(len(batch))

    assert full_batches(Model(), np.zeros((2, 2, 3), np.uint8), 0) > 0
    assert set(sizes) == {4}
