"""Files that cost more than their pixels are refused, at next to no cost; what cameras and programs write is not."""

import subprocess
import sys

import pytest

from engines import images, pieces
from engines.errors import ImageError, ImageTooLarge
from scripts.endure.specimens import KINDS, specimens
from tests.engines.hostile import BOMBS, FLOODS, HEAVY, gif, jpeg, png, scans, segment

MAX_PIXELS = 200_000_000


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_of_pieces_is_refused_with_what_to_do(name: str) -> None:
    make, told = FLOODS[name]
    data = make()
    for read in (images.probe, images.decode):
        with pytest.raises(ImageError, match=f"(?s){told}.*send"):
            read(data, MAX_PIXELS)


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_by_its_header(name: str) -> None:
    data = BOMBS[name]()
    for read in (images.probe, images.decode):
        with pytest.raises(ImageTooLarge, match="MACHINE_LEARNING_MAX_PIXELS"):
            read(data, MAX_PIXELS)


@pytest.mark.parametrize("name", HEAVY)
def test_a_small_picture_with_much_beside_it_is_read(name: str) -> None:
    data = HEAVY[name]()
    assert images.decode(data, MAX_PIXELS, exif=True).shape[2] == 3


COST = """
import resource, sys, time
from engines import images
from engines.errors import ImageError
from tests.engines import hostile
images.decode(hostile.jpeg(), 200_000_000)
floods = [(name, make) for name, (make, _) in hostile.FLOODS.items()]
for name, make in [*hostile.BOMBS.items(), *floods, *hostile.HEAVY.items()]:
    data = make()
    grown, spent = [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss], time.process_time()
    for read in (images.probe, images.decode):
        try:
            read(data, 200_000_000)
        except ImageError:
            pass
    spent = time.process_time() - spent
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - grown[0]
    print(name, len(data), spent, grown * 1024, sep="\\t")
"""


def test_none_of_them_costs_much_time_or_memory() -> None:
    """Of a file itself Pillow holds up to three copies; 70 MB is what it unpacks of texts in a PNG."""
    run = subprocess.run([sys.executable, "-c", COST], capture_output=True, text=True, check=True)  # noqa: S603 - our own text
    lines = [line.split("\t") for line in run.stdout.splitlines()]
    assert len(lines) == len(BOMBS) + len(HEAVY) + len(FLOODS)
    dear = [
        (name, seconds, grown)
        for name, size, seconds, grown in lines
        if float(seconds) > 1.5 or int(grown) > 3 * int(size) + 110_000_000
    ]
    assert dear == []
    assert run.stderr == ""


@pytest.mark.parametrize("kind", KINDS)
def test_right_pictures_of_every_kind_pass(kind: str) -> None:
    for data in specimens(kind):
        pieces.check(data, 96 * 64)


def test_what_is_allowed_passes_and_one_more_does_not() -> None:
    def refused(data: bytes) -> bool:
        try:
            pieces.check(data, 64 * 64)
        except ImageError:
            return True
        return False

    own = jpeg().count(b"\xff\xda")
    assert own == 1
    exif = segment(0xE1, b"Exif\0\0")
    assert not refused(jpeg(exif * pieces.MOST_EXIF_SEGMENTS))
    assert refused(jpeg(exif * (pieces.MOST_EXIF_SEGMENTS + 1)))
    # Of a progressive JPEG the last scan is repeated, which comes behind nine others.
    before = jpeg(progressive=True).count(b"\xff\xda") - 1
    assert before > 3
    assert not refused(scans(pieces.MOST_SCANS - before))
    assert refused(scans(pieces.MOST_SCANS - before + 1))
    assert not refused(gif((8, 8, 56, 56)))
    assert refused(gif((8, 8, 56, 57)))
    assert not refused(png(1, 1)[:40])
    assert not refused(b"GIF89a")


def test_scans_of_pictures_behind_the_end_do_not_count() -> None:
    data = jpeg() + jpeg() * pieces.MOST_SCANS * 2
    assert images.decode(data, MAX_PIXELS).shape == (64, 64, 3)
