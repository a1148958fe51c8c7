"""What makes the folder of an engine good is checked file by file, link by link, mode by mode."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from engines import artefact
from engines.artefact import FILE, File
from engines.errors import ArtefactBroken, BuildFailed
from tests.engines.store_data import KEY, build, manifest


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return build(tmp_path / "engines").folder


def test_the_manifest_reads_as_it_was_written(engine: Path) -> None:
    stored = artefact.read(engine)
    assert stored.folder == engine
    assert stored.manifest.key == KEY
    assert stored.manifest == manifest().model_copy(update={"files": stored.manifest.files})
    text = (engine / FILE).read_text(encoding="utf-8")
    assert '"backend": "openvino"' in text
    artefact.verify(stored)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("timings", {}, r"do not ascend from 1: \[\]"),
        ("timings", {"1": 0.0, "8": 1.0}, r"timings\.1: Input should be greater than 0"),
        ("timings", {"1": 3.0, "8": -1.0}, r"timings\.8: Input should be greater than 0"),
        ("timings", {"1": float("nan"), "8": 1.0}, r"timings\.1: Input should be a finite number"),
        ("timings", {"1": 3.0, "8": None}, r"timings\.8: Input should be a valid number"),
        ("timings", {"8": 3.0, "1": 3.0}, r"do not ascend from 1: \[8, 1\]"),
        ("timings", {"2": 3.0, "8": 3.0}, r"do not ascend from 1: \[2, 8\]"),
        ("timings", {"0": 3.0, "1": 3.0}, r"timings\.0.*: Input should be greater than 0"),
        ("reference_timings", {"1": 3.0}, r"timed for \[1, 8\], eager float32 for \[1\]"),
        ("reference_timings", {"1": 3.0, "8": float("inf")}, r"reference_timings\.8: Input should be a finite number"),
        ("report", {"failures": ["it drifts"]}, "did not pass the gate: it drifts"),
        ("report", {"lowest_cosine": float("nan")}, "not all finite"),
    ],
)
def test_a_manifest_with_odd_numbers_is_not_read(engine: Path, field: str, value: object, reason: str) -> None:
    found = json.loads((engine / FILE).read_text(encoding="utf-8"))
    found[field] = found[field] | value if field == "report" else value
    (engine / FILE).write_text(json.dumps(found), encoding="utf-8")
    with pytest.raises(ArtefactBroken, match=f"{FILE} cannot be understood .*{reason}"):
        artefact.read(engine)


def longer(engine: Path) -> None:
    with (engine / "visual" / "model.bin").open("ab") as file:
        file.write(b"x")


def flip(engine: Path) -> None:
    with (engine / "visual" / "model.bin").open("r+b") as file:
        file.write(b"N")


def replace_by_link(engine: Path) -> None:
    (engine / "model.xml").unlink()
    (engine / "model.xml").symlink_to("visual/model.bin")


def link_a_folder(engine: Path) -> None:
    (engine / "visual").rename(engine.parent / "elsewhere")
    (engine / "visual").symlink_to(engine.parent / "elsewhere")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda engine: os.truncate(engine / "visual" / "model.bin", 2999), "has 2,999 bytes, 3,000 were published"),
        (longer, "has 3,001 bytes, 3,000 were published"),
        (flip, r"visual/model\.bin was changed"),
        (lambda engine: (engine / "model.xml").unlink(), r"model\.xml is missing"),
        (lambda engine: (engine / "extra.so").write_bytes(b""), r"extra\.so does not belong to it"),
        (lambda engine: (engine / "visual" / ".hidden").write_bytes(b""), "does not belong to it"),
        (replace_by_link, r"model\.xml is neither a file nor a folder"),
        (link_a_folder, "visual is neither a file nor a folder"),
        (lambda engine: os.mkfifo(engine / "pipe"), "pipe is neither a file nor a folder"),
        (lambda engine: (engine / "model.xml").chmod(0o666), r"model\.xml can be written by others \(mode 666\)"),
        (lambda engine: (engine / "visual").chmod(0o777), r"visual can be written by others \(mode 777\)"),
    ],
    ids=["cut", "longer", "changed", "missing", "extra", "hidden", "link", "linked", "pipe", "mode", "mode of folder"],
)
def test_whatever_was_done_to_the_files_is_found(engine: Path, spoil: Callable[[Path], object], reason: str) -> None:
    stored = artefact.read(engine)
    spoil(engine)
    with pytest.raises(ArtefactBroken, match=reason):
        artefact.verify(stored)


def test_an_engine_that_went_away_is_broken(engine: Path) -> None:
    stored = artefact.read(engine)
    engine.rename(engine.parent / "gone")
    with pytest.raises(ArtefactBroken, match="is missing"):
        artefact.verify(stored)
    with pytest.raises(ArtefactBroken, match="cannot be read"):
        artefact.read(engine)


def test_sealing_lists_every_file_and_takes_others_rights_away(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    (tmp_path / "part").mkdir()
    (tmp_path / "part").chmod(0o775)
    for name, mode in (("a.so", 0o777), ("part/b.bin", 0o600)):
        (tmp_path / name).write_bytes(b"content")
        (tmp_path / name).chmod(mode)
    sealed = artefact.seal(tmp_path, manifest())
    sha256 = "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"
    assert sealed.files == {"a.so": File(bytes=7, sha256=sha256), "part/b.bin": File(bytes=7, sha256=sha256)}
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path, *tmp_path.rglob("*"))}
    assert modes == {tmp_path.name: 0o755, "part": 0o755, "a.so": 0o755, "b.bin": 0o644, FILE: 0o644}


def test_a_link_is_not_sealed(tmp_path: Path) -> None:
    (tmp_path / "model.bin").symlink_to("/etc/hostname")
    with pytest.raises(BuildFailed, match=r"model\.bin is neither a file nor a folder"):
        artefact.seal(tmp_path, manifest())
    assert not (tmp_path / FILE).exists()


def test_what_belongs_to_another_user_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:
        os.chown(tmp_path, 65534, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 65534)
    assert f"{tmp_path} belongs to user" in str(artefact.distrust(tmp_path))


def test_only_groups_of_this_process_may_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o770)
    assert artefact.distrust(tmp_path) is None
    assert artefact.distrust(tmp_path / "nothing") is None
    group = tmp_path.stat().st_gid
    monkeypatch.setattr(os, "getegid", lambda: group + 1)
    monkeypatch.setattr(os, "getgroups", lambda: [group])
    assert artefact.distrust(tmp_path) is None
    monkeypatch.setattr(os, "getgroups", lambda: [group + 1])
    assert "can be written by others (mode 770)" in str(artefact.distrust(tmp_path))
