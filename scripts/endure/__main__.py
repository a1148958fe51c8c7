"""python -m scripts.endure: keep a live server under load, faults, bad input and time, and count what was not right.

Runs all parts, prints their table, and ends with one line of JSON. The exit code is 1 if any line did not hold.
"""

import argparse
import asyncio
import json
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict

import torch

from engines import machine
from scripts.bench import record
from scripts.bench.show import say, tell
from scripts.endure import fairness, faults, images, limits, report, soak
from scripts.endure.row import Options, Row

# In this order: what takes longest comes last.
PARTS: Mapping[str, Callable[[Options], Awaitable[list[Row]]]] = {
    "fairness": fairness.rows,
    "limits": limits.rows,
    "images": images.rows,
    "faults": faults.rows,
    "soak": soak.rows,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; return 1 where a line did not hold."""
    names, save, options = parse(arguments)
    place = record.place(machine.identity(torch.device("cpu")).device, machine.cores())
    say(f"{place.processor}, {place.cores} cores")
    rows = asyncio.run(run(names, options))
    report.show(rows)
    say(report.summary(rows))
    if save:
        report.save(rows, place)
        say(f"kept in {report.RESULTS.relative_to(record.ROOT)} and {report.PAGE.relative_to(record.ROOT)}")
    print(json.dumps([asdict(one) | {"held": one.held} for one in rows]))
    return 0 if all(one.held for one in rows) else 1


async def run(names: Sequence[str], options: Options) -> list[Row]:
    """Run parts by name, one after the other."""
    found: list[Row] = []
    for name in names:
        tell(f"{name}: begins")
        try:
            found += await PARTS[name](options)
        except Exception as error:  # noqa: BLE001 - one part that breaks off must not hide what the others have found
            traceback.print_exc()
            found.append(Row(name, "all of it", 1, 0, 1, f"broke off: {error!r}"))
    return found


def parse(arguments: Sequence[str] | None = None) -> tuple[list[str], bool, Options]:
    """Return the names of the parts, whether to save, and the options; ends the program for a wrong command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.endure",
        description="Try whether Facet keeps its promises under load, faults and bad input: see docs/reliability.md.",
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--short", action="store_true", help="the miniature that each run of the tests has")
    parser.add_argument("--seconds", type=float, default=0, help="of the soak (default: an hour; two minutes if short)")
    parser.add_argument("--seed", type=int, default=0, help="of what is random (default: 0)")
    parser.add_argument("--save", action="store_true", help="write docs/results/endure.csv and docs/reliability.md")
    given = parser.parse_args(arguments)
    if given.save and given.short:
        parser.error("a miniature proves too little to be kept: leave out --short or --save")
    if given.seconds < 0:
        parser.error("--seconds must be more than 0")
    names = [name for name in PARTS if name in (given.only or PARTS)]
    return names, given.save, Options(short=given.short, seed=given.seed, seconds=given.seconds)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C does: no server may outlive its trial
    sys.exit(main())
