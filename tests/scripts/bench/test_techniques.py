"""The waterfall puts one piece after another in the place of the baseline's, and sums them up."""

from collections.abc import Callable

import pytest

from scripts.bench.options import Options
from scripts.bench.techniques import waterfall

PIECES: dict[str, Callable[[], float]] = {
    "decode": lambda: 0.010,
    "network": lambda: 0.060,
    "our decode": lambda: 0.004,
    "our network": lambda: 0.026,
}
STEPS = [
    ("faster decoding", {"decode": "our decode"}),
    ("what cannot be had here", {"network": "of a card"}),
    ("a compiled network", {"network": "our network"}),
]


def test_every_technique_is_told_beside_the_way_without_it(options: Options) -> None:
    start, decoding, network = waterfall("picture", ("decode", "network"), PIECES, STEPS, options)
    assert start.case == "picture: the baseline's way"
    assert start.ours == pytest.approx(70)
    assert start.baseline is None
    assert decoding.case == "picture: faster decoding"
    assert [decoding.ours, decoding.baseline] == pytest.approx([64, 70])
    assert [network.ours, network.baseline] == pytest.approx([30, 64])
    assert [one.at for one in (start, decoding, network)] == [0, 1, 3]
    assert network.ratio == pytest.approx(30 / 64, rel=1e-5)
