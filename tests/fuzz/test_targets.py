"""The targets of the fuzzing stand their seeds, all that was ever found, and a number of changes; and they can fail."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from aiohttp import web

from engines import images, jpeg
from engines.errors import ImageError
from scripts import fuzz_inputs, fuzz_targets
from scripts.endure.mutations import mutated
from server import wire

SEEDS = Path(__file__).parent / "seeds"
PICTURES = sorted((SEEDS / "images").iterdir())
FORMS = sorted((SEEDS / "forms").iterdir())

# Pillow warns of damaged metadata; the filter of engines.images is set before that of pytest.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


@pytest.fixture(scope="module")
def forms() -> Iterator[fuzz_targets.Forms]:
    with contextlib.closing(fuzz_targets.Forms()) as target:
        yield target


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.name)
def test_pictures_of_the_seeds_hold(path: Path) -> None:
    fuzz_targets.picture(path.read_bytes())


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_forms_of_the_seeds_hold(path: Path, forms: fuzz_targets.Forms) -> None:
    forms(path.read_bytes())


def test_seeds_are_small_and_most_of_them_are_right() -> None:
    assert sum(path.stat().st_size for path in (*PICTURES, *FORMS)) < 32_000
    assert len(PICTURES) > 20
    assert {images.probe(path.read_bytes(), 10_000).format for path in PICTURES if path.suffix == ""} >= {
        *("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF")
    }


def test_changes_of_the_seeds_hold(forms: fuzz_targets.Forms) -> None:
    for data in mutated([path.read_bytes() for path in PICTURES], 300, 5):
        fuzz_targets.picture(data)
    for data in mutated([path.read_bytes() for path in FORMS], 500, 5):
        forms(data)


def test_the_targets_find_what_is_wrong(monkeypatch: pytest.MonkeyPatch, forms: fuzz_targets.Forms) -> None:
    data = (SEEDS / "images" / "jpeg-baseline").read_bytes()

    def fails(*_: object) -> None:
        raise KeyError

    with monkeypatch.context() as patch:
        patch.setattr(jpeg, "decode", lambda _, width, height, *__: np.zeros((height, width, 3), np.uint8))
        with pytest.raises(AssertionError):
            fuzz_targets.picture(data)
    with monkeypatch.context() as patch:
        patch.setattr(images, "probe", fails)
        with pytest.raises(KeyError):
            fuzz_targets.picture(data)
    with monkeypatch.context() as patch:
        patch.setattr(images, "probe", _refuses)
        with pytest.raises(AssertionError, match="without a header"):
            fuzz_targets.picture(data)
    form = (SEEDS / "forms" / "multipart").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(wire, "parse", fails)
        with pytest.raises(KeyError):
            forms(form)
    with monkeypatch.context() as patch:
        patch.setattr(wire, "read_form", _first_piece)
        with pytest.raises(AssertionError, match="it depends on how it comes"):
            forms(form)


async def _first_piece(request: web.Request, *_: object) -> wire.Form:
    return {"text": await request.content.readany()}


def _refuses(*_: object) -> None:
    raise ImageError("no")


@pytest.mark.parametrize("target", ["forms", "images"])
def test_the_command_keeps_what_it_finds_in_a_folder_of_its_own(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz_inputs, "REPORT", tmp_path)
    line = fuzz_inputs.command(target, 7, 3)
    assert "-max_total_time=7" in line
    assert "-seed=3" in line
    assert f"-artifact_prefix={tmp_path / target}/" in line
    assert line[-2:] == [str(tmp_path / target / "corpus"), str(SEEDS / target)]
    assert (tmp_path / target / "corpus").is_dir()


def test_without_atheris_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "atheris", None)
    assert fuzz_inputs.main(["forms", "--seconds", "1"]) == 2
    assert "make fuzz installs it" in capsys.readouterr().err
