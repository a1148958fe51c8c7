"""python -m scripts.performance: write the blocks and plots of docs/performance.md from docs/results/*.csv.

A block stands between two comments, `<!-- name -->` and `<!-- end name -->`; what is outside them is written by hand.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from scripts.bench import record
from scripts.performance import plots
from scripts.performance.blocks import BLOCKS
from scripts.performance.results import Result, load

PAGE = record.ROOT / "docs/performance.md"


def with_blocks(text: str, results: Sequence[Result]) -> str:
    """Return `text` with every block made anew; ValueError where one has no place in it."""
    for name, block in BLOCKS.items():
        place = re.search(rf"<!-- {name} -->\n(.*?)<!-- end {name} -->", text, re.DOTALL)
        if place is None:
            raise ValueError(f"{PAGE.name} has no place for a block: <!-- {name} --> … <!-- end {name} -->")
        text = f"{text[: place.start(1)]}{block(results)}\n{text[place.end(1) :]}"
    return text


def write(page: Path, folder: Path) -> None:
    """Write the blocks of `page` and the plots beside it; `folder` has the files of the bench."""
    results = load(folder)
    page.write_text(with_blocks(page.read_text(encoding="utf-8"), results), encoding="utf-8")
    plots.draw(results, page.parent)


def main() -> None:
    """Write the page."""
    argparse.ArgumentParser(description="Write the blocks and plots of docs/performance.md.").parse_args()
    write(PAGE, record.RESULTS)


if __name__ == "__main__":
    main()
