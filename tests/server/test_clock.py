"""Nothing depends on the wall clock: it may jump."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = [path for floor in ("server", "engines") for path in sorted((ROOT / floor).rglob("*.py"))]
# Dates that are written down for people and for names, and never compared.
DATED = {"engines/builder.py", "engines/store.py", "server/logs.py"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_asks_the_wall_clock_what_to_do(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    asked = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not asked & {"time.time", "time.time_ns", "time.localtime", "time.gmtime"}
    if str(path.relative_to(ROOT)) not in DATED:
        assert not asked & {"datetime.now", "datetime.utcnow", "datetime.today", "date.today"}
