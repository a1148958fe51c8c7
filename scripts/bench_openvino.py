"""Holds our OpenVINO engines against benchmark_app, OpenVINO's own tool, on the same saved model, in turn.

    python -m scripts.build_engines ViT-B-32__openai --backend openvino
    python -m scripts.bench_openvino ViT-B-32__openai

Our engines run as the server runs them: items stacked, computed, copied out, one batch after another, at their best
bucket. benchmark_app runs as it likes best (its hint for throughput, several requests at once) and at our own bucket
with our number of streams; the better of both counts. The last line is JSON.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import orjson
from rich.console import Console
from rich.table import Table

from engines import builder, choice, models
from engines.artefact import Stored
from engines.engine import Layout, Subject
from engines.model import Kind
from engines.store import Store
from scripts.build_engines import best, parts
from server.loading import engine_config
from server.settings import Settings

HINTS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
ROUNDS = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every OpenVINO engine of one model that is in the store; return 0, or 1 if there is none."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench_openvino",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help="a model as in GET /models")
    parser.add_argument("--kind", choices=get_args(Kind), default="visual", help="default: visual")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement, default 5")
    options = parser.parse_args(arguments)
    settings = Settings()
    config = engine_config(settings)
    entry = next((entry for kind, entry in parts(options.name, settings.face_alias) if kind == options.kind), None)
    if entry is None or options.kind == "detection":
        parser.error(f"{options.name} has no {options.kind} side of one network")
    subject = models.subject_of(options.kind, entry, config, models.devices(config)[0])
    wanted = replace(config, engine="openvino", precision="auto")
    store = Store(config.cache_folder / "engines")
    found = choice.fitting(subject, wanted, store)
    if not found:
        sys.stderr.write(f"no engine: python -m scripts.build_engines {options.name} --backend openvino\n")
        return 1
    table = Table("precision", "batch", "ours, items/s", "benchmark_app, items/s", "share")
    records = []
    for stored in found:
        record = compare(subject, stored, options.seconds)
        records.append(record)
        table.add_row(
            record["precision"],
            str(record["batch"]),
            f"{record['ours']:.1f}",
            f"{record['benchmark_app']:.1f}",
            f"{record['share']:.2f}",
        )
    Console().print(table)
    sys.stdout.write(orjson.dumps(records).decode() + "\n")
    return 0


def compare(subject: Subject, stored: Stored, seconds: float) -> dict[str, Any]:
    """Return the items per second of one engine and of benchmark_app, medians of ROUNDS measured in turn."""
    manifest = stored.manifest
    batch = max(manifest.timings, key=lambda bucket: manifest.timings[bucket])
    specs = subject.specs(manifest.key.precision, manifest.layout, sorted(manifest.timings))
    run = subject.batch(builder.load(subject, "openvino", specs, stored.folder), batch)
    run()
    ours, alone, alike = [], [], []
    for _ in range(ROUNDS):
        ours.append(rate(run, batch, seconds))
        alone.append(benchmark_app(stored, subject, 1, seconds, ["-hint", "throughput"]))
        alike.append(benchmark_app(stored, subject, batch, seconds, streams(manifest.layout)))
    theirs = max(statistics.median(alone), statistics.median(alike))
    return {
        "model": subject.model,
        "kind": subject.kind,
        "precision": manifest.key.precision,
        "batch": batch,
        "ours": statistics.median(ours),
        "benchmark_app": theirs,
        "share": statistics.median(ours) / theirs,
        "at_build": best(manifest.timings),
    }


def streams(layout: Layout) -> list[str]:
    """Return the options of benchmark_app that lay it out as our engine is."""
    return ["-hint", "none", "-nstreams", str(layout.streams)]


def rate(run: Callable[[], object], batch: int, seconds: float) -> float:
    """Return the items per second of `run`, which computes one batch."""
    count = 0
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        run()
        count += 1
    return count * batch / (time.perf_counter() - started)


def benchmark_app(stored: Stored, subject: Subject, batch: int, seconds: float, options: Sequence[str]) -> float:
    """Return what OpenVINO's own tool reaches with the saved model in batches of `batch`; raises CalledProcessError."""
    network = subject.networks[0]
    shape = [batch, *network.example[0].shape]
    command = [
        str(Path(sys.executable).parent / "benchmark_app"),
        *("-m", str(stored.folder / f"{network.name}.xml"), "-d", "CPU"),
        *("-infer_precision", HINTS[stored.manifest.key.precision]),
        *("-data_shape", f"[{','.join(map(str, shape))}]", "-t", str(max(1, round(seconds)))),
        *options,
    ]
    # CI keeps the tool from reporting to its makers.
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "CI": "true"})  # noqa: S603 - our own command
    return items_per_second(done.stdout, batch)


def items_per_second(printed: str, batch: int) -> float:
    """Return the items per second of what benchmark_app printed; raises ValueError if it says none."""
    count = re.search(r"Count:\s+(\d+) iterations", printed)
    duration = re.search(r"Duration:\s+([\d.]+) ms", printed)
    if count is None or duration is None:
        raise ValueError(f"benchmark_app told neither count nor duration: {printed[-300:]}")
    # Not its own figure for throughput: that takes the batch from a layout, which our models do not name.
    return int(count[1]) * batch / (float(duration[1]) / 1000)


if __name__ == "__main__":
    sys.exit(main())
