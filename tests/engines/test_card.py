"""What is let through to the GPU's decoder, and its whole way on the processor: the same functions run there."""

import io
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from engines import card, catalog, clip, images, preprocess, samples
from engines.card import Card
from engines.catalog import ResizeMode
from engines.model import Config

CPU = torch.device("cpu")
SIZE = 96
BUCKETS = (1, 2, 4, 8)
PHOTO = samples.photo("coffee")  # 600x400


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **{"quality": 90, **options})
    return file.getvalue()


PLAIN = encoded(PHOTO)


def adobe(transform: int) -> bytes:
    """Return PLAIN with Adobe's segment behind its begin."""
    return PLAIN[:2] + b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform]) + PLAIN[2:]


def renamed() -> bytes:
    """Return PLAIN with components that are called R, G and B."""
    frame = PLAIN.index(b"\xff\xc0") + 10
    names = bytearray(PLAIN)
    names[frame : frame + 9 : 3] = b"RGB"
    return bytes(names)


def items_of(*jpegs: bytes) -> list[NDArray[np.uint8]]:
    return [np.frombuffer(jpeg, np.uint8) for jpeg in jpegs]


def a_card(mode: ResizeMode = "shortest", floor_offset: bool = False) -> Card:
    return Card(CPU, BUCKETS, SIZE, mode, floor_offset)


@pytest.mark.parametrize("sampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_usual_jpegs_are_plain(sampling: str) -> None:
    assert card.is_plain(encoded(PHOTO, subsampling=sampling))
    assert card.is_plain(encoded(PHOTO, subsampling=sampling, exif=b"Exif\0\0MM\0*" + b"\0" * 200))


def test_grey_ones_and_those_of_adobe_in_ycbcr_are_plain() -> None:
    assert card.is_plain(encoded(PHOTO.convert("L")))
    assert card.is_plain(adobe(1))


OTHERS = {
    "progressive": encoded(PHOTO, progressive=True),
    "CMYK": encoded(PHOTO.convert("CMYK")),
    "Adobe RGB": adobe(0),
    "Adobe YCCK": adobe(2),
    "R G B": renamed(),
    "extended": PLAIN.replace(b"\xff\xc0", b"\xff\xc1", 1),
    "12 bits": PLAIN.replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c", 1),
    "4:1:1": PLAIN.replace(b"\x01\x22\x00", b"\x01\x41\x00", 1),
    "cut off": PLAIN[:-2],
    "more behind it": PLAIN + b"trailer",
    "PNG": encoded(PHOTO, "PNG"),
    "empty": b"",
    "nothing in it": b"\xff\xd8\xff\xd9",
    "segments without a length": b"\xff\xd8" + b"\xff\xe0\x00\x00" * 5 + b"\xff\xd9",
    "half a frame": b"\xff\xd8\xff\xc0\x00\x04\x08\x00\xff\xd9",
}


@pytest.mark.parametrize("kind", OTHERS)
def test_all_others_are_not(kind: str) -> None:
    assert not card.is_plain(OTHERS[kind])


def test_a_header_decides_what_is_taken() -> None:
    taker = a_card()
    header = images.probe(PLAIN, 1_000_000)
    assert taker.takes(header, PLAIN)
    for other in (
        replace(header, format="MPO"),
        replace(header, width=SIZE - 1),  # would be enlarged
        replace(header, width=8000, height=card.MOST_PIXELS // 8000 + 1),
        replace(header, width=SIZE * 9, height=SIZE),  # a strip
    ):
        assert not taker.takes(other, PLAIN)


@pytest.mark.parametrize("mode", ["shortest", "squash"])
@pytest.mark.parametrize("floor_offset", [False, True])
def test_squares_are_those_of_the_processor_within_a_level(mode: ResizeMode, floor_offset: bool) -> None:
    sizes = [(600, 400), (401, 603), (97, 96), (96, 200), (1440, 1080)]
    jpegs = [encoded(PHOTO.resize(size)) for size in sizes]
    upload = a_card(mode, floor_offset).upload(items_of(*jpegs))
    assert (upload.rows, upload.batch.shape, upload.unread) == (5, (8, SIZE, SIZE, 3), frozenset())
    for jpeg, square in zip(jpegs, upload.batch.numpy(), strict=False):
        pixels = images.decode(jpeg, card.MOST_PIXELS)
        expected = preprocess.prepare(pixels, SIZE, mode, floor_offset)
        difference = np.abs(square.astype(int) - expected)
        assert difference.max() <= 1
        assert difference.mean() <= 0.01


def test_a_mixed_batch_keeps_its_rows_and_pads_with_the_last() -> None:
    square = np.full((SIZE, SIZE, 3), 7, np.uint8)
    grey = encoded(Image.new("L", (200, 150), 90))
    upload = a_card().upload([square, *items_of(grey), square])
    first, second, third, padding = upload.batch.numpy()
    assert (first == 7).all()
    assert (second == 90).all()
    assert (third == 7).all()
    assert (padding == third).all()


def test_a_jpeg_that_is_refused_costs_the_others_nothing(caplog: pytest.LogCaptureFixture) -> None:
    broken = PLAIN[:600] + b"\xff\xd9"
    others = [encoded(samples.photo(name)) for name in samples.PHOTOS]
    taker = a_card()
    alone = taker.upload(items_of(*others)).batch.numpy()[: len(others)]
    with caplog.at_level(logging.INFO):
        upload = taker.upload(items_of(*others[:3], broken, *others[3:]))
    assert upload.unread == {3}
    rows = upload.batch.numpy()[: upload.rows]
    assert np.array_equal(np.delete(rows, 3, axis=0), alone)
    assert [record.message.partition(":")[0] for record in caplog.records] == ["a JPEG is left to the processor"]


def test_a_picture_that_cannot_be_shrunk_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = card.shrunk

    def full(picture: torch.Tensor, *rest: Any) -> torch.Tensor:
        if picture.shape[2] > 600:
            raise RuntimeError("CUDA out of memory\nand more")
        return whole(picture, *rest)

    monkeypatch.setattr(card, "shrunk", full)
    with caplog.at_level(logging.INFO):
        upload = a_card().upload(items_of(encoded(PHOTO.resize((900, 600))), PLAIN))
    assert upload.unread == {0}
    assert caplog.messages == ["a picture of 900x600 is left to the processor: CUDA out of memory"]


def test_where_no_jpeg_is_decoded_and_why() -> None:
    gpu = torch.device("cuda", 0)
    assert card.unavailable(gpu, (0,)) is None
    assert "models run on cpu" in str(card.unavailable(CPU, (0,)))
    assert "name one in MACHINE_LEARNING_DEVICE_IDS" in str(card.unavailable(gpu, (0, 1)))


@pytest.fixture(scope="module")
def visual() -> clip.Visual:
    return clip.load_visual(catalog.clip("demo"), Config(cache_folder=Path("no folder")), CPU)


def card_of(visual: clip.Visual) -> Card:
    return Card(CPU, visual.buckets, SIZE, "shortest", floor_offset=False)


def test_vectors_are_those_of_the_processors_way(visual: clip.Visual) -> None:
    jpegs = list(card.gate_jpegs().values())
    assert not visual.takes_jpeg(images.probe(PLAIN, 1_000_000), PLAIN)
    visual.decode_on(card_of(visual))
    assert visual.takes_jpeg(images.probe(PLAIN, 1_000_000), PLAIN)
    broken = PLAIN[:600] + b"\xff\xd9"
    squares = [visual.prepare(images.decode(jpeg, card.MOST_PIXELS)) for jpeg in jpegs[:5]]
    expected = visual.run(visual.collate(squares))
    found = visual.run(visual.collate([*items_of(*jpegs[:2], broken, jpegs[2]), *squares[3:]]))
    assert found.pop(2) is None
    assert all(np.dot(a, b) >= card.LOWEST_COSINE for a, b in zip(expected, found, strict=True))


def test_a_decoder_that_changes_vectors_is_refused(
    visual: clip.Visual, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole: Any = vars(card)["decode_jpeg"]

    def reddened(jpegs: Any, *rest: Any) -> list[torch.Tensor]:
        return [picture.flip(0) for picture in whole(jpegs, *rest)]

    monkeypatch.setattr(card, "decode_jpeg", reddened)
    with caplog.at_level(logging.WARNING):
        visual.decode_on(card_of(visual))
    assert not visual.takes_jpeg(images.probe(PLAIN, 1_000_000), PLAIN)
    (message,) = caplog.messages
    assert message.startswith("demo: pictures are decoded by the processor, since the vector of astronaut in 4:4:4 has")


def test_a_decoder_that_is_not_there_is_refused(
    visual: clip.Visual, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def absent(*args: Any) -> None:
        raise RuntimeError("torchvision not compiled with nvJPEG support")

    monkeypatch.setattr(card, "decode_jpeg", absent)
    with caplog.at_level(logging.INFO):
        visual.decode_on(card_of(visual))
    assert not visual.takes_jpeg(images.probe(PLAIN, 1_000_000), PLAIN)
    assert "a JPEG is left to the processor: torchvision not compiled with nvJPEG support" in caplog.messages
    assert caplog.messages[-1].endswith("since the GPU cannot decode astronaut in 4:4:4, for the reason above")


def test_jpegs_that_meet_a_model_without_a_card_come_back_unread(
    visual: clip.Visual, caplog: pytest.LogCaptureFixture
) -> None:
    plain = clip.load_visual(catalog.clip("demo"), Config(cache_folder=Path("no folder"), decode="cuda"), CPU)
    assert "MACHINE_LEARNING_DECODE=cuda has no effect: models run on cpu" in caplog.text
    square = visual.prepare(np.array(PHOTO))
    none, vector = plain.run(plain.collate([*items_of(PLAIN), square]))
    assert none is None
    assert np.dot(vector, visual.run(visual.collate([square]))[0]) >= 0.99999
