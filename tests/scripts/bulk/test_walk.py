"""Every photo below a folder comes once, whatever its name and the links; what cannot be read is told."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.bulk.walk import Photo, Unread, Walk, shown, suffixes


def put(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def photos(walk: Walk) -> list[bytes]:
    found = list(walk)
    assert not [one for one in found if isinstance(one, Unread)]
    return sorted(one.path for one in found)


def test_photos_come_from_all_depths_with_size_and_time(tmp_path: Path) -> None:
    put(tmp_path / "a.JPG", b"12345")
    os.utime(put(tmp_path / "b/c/d.png"), ns=(1, 1_234_567_890_123_456_789))
    put(tmp_path / "b/film.mov")
    put(tmp_path / "b/no suffix")
    walk = Walk(tmp_path)
    found = {one.path: one for one in walk if isinstance(one, Photo)}
    assert sorted(found) == [b"a.JPG", b"b/c/d.png"]
    assert found[b"a.JPG"].bytes == 5
    assert found[b"b/c/d.png"].modified == 1_234_567_890_123_456_789
    assert walk.others == 2


def test_hidden_names_and_what_file_servers_leave_are_passed_over(tmp_path: Path) -> None:
    for name in ("._a.jpg", ".thumbnails/a.jpg", "b/@eaDir/a.jpg", "b/c.jpg"):
        put(tmp_path / name)
    assert photos(Walk(tmp_path)) == [b"b/c.jpg"]


def test_a_folder_named_like_a_photo_and_a_pipe_are_none(tmp_path: Path) -> None:
    put(tmp_path / "album.jpg/a.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert photos(Walk(tmp_path)) == [b"album.jpg/a.jpg"]


def test_a_name_that_is_no_text_comes_as_it_is_and_is_shown_written_out(tmp_path: Path) -> None:
    name = b"\xff\n\xc3\xa4.jpg"
    put(Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)))
    assert photos(Walk(tmp_path)) == [name]
    assert shown(name) == "\\xff\\nä.jpg"


def test_loops_of_links_have_no_beginning(tmp_path: Path) -> None:
    put(tmp_path / "photos/a/b/c.jpg")
    for number, target in enumerate((tmp_path, tmp_path / "photos", tmp_path / "photos/a")):
        (tmp_path / f"photos/a/b/up{number}").symlink_to(target)
    walk = Walk(tmp_path / "photos")
    assert photos(walk) == [b"a/b/c.jpg"]
    assert walk.links == 3


def test_what_links_lead_to_outside_comes_once(tmp_path: Path) -> None:
    put(tmp_path / "disk/2024/a.jpg")
    put(tmp_path / "disk/2025/b.jpg")
    put(tmp_path / "photos/c.jpg")
    for name in ("one", "two"):
        (tmp_path / "photos" / name).symlink_to(tmp_path / "disk")
    walk = Walk(tmp_path / "photos")
    found = photos(walk)
    assert sorted(path.rpartition(b"/")[2] for path in found) == [b"a.jpg", b"b.jpg", b"c.jpg"]
    assert walk.links == 1


def test_a_link_to_a_photo_is_a_photo(tmp_path: Path) -> None:
    (tmp_path / "b.jpg").symlink_to(put(tmp_path / "a.jpg"))
    assert photos(Walk(tmp_path)) == [b"a.jpg", b"b.jpg"]


def test_a_link_to_the_folder_itself_can_be_walked(tmp_path: Path) -> None:
    put(tmp_path / "photos/a.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    assert photos(Walk(tmp_path / "link")) == [b"a.jpg"]


@pytest.mark.parametrize("name", ["dead.jpg", "disk that is not mounted"])
def test_a_link_that_leads_nowhere_is_told_and_the_walk_goes_on(tmp_path: Path, name: str) -> None:
    put(tmp_path / "a.jpg")
    (tmp_path / name).symlink_to(tmp_path / "nothing")
    found = sorted(Walk(tmp_path), key=lambda one: one.path)
    assert [one.path for one in found] == [b"a.jpg", name.encode()]
    assert found[1] == Unread(name.encode(), "No such file or directory")


def test_a_link_to_itself_is_told(tmp_path: Path) -> None:
    (tmp_path / "self.jpg").symlink_to("self.jpg")
    assert list(Walk(tmp_path)) == [Unread(b"self.jpg", "Too many levels of symbolic links")]


def test_a_folder_that_cannot_be_opened_is_told_and_the_walk_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "closed/a.jpg")
    put(tmp_path / "open/b.jpg")
    scan = os.scandir

    def refusing(path: bytes) -> Iterator["os.DirEntry[bytes]"]:
        if path.endswith(b"closed/"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    found = list(Walk(tmp_path))
    assert Unread(b"closed", "Permission denied") in found
    assert [one.path for one in found if isinstance(one, Photo)] == [b"open/b.jpg"]


def test_a_folder_that_breaks_off_is_told_and_what_is_around_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "broken/a.jpg")
    put(tmp_path / "b.jpg")
    scan = os.scandir

    def breaking(path: bytes) -> Iterator["os.DirEntry[bytes]"]:
        yield from scan(path)
        if path.endswith(b"broken/"):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "scandir", breaking)
    found = list(Walk(tmp_path))
    assert Unread(b"broken", "Input/output error") in found
    assert sorted(one.path for one in found if isinstance(one, Photo)) == [b"b.jpg", b"broken/a.jpg"]


def test_the_walk_holds_no_more_than_it_is_asked_for(tmp_path: Path) -> None:
    for number in range(50):
        put(tmp_path / f"{number}/a.jpg")
    walk = iter(Walk(tmp_path))
    next(walk)
    for number in range(50):
        (tmp_path / f"{number}/a.jpg").unlink()
    assert len(list(walk)) <= 1  # what was met is not remembered, what comes is not looked at ahead


def test_what_can_be_decoded_here_is_what_is_looked_for() -> None:
    assert {b".jpg", b".jpeg", b".png", b".webp", b".tif", b".gif"} <= suffixes()
    assert not {b".mov", b".pdf", b".eps", b""} & suffixes()
