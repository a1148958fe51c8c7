"""The limits crossed against a live server, in miniature: every promise is kept, and a broken one would be seen."""

from scripts.endure import limits
from scripts.endure.row import Options


async def test_every_limit_holds_while_others_are_answered_and_memory_stays_flat() -> None:
    rows = await limits.rows(Options(short=True))
    assert len(rows) >= 17
    assert [row for row in rows if not row.held] == []
    assert all(row.part == "limits" and "right answers beside" in row.seen for row in rows)
