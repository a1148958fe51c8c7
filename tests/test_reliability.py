"""docs/reliability.md is true: each promise names a test that exists, and its table is the one that was kept."""

import ast
import re
from pathlib import Path

import pytest

from scripts.endure.report import PAGE, RESULTS, read, with_block

ROOT = Path(__file__).parents[1]
TEXT = PAGE.read_text(encoding="utf-8")
PROMISES = re.findall(r"^\| ([^|]+) \| ([^|]+) \| `([^`|]+)` \|$", TEXT, re.MULTILINE)


def test_there_are_promises_and_every_line_is_one() -> None:
    table = re.search(r"\| danger \| answer \| test \|\n\|---\|---\|---\|\n((?:\|.*\n)+)", TEXT)
    assert table is not None
    assert len(table[1].splitlines()) == len(PROMISES) > 15


@pytest.mark.parametrize("test", [test for _, _, test in PROMISES])
def test_the_test_of_a_promise_exists(test: str) -> None:
    path, _, name = test.partition("::")
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert name in functions


def test_the_table_is_the_one_that_was_kept() -> None:
    kept = read(RESULTS) if RESULTS.exists() else []
    assert with_block(TEXT, kept) == TEXT, "run make endure SAVE=1"
