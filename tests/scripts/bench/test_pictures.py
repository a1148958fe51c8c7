"""The pictures are the sizes that they are said to be, all different, and the same at every run."""

import io
from pathlib import Path

import pytest
from PIL import Image

from scripts.bench import pictures


def test_photos_are_previews_of_200_to_400_kilobytes(tmp_path: Path) -> None:
    photos = pictures.photos(tmp_path, 3)
    assert [Image.open(io.BytesIO(photo)).size for photo in photos] == [(1440, 1080)] * 3
    assert all(200_000 <= len(photo) <= 400_000 for photo in photos)
    assert len(set(photos)) == 3


def test_they_are_drawn_once_and_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "PREVIEW", (64, 48))
    (path,) = pictures.photo_paths(tmp_path / "one", 1)
    (other,) = pictures.photo_paths(tmp_path / "other", 1)
    assert path.read_bytes() == other.read_bytes()
    path.write_bytes(b"kept")
    assert pictures.photos(tmp_path / "one", 1) == [b"kept"]


def test_colours_are_not_halved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "PREVIEW", (64, 48))
    (path,) = pictures.photo_paths(tmp_path, 1)
    with Image.open(path) as image:
        assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3  # type: ignore[attr-defined]  # of JPEGs only


def test_a_group_has_its_size_and_no_room_for_any_number(tmp_path: Path) -> None:
    group = Image.open(io.BytesIO(pictures.group(tmp_path, 4, (640, 480))))
    assert group.size == (640, 480)
    with pytest.raises(ValueError, match="ask for fewer"):
        pictures.montage(60, (200, 200), 40)
