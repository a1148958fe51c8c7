"""The ledger knows which photos are in, in which file, and which were met again."""

import pytest

from scripts.bulk.ledger import Ledger
from scripts.bulk.walk import Photo

A, B, C = (Photo(name, 10, 100) for name in (b"a.jpg", b"b/a.jpg", b"b0.jpg"))


@pytest.fixture
def ledger() -> Ledger:
    ledger = Ledger()
    ledger.note(0, [A, B, C], [True, True, False], met=False)
    return ledger


def test_a_photo_that_did_not_change_is_there(ledger: Ledger) -> None:
    assert ledger.has(A)
    assert not ledger.has(Photo(A.path, 11, 100))
    assert not ledger.has(Photo(A.path, 10, 101))
    assert not ledger.has(Photo(b"new.jpg", 10, 100))
    assert ledger.count() == 2


def test_a_photo_that_failed_is_tried_again(ledger: Ledger) -> None:
    assert not ledger.has(C)


def test_only_the_newest_row_of_what_was_met_is_kept(ledger: Ledger) -> None:
    ledger.has(A)
    ledger.note(1, [B], [True], met=True)
    assert ledger.kept(0, [A.path, B.path, C.path]) == [True, False, False]
    assert ledger.kept(1, [B.path]) == [True]
    assert ledger.unmet() == 1


def test_what_lies_below_a_path_that_cannot_be_read_is_kept(ledger: Ledger) -> None:
    ledger.spare(b"b")
    assert ledger.kept(0, [A.path, B.path, C.path]) == [False, True, False]
    ledger.spare(b"a.jpg")
    assert ledger.kept(0, [A.path]) == [True]
    ledger.spare(b"")
    assert ledger.unmet() == 0
