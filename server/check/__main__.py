"""python -m server.check: look at everything, print it on one page, and say by the exit code whether all is well.

Knows the order in which things are looked at, and how to print. Exit code 0: the server can do its work. 1: something
must be done, and the page says what.
"""

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby

import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from server.check import configured, inside
from server.check.finding import Finding, Level
from server.check.versions import versions
from server.loading import engine_config, preload_parts

STYLES: dict[Level, str] = {"ok": "green", "note": "yellow", "to do": "bold red"}
NAME_WIDTH = 14


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what was found; return 0 if all is well, 1 if something must be done."""
    parser = argparse.ArgumentParser(prog="python -m server.check", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of the page")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    found = list(look() if options.json else shown(look()))
    to_do = sum(finding.level == "to do" for finding in found)
    if options.json:
        sys.stdout.write(orjson.dumps({"well": not to_do, "findings": found}).decode() + "\n")
    elif to_do:
        sys.stdout.write(f"\n{to_do} {'thing is' if to_do == 1 else 'things are'} to do, marked above.\n")
    else:
        sys.stdout.write("\nAll is well. To start the server: python -m server\n")
    return 1 if to_do else 0


def look() -> Iterator[Finding]:
    """Yield all that is found, section by section; what follows from wrong settings or missing devices is left out."""
    yield from versions()
    settings, found = configured.settings()
    yield from found
    if settings is None:
        return
    yield configured.port(settings)
    yield from configured.cache(settings.cache_folder)
    config = engine_config(settings)
    try:
        devices, found = inside.devices(config)
    except ImportError as error:
        advice = "Install the packages: make clean venv"
        yield Finding("devices", "libraries", f"they cannot be imported: {error}", "to do", advice)
        return
    yield from found
    if not devices:
        return
    yield from inside.engines(devices[0], config)
    parts = inside.tried(preload_parts(settings))
    ready, found = inside.weights(parts, settings)
    yield from found
    yield from inside.forwards([part for part in parts if part in ready], config)


def shown(findings: Iterator[Finding]) -> Iterator[Finding]:
    """Print findings, each section when it is known, and pass them on."""
    console = Console(highlight=False)
    for section, group in groupby(findings, key=lambda finding: finding.section):
        console.print(Text(section.upper(), "bold"))
        table = Table.grid(padding=(0, 2))
        table.add_column()
        table.add_column(min_width=NAME_WIDTH)
        table.add_column(overflow="fold")
        for finding in group:
            table.add_row(Text(finding.level, STYLES[finding.level]), Text(finding.name), Text(finding.text))
            yield finding
        console.print(table)


if __name__ == "__main__":
    sys.exit(main())
