"""python -m scripts.bench [what…]: the ceiling first, then what is asked for, one line of JSON last.

Knows the order of things. What is measured stands in a module for each subject.
"""

import importlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

import torch

from engines.errors import EngineError
from scripts.bench import ceiling, pictures, record
from scripts.bench.options import parse
from scripts.bench.record import Row
from scripts.bench.show import say, show, tell
from scripts.bench.turns import Ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is asked for; the last line is JSON, a list of rows. Return 1 where something could not be run."""
    names, save, options = parse(arguments)
    benches = {name: importlib.import_module(f"scripts.bench.{name}") for name in names}
    tell("measures the ceiling")
    most = ceiling.measure(torch.device(options.device), pictures.photos(options.cache, 1)[0])
    say(most.sentence())
    where = record.place(most.device, most.cores)
    rows: list[Row] = []
    if save:
        record.save(most.rows(), where)
    for name, bench in benches.items():
        try:
            found: list[Row] = bench.measure(options, most)
        except (EngineError, Ended) as error:
            sys.stderr.write(f"{name}: {error}\n")
            print(json.dumps([asdict(one) for one in rows]))
            return 1
        show(found)
        rows += found
        if save:
            for path in record.save(found, where):
                say(f"appended to {path.relative_to(record.ROOT)}")
    print(json.dumps([asdict(one) for one in rows]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
