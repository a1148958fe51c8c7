"""python -m scripts.docs: write the tables of the README and of docs/metrics.md that are made from the code.

A table stands between two comments, `<!-- name -->` and `<!-- end name -->`; a test holds them against the code.
"""

import argparse
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engines import catalog
from server.metrics import METRICS
from server.settings import REPLACED, Settings, variable

README = Path(__file__).parents[1] / "README.md"
METRICS_PAGE = README.parent / "docs" / "metrics.md"


def settings_table() -> str:
    """Return all settings as a table."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for field, info in Settings.model_fields.items():
        rows.append(f"| `{variable(field)}` | {_shown(info.default)} | {info.description} |")
    return "\n".join(rows)


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, tuple):
        return f"`{','.join(str(part) for part in default)}`" if default else ""
    return f"`{default}`" if default != "" else ""


def replaced_table() -> str:
    """Return the settings of the reference deployment that have no effect here, and why."""
    rows = ["| variable | instead |", "|---|---|"]
    return "\n".join([*rows, *(f"| `{pattern}` | {why} |" for pattern, why in REPLACED.items())])


def models_table() -> str:
    """Return the CLIP models, one row for each group of the same dimension and input."""
    rows = ["| dimension | size | resize | text side | names |", "|---|---|---|---|---|"]
    groups: dict[tuple[int, int, str, str], list[str]] = {}
    for name in catalog.names()["clip"]:
        entry = catalog.clip(name)
        groups.setdefault((entry.dim, entry.image_size, entry.resize, entry.text_tower), []).append(name)
    for (dim, size, resize, tower), names in sorted(groups.items()):
        rows.append(f"| {dim} | {size} | {resize} | {tower} | {' '.join(f'`{name}`' for name in names)} |")
    return "\n".join(rows)


def metrics_table() -> str:
    """Return all metrics as a table."""
    rows = ["| metric | type | labels | what it says |", "|---|---|---|---|"]
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        rows.append(f"| `{metric.name}` | {metric.type} | {labels} | {metric.help} |")
    return "\n".join(rows)


Tables = Mapping[str, Callable[[], str]]
TABLES: Tables = {
    "settings": settings_table,
    "replaced settings": replaced_table,
    "models": models_table,
}
METRICS_TABLES: Tables = {"metrics": metrics_table}


def with_tables(text: str, tables: Tables = TABLES) -> str:
    """Return `text` with each of `tables` made anew; ValueError where one has no place in it."""
    for name, table in tables.items():
        place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        if not place.search(text):
            raise ValueError(f"there is no place for the table: <!-- {name} --> … <!-- end {name} -->")
        text = place.sub(lambda match, table=table: f"{match[1]}{table()}\n{match[2]}", text)  # type: ignore[misc]  # mypy cannot infer a lambda with a default
    return text


def main() -> None:
    """Write the tables."""
    argparse.ArgumentParser(description="Write the tables of the documents that are made from the code.").parse_args()
    for path, tables in ((README, TABLES), (METRICS_PAGE, METRICS_TABLES)):
        path.write_text(with_tables(path.read_text(encoding="utf-8"), tables), encoding="utf-8")


if __name__ == "__main__":
    main()
