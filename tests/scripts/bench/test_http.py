"""What is told of pictures over HTTP follows from what the rounds got."""

from functools import partial

import pytest

from scripts.bench.drive import Rate, Round
from scripts.bench.http import growth, milliseconds, of_pictures, of_texts
from scripts.bench.record import row


def rounds(*rates: float) -> list[Round]:
    return [Round(Rate(10, rate, 0.1, 0.2, 1.0), None, 1.9, 0.01) for rate in rates]


def test_growth_is_the_worst_behind_the_best_of_each_round() -> None:
    found = {1: rounds(10, 10), 8: rounds(40, 39), 32: rounds(36, 40), 64: rounds(38, 38)}
    (one,) = growth(found, partial(row, "http"))
    assert (one.ours_low, one.ours_high) == (0.9, 0.95)
    assert (one.goal, one.met) == ("ours >= 0.95", "no")


def test_a_throughput_that_only_rises_keeps_all_of_it() -> None:
    (one,) = growth({1: rounds(10), 8: rounds(40)}, partial(row, "http"))
    assert (one.ours, one.met) == (1.0, "yes")


def test_rates_are_those_of_a_kind_in_milliseconds() -> None:
    found = rounds(10, 20)
    assert [rate.per_s for rate in of_pictures(found)] == [10, 20]
    assert of_texts(found) == []
    assert milliseconds(of_pictures(found), "p99_s") == pytest.approx([200, 200])
