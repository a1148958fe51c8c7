"""The state of one device: what it loses with a thread, and how long the next one waits."""

import threading

import pytest

from server.worker import LONGEST_PAUSE_S, PAUSE_S, Worker


def test_a_thread_is_replaced_at_once_and_later_after_longer_and_longer() -> None:
    worker = Worker(0, threading.Lock())
    pauses = []
    for _ in range(12):
        worker.lose("device")
        pauses.append(worker.pause())
    assert pauses[:4] == [0.0, PAUSE_S, 2 * PAUSE_S, 4 * PAUSE_S]
    assert pauses[-1] == LONGEST_PAUSE_S
    assert pauses == sorted(pauses)


@pytest.mark.parametrize("role", ["device", "collate"])
def test_nobody_has_in_hand_what_a_dead_thread_had(role: str) -> None:
    worker = Worker(0, threading.Lock())
    worker.waits = True
    assert worker.lose("device" if role == "device" else "collate") is None
    assert worker.batches() == []
    assert worker.waits == (role == "collate")
    assert worker.deaths == 1
