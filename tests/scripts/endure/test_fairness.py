"""Fairness: its miniature against a live server, and what it makes of answers."""

from scripts.endure.fairness import batch_times, largest_batch, percentile, rows
from scripts.endure.live import Reply
from scripts.endure.row import Options


async def test_searches_stay_quick_and_nobody_starves() -> None:
    texts, pictures, few = await rows(Options(short=True))
    assert [row for row in (texts, pictures, few) if not row.held] == []
    assert texts.tried >= 1
    assert pictures.tried >= 64
    assert few.tried == 114


def test_who_rode_together_counts_as_one_batch() -> None:
    replies = [Reply(200, b"", 1.0, {"run": run, "wait": 0.1}) for run in (0.5, 0.25, 0.5)]
    assert largest_batch(replies) == 2
    assert batch_times([*replies, Reply(503, b"", 0.1, {})]) == [0.25, 0.5]


def test_the_percentile_is_near_the_slowest() -> None:
    assert 98 < percentile([Reply(200, b"", float(seconds), {}) for seconds in range(100)]) < 99
