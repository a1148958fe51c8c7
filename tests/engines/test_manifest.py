import hashlib
import logging
import os
from pathlib import Path

import pytest

from engines import manifest


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"good weights")
    return path


def test_a_record_says_what_was_there(file: Path) -> None:
    manifest.write(file, "https://example.org/weights.bin", "abc", "sha256", manifest.sha256(file))
    record = manifest.read(file.parent)["weights.bin"]
    assert record.source == "https://example.org/weights.bin"
    assert (record.revision, record.size, record.verified) == ("abc", 12, "sha256")
    assert record.sha256 == hashlib.sha256(b"good weights").hexdigest()
    assert not manifest.touched(file)
    assert manifest.mismatch(file) is None


def test_records_of_other_files_stay(file: Path) -> None:
    other = file.with_name("other.json")
    other.write_bytes(b"{}")
    manifest.write(file, "here", "", "by hand", manifest.sha256(file))
    manifest.write(other, "there", "", "git-sha1", manifest.sha256(other))
    assert set(manifest.read(file.parent)) == {"weights.bin", "other.json"}
    manifest.set_aside(file, "it is bad")
    assert set(manifest.read(file.parent)) == {"other.json"}


def test_a_copied_folder_is_read_once_and_then_trusted(file: Path) -> None:
    manifest.write(file, "here", "", "sha256", manifest.sha256(file))
    os.utime(file, ns=(1, 1))
    assert manifest.touched(file)
    assert manifest.mismatch(file) is None
    manifest.refresh(file)
    assert not manifest.touched(file)
    assert manifest.read(file.parent)["weights.bin"].verified == "sha256"


def test_altered_and_shortened_files_are_told_apart(file: Path) -> None:
    manifest.write(file, "here", "", "sha256", manifest.sha256(file))
    file.write_bytes(b"bad! weights")
    assert "sha256" in (manifest.mismatch(file) or "")
    file.write_bytes(b"good")
    assert "it has 4 bytes and had 12" in (manifest.mismatch(file) or "")


def test_a_file_without_a_record_was_brought_by_hand(file: Path) -> None:
    assert not manifest.touched(file)
    assert manifest.mismatch(file) is None
    manifest.refresh(file)
    assert manifest.read(file.parent) == {}


@pytest.mark.parametrize("text", ["", "[]", '{"files": {"weights.bin": {"size": 1}}}', '{"files": 3}', "{"])
def test_a_manifest_that_cannot_be_understood_is_none(file: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    (file.parent / manifest.FILE).write_text(text)
    assert manifest.read(file.parent) == {}
    assert "cannot be understood" in caplog.text


def test_set_aside_keeps_every_broken_file(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = []
    for content in (b"one", b"two", b"three"):
        file.write_bytes(content)
        with caplog.at_level(logging.WARNING):
            names.append(manifest.set_aside(file, "it is cut off").name)
    assert names == ["weights.bin.broken", "weights.bin.broken.2", "weights.bin.broken.3"]
    assert file.with_name("weights.bin.broken.2").read_bytes() == b"two"
    assert "weights.bin is broken: it is cut off. It was set aside as weights.bin.broken.3" in caplog.text
