"""Where the time of a request went: intervals that overlap count once, and a header that browsers read."""

import threading
import time

import pytest

from server.stopwatch import PHASES, Stopwatch, server_timing


def test_intervals_of_a_phase_that_overlap_count_once() -> None:
    watch = Stopwatch()
    for began, ended in [(0.0, 2.0), (1.0, 3.0), (1.5, 1.6), (5.0, 6.0), (2.9, 3.0)]:
        watch.note("run", began, ended)
    assert watch.seconds() == {"run": pytest.approx(4.0)}


def test_phases_come_in_their_order_and_only_those_that_there_were() -> None:
    watch = Stopwatch()
    for phase in ("write", "run", "read"):
        with watch.phase(phase):
            pass
    assert list(watch.seconds()) == ["read", "run", "write"]
    assert set(watch.seconds()) < set(PHASES)


def test_what_fails_within_a_phase_is_noted_too() -> None:
    watch = Stopwatch()
    with pytest.raises(ValueError, match="no"), watch.phase("decode"):
        raise ValueError("no")
    assert list(watch.seconds()) == ["decode"]


def test_a_queue_tells_of_waiting_and_running() -> None:
    watch = Stopwatch()
    ride = watch.ride()
    ride.began(3.0)
    ride.rode(1.0, 3.0, 7.0)
    assert watch.seconds() == {"wait": pytest.approx(2.0), "run": pytest.approx(4.0)}


def test_what_has_not_ended_counts_up_to_now() -> None:
    watch = Stopwatch()
    waits, runs = watch.ride(), watch.ride()
    now = time.perf_counter()
    waits.queued = now - 3.0
    runs.queued = now - 20.0
    runs.began(now - 10.0)
    with watch.phase("decode"):
        seconds = watch.seconds()
    assert list(seconds) == ["decode", "wait", "run"]
    assert seconds["wait"] == pytest.approx(13.0, abs=1.0)
    assert seconds["run"] == pytest.approx(10.0, abs=1.0)
    assert seconds["decode"] >= 0
    assert [phase for phase, _, _ in watch.intervals] == ["decode"], "of what has ended nothing is open"


def test_threads_lose_no_interval() -> None:
    watch = Stopwatch()

    def ride() -> None:
        for _ in range(500):
            watch.ride().rode(0, 1, 2)

    threads = [threading.Thread(target=ride) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(watch.intervals) == len(watch.so_far()) == 8 * 500 * 2


def test_the_header_has_milliseconds_and_the_total() -> None:
    assert server_timing({"wait": 0.0123, "run": 1.5}, 2.0) == "wait;dur=12.3, run;dur=1500.0, total;dur=2000.0"
    assert server_timing({}, 0.0004) == "total;dur=0.4"
