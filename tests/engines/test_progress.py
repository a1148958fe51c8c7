"""Whoever loads a model in a thread hears of the downloads of that thread, and of no other."""

import threading
from pathlib import Path

import pytest

from engines import download, progress
from engines.download import FetchFailed, HubFile, NotPublished
from tests.engines.weights_server import COMMIT, hub

FILE = HubFile("timm/some.model", "open_clip_model.safetensors")
CONTENT = bytes(range(256)) * 64


class Heard:
    def __init__(self) -> None:
        self.size = 0
        self.files: list[bool] = []

    def received(self, size: int) -> None:
        self.size += size

    def fetched(self, ok: bool) -> None:
        self.files.append(ok)


def test_bytes_and_files_of_a_download_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    heard = Heard()
    with hub(monkeypatch) as server:
        server.publish(FILE.repo, FILE.name, CONTENT)
        with progress.told_to(heard):
            download.fetch(FILE, tmp_path)
    assert (heard.size, heard.files) == (len(CONTENT), [True])


def test_a_file_that_was_given_up_is_told_and_one_that_is_not_published_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(download, "PAUSE", 0.0)
    heard = Heard()
    with hub(monkeypatch) as server, progress.told_to(heard):
        with pytest.raises(NotPublished):
            download.fetch(FILE, tmp_path)
        assert heard.files == []
        path = server.publish(FILE.repo, FILE.name, CONTENT)
        server.faults[path.replace("main", COMMIT)] = ["corrupt"]
        with pytest.raises(FetchFailed):
            download.fetch(FILE, tmp_path)
    assert heard.files == [False]


def test_other_threads_and_later_downloads_are_not_heard() -> None:
    heard = Heard()
    with progress.told_to(heard):
        thread = threading.Thread(target=progress.received, args=(1000,))
        thread.start()
        thread.join()
        progress.received(1)
    progress.received(10)
    progress.fetched(ok=True)
    assert (heard.size, heard.files) == (1, [])
