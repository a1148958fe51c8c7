"""The miniature of the faults, against a real server: every promise is kept."""

from scripts.endure import faults
from scripts.endure.row import Options


async def test_the_miniature_keeps_every_promise() -> None:
    rows = await faults.rows(Options(short=True))
    assert [row for row in rows if not row.held] == []
    assert len({row.what for row in rows}) == len(rows) >= 12
