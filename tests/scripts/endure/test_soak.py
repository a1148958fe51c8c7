"""The soak: its miniature against a live server."""

from scripts.endure.row import Options, Row
from scripts.endure.soak import PART, rows


def by_what(found: list[Row]) -> dict[str, Row]:
    return {row.what: row for row in found}


async def test_two_minutes_of_everything_lose_nothing_and_leave_nothing_behind() -> None:
    found = by_what(await rows(Options(short=True)))
    assert [row for row in found.values() if not row.held] == []
    assert found["texts"].tried > 200
    assert found["pictures"].tried > 100
    assert found["faces"].tried > 10
    assert found["bad input"].tried > 40
    assert found["clients that hang up"].tried > 15
    assert found["models that were loaded, and left when idle"].tried > 20
    assert all(row.part == PART for row in found.values())
