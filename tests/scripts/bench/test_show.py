"""Figures are told with the digits that count."""

import pytest

from scripts.bench.record import row
from scripts.bench.show import number, show


@pytest.mark.parametrize(
    ("figure", "told"),
    [(12345.6, "12,346"), (100.4, "100"), (99.94, "99.9"), (1.0, "1.00"), (0.99996, "1.00"), (0.0123, "0.0123")],
)
def test_three_digits_count(figure: float, told: str) -> None:
    assert number(figure) == told


def test_a_table_has_ours_the_baseline_and_whether_the_goal_is_met(capsys: pytest.CaptureFixture[str]) -> None:
    show([row("http", "pictures", "pictures/s", [30.0, 20.0], [10.0, 10.0], at=8, goal="ratio >= 2", ceiling=50.0)])
    shown = capsys.readouterr().out
    for cell in ("25.0 (20.0–30.0)", "10.0", "2.50 (2.00–3.00)", "50%", "ratio >= 2", "yes"):
        assert cell in shown
