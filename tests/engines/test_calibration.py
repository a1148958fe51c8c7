"""int8 is calibrated on what the user gives, or on generated inputs, and never on those of the gate."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engines import calibration, catalog, models, samples
from engines.errors import BuildFailed
from engines.model import Config, Kind

CPU = torch.device("cpu")


def folder_of_pictures(folder: Path, count: int) -> Path:
    rng = np.random.default_rng(1)
    for number in range(count):
        (folder / f"{number % 3}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).save(folder / f"{number % 3}" / f"{number}.PNG")
    return folder


@pytest.mark.parametrize("kind", ["visual", "textual", "recognition"])
def test_generated_inputs_are_none_of_the_gate(kind: Kind, tmp_path: Path) -> None:
    entry = catalog.face("demo") if kind == "recognition" else catalog.clip("demo")
    subject = models.subject_of(kind, entry, Config(tmp_path), CPU)
    batches = subject.calibration()
    assert len(batches) >= 20
    examined = [row for cut in subject._cuts for row in cut.inputs]  # type: ignore[attr-defined]
    assert not [1 for batch in batches for row in examined if torch.equal(batch[0], row)]
    assert {batch.dtype for batch in batches} == {subject.networks[0].dtype}
    shapes = {tuple(batch.shape) for batch in batches}
    assert shapes == ({(1, length) for length in (8, 16, 32, 77)} if kind == "textual" else {(1, *examined[0].shape)})


def test_the_inputs_of_the_gate_are_left_out_of_the_users(tmp_path: Path) -> None:
    file = tmp_path / "searches.txt"
    file.write_text("\n".join([*samples.TEXTS[:9], "a very green bicycle"]), encoding="utf-8")
    of_users, generated = (
        models.subject_of("textual", catalog.clip("demo"), config, CPU).calibration()
        for config in (Config(tmp_path, calibration_texts=file), Config(tmp_path))
    )
    assert len(of_users) == len(generated) + 1


def test_too_few_inputs_are_told(tmp_path: Path) -> None:
    config = Config(tmp_path, calibration=folder_of_pictures(tmp_path / "photos", 3))
    with pytest.raises(BuildFailed, match="3 inputs are too few to calibrate int8 on: give at least 8"):
        models.subject_of("visual", catalog.clip("demo"), config, CPU).calibration()


def test_the_detector_is_not_built_in_int8() -> None:
    subject = models.subject_of("detection", catalog.face("demo"), Config(Path()), CPU)
    with pytest.raises(BuildFailed, match="boxes move in bfloat16"):
        subject.calibration()
    assert subject.no_int8


def test_of_many_pictures_some_are_taken_evenly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = folder_of_pictures(tmp_path, 200)
    (folder / "notes.txt").write_text("no picture", encoding="utf-8")
    found = calibration.pictures(folder)
    assert len(found) == calibration.AT_MOST
    paths = sorted(folder.rglob("*.PNG"))
    assert np.array_equal(found[0], np.array(Image.open(paths[0])))
    assert np.array_equal(found[-1], np.array(Image.open(paths[int(63 * 200 / 64)])))
    assert caplog.records == []


def test_pictures_that_cannot_be_read_are_left_out_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = folder_of_pictures(tmp_path, 4)
    (folder / "broken.jpg").write_bytes(b"no JPEG")
    with caplog.at_level(logging.WARNING):
        assert len(calibration.pictures(folder)) == 4
    assert "broken.jpg is not calibrated on: " in caplog.text


def test_a_folder_without_pictures_is_told(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(BuildFailed, match=r"no picture that can be read in .*: give a folder"):
            calibration.pictures(folder)


def test_texts_are_the_lines_of_a_file_and_generated_ones_of_all_lengths(tmp_path: Path) -> None:
    file = tmp_path / "searches.txt"
    file.write_text("the cat\n\n  the dog \nthe cat\n", encoding="utf-8")
    generated = calibration.texts(None)
    assert calibration.texts(file) == ["the cat", "the dog", *generated]
    assert max(len(text.split()) for text in generated) >= 60
    assert not set(generated) & set(samples.TEXTS)


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\x00"])
def test_a_file_without_texts_is_told(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "searches.txt").write_bytes(content)
    with pytest.raises(BuildFailed, match=r"searches\.txt.*: give a text file in UTF-8, one text per line"):
        calibration.texts(tmp_path / "searches.txt")
