"""Samples: that growth of memory, files and threads is seen, and what is none is not."""

from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from scripts.endure.samples import PER, Sample, held, own_bytes, sample

PART = "soak"
MB = 1_000_000
FLAT = [Sample(PER * number // 4, 300 * MB, 200 * MB, 12, 20) for number in range(40)]


def grown(mb: float) -> list[Sample]:
    """Return samples that grow by so many megabytes per 10,000 requests."""
    return [replace(one, resident=round(one.resident + MB * mb * number / 4)) for number, one in enumerate(FLAT)]


@pytest.mark.parametrize(("mb", "held_"), [(0.0, True), (0.9, True), (1.1, False), (-3.0, True)])
def test_a_slope_over_the_limit_is_seen(mb: float, held_: bool) -> None:
    memory, own, files, threads = held(PART, grown(mb), 0, 0, short=False)
    assert memory.held is held_
    assert own.held
    assert files.held
    assert threads.held
    assert memory.seen.startswith(f"{mb:+.2f} ± ")


def test_growth_before_the_end_of_the_warm_up_does_not_count() -> None:
    steep = [replace(one, resident=one.resident - MB * 50 * (8 - number)) for number, one in enumerate(FLAT[:8])]
    assert held(PART, [*steep, *FLAT[8:]], 8, 0, short=False)[0].held
    assert not held(PART, [*steep, *FLAT[8:]], 0, 0, short=False)[0].held


def test_a_miniature_may_fill_caches_and_no_more() -> None:
    caches = [replace(one, resident=one.resident + 10 * MB) if number > 4 else one for number, one in enumerate(FLAT)]
    leak = [replace(one, resident=one.resident + MB * number) for number, one in enumerate(FLAT)]  # 39 MB in all
    assert held(PART, caches, 0, 0, short=True)[0].held
    assert not held(PART, leak, 0, 0, short=True)[0].held


def test_memory_that_is_swapped_out_is_seen() -> None:
    swapped = [replace(one, resident=one.resident - 5 * MB, own=one.own + 5 * MB * n) for n, one in enumerate(FLAT)]
    resident, own, *_ = held(PART, swapped, 0, 0, short=False)
    assert resident.held
    assert not own.held


def test_one_more_file_or_thread_at_any_quiet_moment_is_seen() -> None:
    _, _, files, _ = held(PART, [*FLAT, replace(FLAT[-1], files=13)], 0, 0, short=False)
    assert (files.held, files.seen) == (False, "12 to 13")
    *_, threads = held(PART, [*FLAT, replace(FLAT[-1], threads=21)], 0, 0, short=False)
    assert (threads.held, threads.seen) == (False, "20 to 21")


def test_too_few_samples_are_no_proof() -> None:
    with pytest.raises(ValueError, match="let it run for longer"):
        held(PART, FLAT[:2], 0, 0, short=False)


def test_a_sample_is_of_the_process() -> None:
    one = sample(psutil.Process(), 7)
    assert one.requests == 7
    assert one.resident > 10 * MB
    assert 10 * MB < one.own <= one.resident + psutil.swap_memory().used
    assert one.files > 2
    assert one.threads >= 1


def test_bytes_of_its_own_are_what_is_in_memory_and_in_swap(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("Name:\tx: y\nVmRSS:\t 900 kB\nRssAnon:\t 100 kB\nVmSwap:\t 20 kB\n")
    assert own_bytes(tmp_path / "status") == 120 * 1024
