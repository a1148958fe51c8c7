"""On a GPU JPEGs are decoded to the same vectors, and one that is refused costs the others nothing."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from engines import card, clip, images, preprocess
from engines.card import Card
from engines.model import Config
from tests.gpu.networks import BUCKETS, ENTRY

pytestmark = pytest.mark.gpu

SIZE = ENTRY.image_size


@pytest.fixture(scope="module")
def jpegs() -> list[bytes]:
    return list(card.gate_jpegs().values())


@pytest.fixture(scope="module")
def a_card(device: torch.device) -> Card:
    return Card(device, BUCKETS, SIZE, "shortest", floor_offset=False)


def items_of(jpegs: list[bytes]) -> list[NDArray[np.uint8]]:
    return [np.frombuffer(jpeg, np.uint8) for jpeg in jpegs]


def squares(gpu: Card, jpegs: list[bytes]) -> NDArray[np.uint8]:
    upload = gpu.upload(items_of(jpegs))
    assert upload.unread == frozenset()
    rows: NDArray[np.uint8] = upload.batch[: upload.rows].cpu().numpy()
    return rows


def test_vectors_stay_what_they_are(device: torch.device, jpegs: list[bytes]) -> None:
    config = Config(cache_folder=Path(), untrained=True)
    visual = clip.load_visual(ENTRY, config, device)
    right = visual.run(visual.collate([visual.prepare(images.decode(jpeg, card.MOST_PIXELS)) for jpeg in jpegs]))
    visual.decode_on(Card(device, visual.buckets, SIZE, "shortest", floor_offset=False))
    for jpeg in jpegs:
        assert visual.takes_jpeg(images.probe(jpeg, card.MOST_PIXELS), jpeg)
    found = visual.run(visual.collate(items_of(jpegs)))
    assert min(float(np.dot(a, b)) for a, b in zip(right, found, strict=True)) >= card.LOWEST_COSINE


def test_pictures_are_nearly_those_of_the_processor(a_card: Card, jpegs: list[bytes]) -> None:
    for jpeg, square in zip(jpegs, squares(a_card, jpegs), strict=True):
        expected = preprocess.prepare(images.decode(jpeg, card.MOST_PIXELS), SIZE, "shortest")
        assert np.abs(square.astype(int) - expected).mean() <= 0.5


def test_a_damaged_jpeg_changes_nothing_of_the_others(a_card: Card, jpegs: list[bytes]) -> None:
    alone = squares(a_card, jpegs)
    whole = jpegs[0]
    for broken in (whole[:700] + whole[-2:], whole[: len(whole) // 2] + whole[-2:], b"\xff\xd8\xff\xd9", b"no JPEG"):
        upload = a_card.upload(items_of([*jpegs[:3], broken, *jpegs[3:]]))
        assert upload.unread <= {3}
        assert np.array_equal(np.delete(upload.batch[: upload.rows].cpu().numpy(), 3, axis=0), alone)
        assert np.array_equal(squares(a_card, jpegs), alone)  # nor of the batch after it


def test_batches_from_two_threads_keep_their_rows(a_card: Card, jpegs: list[bytes]) -> None:
    alone = squares(a_card, jpegs)

    def turn(first: int) -> None:
        for shift in range(first, first + 30):
            order = [(shift + i) % len(jpegs) for i in range(1 + shift % len(jpegs))]
            assert np.array_equal(squares(a_card, [jpegs[i] for i in order]), alone[order])

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(turn, (0, 7)))


def test_memory_stays_flat(device: torch.device, a_card: Card, jpegs: list[bytes]) -> None:
    def one_batch(number: int) -> None:
        squares(a_card, [jpegs[(number + i) % len(jpegs)] for i in range(1 + number % len(jpegs))])

    for number in range(60):
        one_batch(number)
    reserved = torch.cuda.memory_reserved(device)
    free, _ = torch.cuda.mem_get_info(device)
    for number in range(400):
        one_batch(number)
    assert torch.cuda.memory_reserved(device) <= reserved
    left, _ = torch.cuda.mem_get_info(device)
    assert left >= free - (32 << 20)  # nvJPEG takes memory that PyTorch does not know of
