"""What load tests send: all of it different, decodable, with faces where faces are meant."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.bundled_photos import CAPTIONS
from scripts.load import inputs

ROOT = Path(__file__).parents[3]
SIDE = 200


def pixels(jpeg: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))


def test_photos_are_bundled_and_drawn_ones_all_different_and_the_same_each_time() -> None:
    made = list(inputs.photos(len(CAPTIONS) + 2, SIDE))
    assert len(set(made)) == len(made) == len(CAPTIONS) + 2
    assert {max(pixels(one).shape[:2]) for one in made} == {SIDE}
    assert made == list(inputs.photos(len(CAPTIONS) + 2, SIDE))


def test_photos_of_people_show_one_to_four_different_faces() -> None:
    from engines import catalog, models
    from engines.model import Config

    config = Config(Path("nowhere"))
    (detector,) = models.load("detection", catalog.face(catalog.DEMO), config)
    pictures = [pixels(one) for one in inputs.people(8, 480)]
    found = [detector.run([detector.prepare(one, 0.7)])[0] for one in pictures]  # type: ignore[attr-defined]  # of Detector
    assert [len(one.boxes) for one in found] == [1, 2, 3, 4, 1, 2, 3, 4]


def test_a_picture_made_different_has_the_same_pixels() -> None:
    (picture,) = inputs.photos(1, SIDE)
    one, other = inputs.different(picture), inputs.different(picture)
    assert len({picture, one, other}) == 3
    assert np.array_equal(pixels(one), pixels(picture))


def test_pictures_of_a_folder_are_taken_as_jpegs_not_enlarged(tmp_path: Path) -> None:
    Image.new("L", (400, 100), 7).save(tmp_path / "a.png")
    (tmp_path / "below").mkdir()
    Image.new("RGB", (50, 20), "red").save(tmp_path / "below" / "b.WEBP")
    (tmp_path / "notes.txt").write_text("no picture", encoding="utf-8")
    made = [pixels(one).shape for one in inputs.own(tmp_path, 10, SIDE)]
    assert made == [(50, 200, 3), (20, 50, 3)]


def test_a_folder_with_fewer_than_two_pictures_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (50, 20)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="has 1 pictures: name a folder"):
        list(inputs.own(tmp_path, 10, SIDE))


def test_no_torch_is_loaded_for_the_inputs() -> None:
    code = "import sys; from scripts.load import inputs; list(inputs.photos(1, 64)); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S603 - our own interpreter
    assert done.stdout.strip() == "False"
