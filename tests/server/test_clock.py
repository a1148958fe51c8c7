"""Nothing depends on the wall clock: it may jump."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = [path for floor in ("server", "engines") for path in sorted((ROOT / floor).rglob("*.py"))]
# Dates that are written down for people, for names and for traces, and never compared.
DATED = {"engines/builder.py", "engines/store.py", "server/logs.py", "server/tracing.py"}
WALL_CLOCK = {f"time.{name}" for name in ("time", "time_ns", "localtime", "gmtime")} | {
    "datetime.now",
    "datetime.utcnow",
    "datetime.today",
    "date.today",
}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_asks_the_wall_clock_what_to_do(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    asked = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not asked & WALL_CLOCK or str(path.relative_to(ROOT)) in DATED
