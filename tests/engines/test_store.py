"""Builds that are killed, broken or made twice leave the store such that whoever reads it finds whole engines only."""

import logging
import multiprocessing
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import ValidationError

from engines import artefact
from engines import store as store_module
from engines.artefact import FILE, Stored
from engines.errors import ArtefactBroken, BuildFailed
from engines.parity import Report
from engines.store import BROKEN_KEPT, Store
from tests.engines.store_data import KEY, OTHER, build, build_until, hold, manifest, no_wait

# Children start in milliseconds from a process that has imported torch once.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.engines.store_data"])
NOBODY = 65534


@pytest.fixture
def folder() -> Iterator[Path]:
    """A store folder that other users may read, which those of pytest are not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name) / "engines"


@contextmanager
def unprivileged() -> Iterator[None]:
    """Obey the modes of files, which root does not."""
    me = os.geteuid()
    if me == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(me)


def entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".lock-")}


def contents(store: Store) -> list[bytes]:
    """Return what all engines of the store hold; ArtefactBroken if one is not whole."""
    found = store.all()
    for stored in found:
        store.verify(stored)
    return [(stored.folder / "model.xml").read_bytes() for stored in found]


def test_a_published_engine_is_found_as_it_was_made(folder: Path) -> None:
    made = build(folder)
    store = Store(folder)
    found = store.find(KEY)
    assert found == made
    assert found.folder == folder / KEY.digest()
    assert found.manifest == manifest().model_copy(update={"files": found.manifest.files})
    assert {name: file.bytes for name, file in found.manifest.files.items()} == {
        "model.xml": 3,
        "visual/model.bin": 3000,
    }
    store.verify(found)
    assert store.all() == [found]
    assert store.find(OTHER) is None
    assert entries(folder) == {KEY.digest()}


def test_an_engine_of_another_machine_stays_and_says_what_differs(folder: Path) -> None:
    build(folder, key=OTHER)
    (stored,) = Store(folder).all()
    assert stored.manifest.key.differences(KEY) == [
        "device: built with 'x86_64 Intel Xeon 6 143', here is 'x86_64 AMD EPYC 25 17'",
        "torch: built with '2.11.0', here is '2.12.1'",
    ]


def test_a_draft_that_is_not_published_is_gone(folder: Path) -> None:
    store = Store(folder)
    with store.draft(KEY) as draft:
        (draft / "half").write_bytes(b"x")
    assert entries(folder) == set()
    assert store.all() == []


def test_two_drafts_at_once_leave_each_other_alone(folder: Path) -> None:
    store = Store(folder)
    with store.draft(KEY) as one, store.draft(OTHER) as other:
        assert one.is_dir()
        assert other.is_dir()
        store.publish(OTHER, other, manifest(OTHER))
        store.publish(KEY, one, manifest(KEY))
    assert entries(folder) == {KEY.digest(), OTHER.digest()}


def test_what_failed_the_gate_is_not_published(folder: Path) -> None:
    store = Store(folder)
    with store.draft(KEY) as draft, pytest.raises(ValidationError, match=r"lowest cosine is 0\.5"):
        store.publish(KEY, draft, manifest(report=Report(0.5, 0.9, 1.0, ("its lowest cosine is 0.5",))))
    with store.draft(KEY) as draft, pytest.raises(ValueError, match="device: built with"):
        store.publish(KEY, draft, manifest(OTHER))
    assert entries(folder) == set()


@pytest.mark.parametrize("before", [None, b"old"], ids=["the first", "a replacement"])
def test_a_build_that_is_killed_at_any_step_leaves_nothing_half_made(
    folder: Path, before: bytes | None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", no_wait)
    # What was there before, or the finished one, or nothing while one takes the other's place.
    allowed: list[list[bytes]] = [[], [b"new"]] if before is None else [[], [b"old"], [b"new"]]
    seen: list[list[bytes]] = []
    step, finished = 0, False
    while not finished:
        shutil.rmtree(folder, ignore_errors=True)
        if before is not None:
            build(folder, before)
        child = PROCESSES.Process(target=build_until, args=(folder, step))
        child.start()
        child.join(60)
        assert child.exitcode in (0, -signal.SIGKILL)
        finished = child.exitcode == 0
        found = contents(Store(folder))
        assert found in allowed
        seen.append(found)
        with Store(folder).draft(OTHER):  # another build clears up
            pass
        assert entries(folder) <= {KEY.digest()}
        assert before is None or contents(Store(folder)) in ([b"old"], [b"new"])
        step += 1
    assert [] in seen  # one that was killed between two renames is the hardest
    assert seen[-1] == [b"new"]
    assert not caplog.records


def test_of_two_builders_one_waits_and_finds_what_the_other_built(folder: Path) -> None:
    held, go = PROCESSES.Event(), PROCESSES.Event()
    told = []

    class Release(logging.Handler):
        """Lets the other go on once this one waits."""

        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())
            go.set()

    handler, logger = Release(), logging.getLogger("engines.store")
    child = PROCESSES.Process(target=hold, args=(folder, held, go))
    child.start()
    assert held.wait(60)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with Store(folder).lock(KEY):
            found = Store(folder).find(KEY)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
        go.set()
        child.join(60)
    assert told == [
        "Waiting for the engine of ViT-B-32__openai (visual, openvino, bfloat16), which another process is building "
        "already"
    ]
    assert found is not None
    assert (found.folder / "model.xml").read_bytes() == b"by the other"
    assert child.exitcode == 0


def test_the_lock_of_a_killed_process_holds_nobody_up(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    held, go = PROCESSES.Event(), PROCESSES.Event()
    child = PROCESSES.Process(target=hold, args=(folder, held, go))
    child.start()
    assert held.wait(60)
    child.kill()
    child.join(60)
    with caplog.at_level(logging.INFO):
        build(folder)
    assert not caplog.records
    assert contents(Store(folder)) == [b"new"]


def test_an_open_draft_of_another_process_is_not_cleared_away(folder: Path) -> None:
    held, go = PROCESSES.Event(), PROCESSES.Event()
    child = PROCESSES.Process(target=hold, args=(folder, held, go))
    child.start()
    assert held.wait(60)
    alive = folder / f".draft-{KEY.digest()}-x"
    alive.mkdir()
    build(folder, key=OTHER)
    assert alive.exists()
    go.set()
    child.join(60)
    assert entries(folder) == {KEY.digest(), OTHER.digest()}


def other_format(engine: Path) -> None:
    text = (engine / FILE).read_text(encoding="utf-8")
    (engine / FILE).write_text(text.replace('"format": 2', '"format": 3'), encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda engine: (engine / FILE).write_text('{"format": 1', encoding="utf-8"), "cannot be understood"),
        (lambda engine: (engine / FILE).write_text("[]", encoding="utf-8"), "format None"),
        (lambda engine: (engine / FILE).write_text('{"format": 2}', encoding="utf-8"), "key: Field required"),
        (lambda engine: (engine / FILE).write_bytes(b"\xff\xfe\x00"), "cannot be understood"),
        (lambda engine: (engine / FILE).unlink(), "cannot be read"),
        (other_format, "format 3, and 2 is read here"),
        (lambda engine: engine.chmod(0o777), "can be written by others"),
    ],
    ids=["cut off", "no object", "no key", "no text", "gone", "other format", "mode"],
)
def test_what_cannot_be_read_is_set_aside_and_told_once(
    folder: Path, spoil: Callable[[Path], object], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = build(folder).folder
    build(folder, key=OTHER)
    spoil(engine)
    store = Store(folder)
    assert [stored.manifest.key for stored in store.all()] == [OTHER]
    assert store.find(KEY) is None
    assert len(store.all()) == 1
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert reason in record.message
    assert "goes on without it" in record.message
    (broken,) = entries(folder) - {OTHER.digest()}
    assert broken.startswith(f".broken-{KEY.digest()}-")


def test_a_folder_that_is_named_for_another_engine_is_set_aside(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(build(folder).folder, folder / OTHER.digest())
    store = Store(folder)
    assert store.find(OTHER) is None
    assert "describes another engine" in caplog.text
    (folder / "notes").mkdir()
    (folder / "read me").write_text("nothing of ours", encoding="utf-8")
    (folder / "link").symlink_to(folder / KEY.digest())
    assert [stored.manifest.key for stored in store.all()] == [KEY]
    assert "It is a link" in caplog.text
    assert (folder / "read me").exists()


def test_a_truncated_file_is_set_aside_on_request(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    store, stored = Store(folder), build(folder)
    os.truncate(stored.folder / "visual" / "model.bin", 2999)
    with pytest.raises(ArtefactBroken, match=r"visual/model\.bin has 2,999 bytes, 3,000 were published") as caught:
        store.verify(stored)
    store.set_aside(stored, str(caught.value))
    assert store.find(KEY) is None
    assert "2,999 bytes" in caplog.text


def test_an_engine_that_took_the_place_of_a_broken_one_stays(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    old = build(folder, b"old")
    build(folder, b"newer")
    Store(folder).set_aside(old, "It is broken.")
    assert contents(Store(folder)) == [b"newer"]
    assert entries(folder) == {KEY.digest()}
    assert not caplog.records


def test_one_that_became_readable_while_it_was_looked_at_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = build(folder, b"old").folder
    (engine / FILE).unlink()
    read = artefact.read

    def read_slowly(path: Path) -> Stored:
        """Another builder publishes between the look at the manifest and what follows from it."""
        monkeypatch.setattr(artefact, "read", read)
        try:
            return read(path)
        finally:
            build(folder, b"newer")

    monkeypatch.setattr(artefact, "read", read_slowly)
    assert Store(folder).find(KEY) is None
    assert contents(Store(folder)) == [b"newer"]
    assert entries(folder) == {KEY.digest()}


def test_what_another_process_builds_anew_is_left_to_it(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    stored = build(folder, b"old")
    held, go = PROCESSES.Event(), PROCESSES.Event()
    child = PROCESSES.Process(target=hold, args=(folder, held, go))
    child.start()
    assert held.wait(60)
    store = Store(folder)
    for _ in range(2):
        store.set_aside(stored, "It is broken.")
    (stored.folder / FILE).unlink()
    assert store.all() == []
    go.set()
    child.join(60)
    assert contents(store) == [b"by the other"]
    assert entries(folder) == {KEY.digest()}
    messages = [record.message for record in caplog.records]
    assert len(messages) == 2
    assert all("is ignored while another process builds it" in message for message in messages)


def test_only_the_newest_broken_ones_are_kept(folder: Path) -> None:
    store = Store(folder)
    for number in range(BROKEN_KEPT + 2):
        stored = build(folder, str(number).encode(), key=(KEY, OTHER)[number % 2])
        store.set_aside(stored, "It is broken.")
    kept = sorted(path.read_bytes() for path in folder.glob(".broken-*/model.xml"))
    assert kept == [b"2", b"3", b"4", b"5", b"6"]


def test_a_missing_folder_is_an_empty_store(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(folder / "nowhere")
    assert store.all() == []
    assert store.find(KEY) is None
    assert store.refusal(KEY) is None
    assert not folder.exists()
    assert not caplog.records


def test_a_folder_that_cannot_be_written_is_read(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    build(folder)
    broken = build(folder, key=OTHER).folder
    (broken / FILE).write_text("{", encoding="utf-8")
    folder.chmod(0o555)
    try:
        with unprivileged():
            store = Store(folder)
            assert contents(store) == [b"new"]
            assert contents(store) == [b"new"]
            assert store.find(OTHER) is None
            with pytest.raises(BuildFailed, match="make it writable"), store.draft(OTHER):
                pass
            with pytest.raises(BuildFailed, match="make it writable"):
                store.refuse(OTHER, "it drifts")
    finally:
        folder.chmod(0o755)
    (record,) = caplog.records
    assert "is ignored" in record.message
    assert "cannot be set aside (Permission denied)" in record.message


def test_what_takes_the_place_of_an_ignored_one_is_used(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (build(folder).folder / FILE).write_text("{", encoding="utf-8")
    store = Store(folder)
    folder.chmod(0o555)
    try:
        with unprivileged():
            assert [store.find(KEY), store.find(KEY)] == [None, None]
    finally:
        folder.chmod(0o755)
    assert len(caplog.records) == 1
    build(folder, b"newer")
    with unprivileged():
        assert contents(store) == [b"newer"]


def test_a_process_has_one_store_for_a_folder(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    build(folder)
    folder.chmod(0o777)
    assert [store_module.at(folder).all(), store_module.at(folder).all()] == [[], []]
    assert len(caplog.records) == 1
    assert store_module.at(folder) is not store_module.at(folder / "another")


def test_a_folder_that_cannot_be_read_is_told_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    build(folder)
    folder.chmod(0o000)
    try:
        with unprivileged():
            store = Store(folder)
            assert [store.all(), store.all(), store.find(KEY)] == [[], [], None]
    finally:
        folder.chmod(0o755)
    (record,) = caplog.records
    assert "cannot be read" in record.message


def test_a_folder_that_others_can_write_to_is_refused(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    build(folder)
    folder.chmod(0o777)
    store = Store(folder)
    assert [store.all(), store.find(KEY), store.refusal(KEY)] == [[], None, None]
    with pytest.raises(BuildFailed, match=r"can be written by others \(mode 777\)"), store.lock(KEY):
        pass
    (record,) = caplog.records
    assert f"`chmod -R go-w {folder}`" in record.message


def test_a_refusal_is_kept_until_the_engine_passes(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(folder)
    store.refuse(KEY, "its lowest cosine is 0.98")
    assert Store(folder).refusal(KEY) == "its lowest cosine is 0.98"
    assert store.refusal(OTHER) is None
    assert store.all() == []
    (note,) = folder.glob(".refused-*")
    note.write_text("{", encoding="utf-8")
    assert store.refusal(KEY) is None
    assert "may be built once more" in caplog.text
    store.refuse(KEY, "again")
    build(folder)
    assert store.refusal(KEY) is None


NEWER = KEY.model_copy(update={"torch": "2.13.0", "code": "2" * 32, "inputs": "visual: other shapes"})


@pytest.mark.parametrize(
    ("changes", "stays"),
    [
        ({}, False),
        ({"weights": "3" * 32}, True),  # random ones beside real ones
        ({"device": "x86_64 Intel Xeon 6 143"}, True),
        ({"instructions": "avx2"}, True),
        ({"kind": "textual"}, True),
        ({"precision": "float32"}, True),
        ({name: getattr(NEWER, name) for name in ("torch", "code")}, True),  # other shapes alone
    ],
)
def test_an_engine_replaces_those_of_other_versions_on_the_same_device(
    folder: Path, changes: dict[str, str], stays: bool
) -> None:
    older = KEY.model_copy(update=changes)
    refused = older.model_copy(update={"preparation": "another"})
    store = Store(folder)
    build(folder, key=older)
    store.refuse(refused, "it drifts")
    build(folder, key=NEWER)
    assert {stored.manifest.key for stored in store.all()} == ({older, NEWER} if stays else {NEWER})
    assert store.refusal(refused) == ("it drifts" if stays else None)
    assert len(entries(folder)) == (3 if stays else 1)


def test_a_refusal_replaces_refusals_alone(folder: Path) -> None:
    store = Store(folder)
    build(folder)
    refused = KEY.model_copy(update={"preparation": "another"})
    store.refuse(refused, "it drifts")
    store.refuse(NEWER, "it drifts still")
    assert (store.refusal(refused), store.refusal(NEWER)) == (None, "it drifts still")
    assert [stored.manifest.key for stored in store.all()] == [KEY]


def test_an_older_engine_that_another_process_holds_is_not_deleted(folder: Path) -> None:
    build(folder, b"old")
    held, go = PROCESSES.Event(), PROCESSES.Event()
    child = PROCESSES.Process(target=hold, args=(folder, held, go))
    child.start()
    assert held.wait(60)
    build(folder, key=NEWER)
    found = {stored.manifest.key for stored in Store(folder).all()}
    go.set()
    child.join(60)
    assert found == {KEY, NEWER}


def test_what_cannot_be_read_or_is_not_ours_does_not_keep_an_engine_from_being_published(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = build(folder).folder
    (broken / FILE).write_text("{", encoding="utf-8")
    (folder / ".refused-odd.json").write_text("{", encoding="utf-8")
    (folder / "read me").write_text("nothing of ours", encoding="utf-8")
    build(folder, key=NEWER)
    assert Store(folder).find(NEWER) is not None
    assert broken.exists()
    assert ".refused-odd.json cannot be read or deleted" in caplog.text
