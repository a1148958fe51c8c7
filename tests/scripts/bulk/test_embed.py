"""Photos become rows, never more on their way than batches take, and one that fails costs no other."""

import asyncio
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console

from engines.errors import ImageError
from engines.model import Info
from scripts.bulk import embed
from scripts.bulk.embed import Run
from scripts.bulk.index import Index
from scripts.bulk.inside import Inside
from scripts.bulk.progress import Progress
from scripts.bulk.table import opened
from server.batcher import Closed
from server.predict import Predictor
from server.shelf import Loaded
from server.wire import Answer, Ask
from tests.scripts.bulk.data import ABOUT
from tests.server.fakes import unit

LARGEST = 4


class FakePredictor:
    """Answers with vectors of the bytes, and counts how many photos are on their way; `act` may raise."""

    def __init__(self, act: Callable[[bytes], None] = lambda image: None) -> None:
        self.act = act
        self.now = 0
        self.most = 0
        self.asked: list[bytes] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def answer(self, ask: Ask, flow: Hashable) -> Answer:
        assert ask.image is not None
        self.asked.append(ask.image)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(0)
            await self.gate.wait()
            self.act(ask.image)
        finally:
            self.now -= 1
        return Answer((4, 3), unit(ask.image))


class FakeModel:
    buckets = (1, 2, LARGEST)
    info = Info("demo", "visual", "cpu", "fake", "float32", "", untrained=True, bytes=0)


class FakeLoaded:
    model = FakeModel()


def library(folder: Path, count: int) -> Path:
    for number in range(count):
        path = folder / f"{number % 3}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"photo {number}".encode())
    return folder


class Indexed:
    """One run of a fake predictor over a folder."""

    def __init__(self, folder: Path, out: Path, predictor: FakePredictor) -> None:
        ready = Inside(cast(Predictor, predictor), [cast(Loaded, FakeLoaded())], threads=2, max_bytes=100)
        self.index = Index(out, ABOUT)
        self.kept = self.index.begin()
        self.progress = Progress(Console(quiet=True), out.with_suffix(".txt"))
        self.run = Run(ready, self.index, folder, Ask(visual="demo"), self.progress)

    async def to_its_end(self) -> list[dict[str, Any]]:
        """Return the rows of the index."""
        try:
            with self.progress:
                await self.run.photos()
            self.index.finish()
        finally:
            self.index.close()
        rows: list[dict[str, Any]] = opened(self.index.out)[0].read().to_pylist()
        return rows


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed, "GROUP", 10)


async def test_every_photo_has_its_own_row(tmp_path: Path) -> None:
    work = Indexed(library(tmp_path / "photos", 95), tmp_path / "i.parquet", FakePredictor())
    rows = await work.to_its_end()
    assert len(rows) == 95
    for row in rows:
        number = row["path"].rpartition("/")[2].removesuffix(".jpg")
        assert row["embedding"] == unit(f"photo {number}".encode()).tolist()
        assert (row["width"], row["height"], row["engine"]) == (4, 3, "fake float32 on cpu")
    assert work.progress.embedded == 95


async def test_enough_photos_for_three_batches_are_on_their_way_and_no_more(tmp_path: Path) -> None:
    predictor = FakePredictor()
    predictor.gate.clear()
    work = Indexed(library(tmp_path / "photos", 200), tmp_path / "i.parquet", predictor)
    running = asyncio.create_task(work.to_its_end())
    async with asyncio.timeout(30):
        while predictor.now < 3 * LARGEST:  # noqa: ASYNC110 - a state, no event
            await asyncio.sleep(0.001)
    predictor.gate.set()
    assert len(await running) == 200
    assert predictor.most == 3 * LARGEST


async def test_few_bytes_are_held_at_one_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed, "BYTES", 30)
    predictor = FakePredictor()
    rows = await Indexed(library(tmp_path / "photos", 50), tmp_path / "i.parquet", predictor).to_its_end()
    assert len(rows) == 50
    assert predictor.most <= 4  # of seven or eight bytes each


async def test_a_second_run_asks_for_nothing_that_is_there(tmp_path: Path) -> None:
    folder, out = library(tmp_path / "photos", 30), tmp_path / "i.parquet"
    await Indexed(folder, out, FakePredictor()).to_its_end()
    (folder / "0/0.jpg").write_bytes(b"another")
    (folder / "1/1.jpg").unlink()
    (folder / "new.png").write_bytes(b"new")
    predictor = FakePredictor()
    again = Indexed(folder, out, predictor)
    rows = await again.to_its_end()
    assert sorted(predictor.asked) == [b"another", b"new"]
    assert (again.kept, again.progress.kept) == (30, 28)
    assert len(rows) == 30


async def test_what_fails_is_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    def act(image: bytes) -> None:
        if image == b"photo 3":
            raise ImageError("It is cut off.")
        if image == b"photo 4":
            raise ZeroDivisionError("by a model")

    folder, out = library(tmp_path / "photos", 30), tmp_path / "i.parquet"
    work = Indexed(folder, out, FakePredictor(act))
    failures = {row["path"]: row["failure"] for row in await work.to_its_end() if row["failure"]}
    assert failures == {"0/3.jpg": "It is cut off.", "1/4.jpg": "ZeroDivisionError: by a model"}
    again = FakePredictor()
    healed = await Indexed(folder, out, again).to_its_end()
    assert sorted(again.asked) == [b"photo 3", b"photo 4"]
    assert not any(row["failure"] for row in healed)


async def test_a_photo_that_goes_while_it_is_met_is_told(tmp_path: Path) -> None:
    folder = library(tmp_path / "photos", 1)
    work = Indexed(folder, tmp_path / "i.parquet", FakePredictor())
    photo = await work.run._next()
    assert photo is not None
    (folder / "0/0.jpg").unlink()
    row = await work.run._row(photo)
    assert row.failure == "The file cannot be read: No such file or directory."
    work.index.close()


async def test_a_file_over_the_limit_is_not_read(tmp_path: Path) -> None:
    folder = library(tmp_path / "photos", 1)
    (folder / "large.tif").write_bytes(bytes(101))
    predictor = FakePredictor()
    rows = await Indexed(folder, tmp_path / "i.parquet", predictor).to_its_end()
    assert predictor.asked == [b"photo 0"]
    assert [row["failure"] for row in rows if row["path"] == "large.tif"] == [
        "The file has 0 MB, which is over MACHINE_LEARNING_MAX_BODY_MB: raise that."
    ]


async def test_where_nothing_can_be_computed_any_longer_the_run_ends_and_what_was_written_stays(tmp_path: Path) -> None:
    predictor = FakePredictor()

    def act(image: bytes) -> None:
        if len(predictor.asked) > 25:
            raise Closed("the scheduler of cpu died: see the log")

    predictor.act = act
    folder, out = library(tmp_path / "photos", 60), tmp_path / "i.parquet"
    with pytest.raises(Closed, match="died"):
        await Indexed(folder, out, predictor).to_its_end()
    assert not out.exists()
    again = Indexed(folder, out, FakePredictor())
    assert again.kept in (10, 20)  # whole groups of the photos before
    assert len(await again.to_its_end()) == 60


async def test_an_index_that_cannot_be_written_ends_the_run(tmp_path: Path) -> None:
    work = Indexed(library(tmp_path / "photos", 60), tmp_path / "i.parquet", FakePredictor())

    def full(rows: object) -> None:
        raise OSError(28, "No space left on device")

    work.index.write = full  # type: ignore[method-assign]
    with pytest.raises(OSError, match="No space left"):
        await work.to_its_end()


async def test_a_run_that_is_stopped_writes_what_was_on_its_way_and_takes_nothing_more_up(tmp_path: Path) -> None:
    predictor = FakePredictor()
    folder, out = library(tmp_path / "photos", 60), tmp_path / "i.parquet"
    work = Indexed(folder, out, predictor)

    def act(image: bytes) -> None:
        if len(predictor.asked) >= 25:
            work.run.stop()

    predictor.act = act
    with work.progress:
        await work.run.photos()
    work.index.close()
    asked = len(predictor.asked)
    assert 25 <= asked < 25 + 3 * LARGEST
    again = Indexed(folder, out, FakePredictor())
    assert again.kept == asked
    again.index.close()
