"""The threat model is true: each line has an answer and a test that exists, and the tests of a line are run."""

import ast
import re
from pathlib import Path

import pytest

from server.settings import Settings

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TEXT.splitlines()
    if line.startswith("| ") and not line.startswith("| asset |")
]


def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_there_are_lines_for_all_that_is_guarded() -> None:
    assert len(ROWS) >= 40
    assert {"memory", "time", "connections", "keys", "the log", "the machine"} <= {row[0] for row in ROWS}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}: {row[1]}")
def test_each_line_is_proved_by_a_test_that_exists(row: list[str]) -> None:
    asset, danger, answer, test = row
    assert asset
    assert danger
    assert answer
    named = re.fullmatch(r"`(tests/[\w/]+\.py)::(test_\w+)`", test)
    assert named is not None, f"{test} is no name of a test"
    path, name = named.groups()
    assert name in functions(ROOT / path), f"{path} has no {name}"


def test_every_limit_of_the_settings_is_in_it() -> None:
    limits = re.findall(r"`MACHINE_LEARNING_((?:MAX|QUEUE)_\w+|\w+_TIMEOUT_S|BODY_\w+)`", TEXT)
    fields = {name for name in Settings.model_fields if re.fullmatch(r"max_\w+|queue_\w+|\w+_timeout_s|body_\w+", name)}
    # An idle connection that is closed crosses nothing; sizes of parts and texts are tried with the number of parts.
    assert fields - {name.lower() for name in limits} == {"http_keepalive_timeout_s", "max_part_mb", "max_text_bytes"}
