"""Builds compiled engines for models, holds each against eager float32, times it, and keeps those that pass.

    python -m scripts.build_engines NAME…                  the best that this machine has
    python -m scripts.build_engines NAME… --backend all    all backends and precisions, as a table to compare
    python -m scripts.build_engines --all                  all that the settings preload
    python -m scripts.build_engines NAME… --precision int8 --calibrate FOLDER

The server takes the fastest that is there at its next start, or when the model is loaded again. The last line is JSON:
a list with one record for each backend, precision and network, `passed` or with the `reason`.
"""

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import orjson
import torch
from rich.console import Console
from rich.table import Table

from engines import builder, catalog, machine, models
from engines.artefact import Manifest, Stored
from engines.catalog import Clip, Face
from engines.engine import BackendName, Precision, Subject
from engines.errors import BuildFailed, EngineError, UnknownModel
from engines.model import Config, Kind
from engines.store import Store
from server.loading import engine_config, preload_parts
from server.settings import Settings

KINDS: tuple[Kind, ...] = get_args(Kind)
BACKENDS: tuple[BackendName, ...] = get_args(BackendName)
# The best first, by what was measured. `auto` builds with the first of them that is there.
BEST: dict[str, tuple[BackendName, ...]] = {
    "cpu": ("openvino", "torchscript"),
    "cuda": ("tensorrt", "inductor", "torchscript"),
    "xpu": ("openvino",),
}
LOW_PRIORITY = 19


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one backend and precision: the engine in the store, or the reason why there is none."""

    backend: BackendName
    precision: Precision
    stored: Stored | None
    reason: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks; return 0, or 1 if a model has no engine now, 2 for a wrong command line."""
    options = _parser().parse_args(arguments)
    if options.low_priority:
        os.nice(LOW_PRIORITY)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    settings = Settings()
    config = engine_config(settings)
    if options.device:
        kind, _, ordinal = options.device.partition(":")
        ids = (int(ordinal),) if ordinal else config.device_ids
        config = replace(config, device=kind, require_device=kind, device_ids=ids)
    config = replace(
        config,
        calibration=options.calibrate or config.calibration,
        calibration_texts=options.calibrate_texts or config.calibration_texts,
    )
    screen = Console(stderr=True)
    try:
        wanted = _wanted(options, settings)
        device = models.devices(config)[0]
    except EngineError as error:
        screen.print(str(error), style="red", markup=False)
        return 2
    torch.set_num_threads(config.threads or machine.cores())
    records: list[dict[str, Any]] = []
    complete = True
    for part, entry in wanted:
        with _progress(screen, f"{entry.name} ({part})") as tell:
            try:
                tell("builds the network")
                subject = models.subject_of(part, entry, config, device)
            except EngineError as error:
                screen.print(f"{entry.name} ({part}): {error}", style="red", markup=False, soft_wrap=True)
                records.append({"model": entry.name, "kind": part, "passed": False, "reason": str(error)})
                complete = False
                continue
            outcomes = build_all(subject, Store(config.cache_folder / "engines"), options, config, tell)
        show(subject, outcomes)
        records += [record for outcome in outcomes for record in records_of(subject, entry.name, outcome)]
        complete &= any(outcome.stored is not None for outcome in outcomes)
        del subject  # the next one may be as large
    sys.stdout.write(orjson.dumps(records, option=orjson.OPT_NON_STR_KEYS).decode() + "\n")
    return 0 if complete else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.build_engines",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Models, cache folder, threads and all else are taken from the settings of the server: see the README.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="a model as in GET /models, in any of its spellings")
    parser.add_argument("--all", action="store_true", help="all models that the settings preload")
    parser.add_argument("--kind", choices=KINDS, help="only this side of the models")
    parser.add_argument(
        "--backend", choices=("auto", "all", *BACKENDS), default="auto", help="default: auto, the best one that is here"
    )
    parser.add_argument(
        "--precision",
        choices=("auto", "all", *get_args(Precision)),
        default="auto",
        help="default: auto, the fastest that passes but int8; int8: that, or the fastest where it does not pass; "
        "with --backend all: all but int8",
    )
    parser.add_argument(
        "--calibrate", type=Path, metavar="FOLDER", help="pictures to calibrate int8 on; default: generated ones"
    )
    parser.add_argument(
        "--calibrate-texts",
        type=Path,
        metavar="FILE",
        help="texts to calibrate int8 on, one per line; default: generated",
    )
    parser.add_argument("--batch", type=_buckets, default=(), metavar="1,2,4,…", help="batch sizes, in ascending order")
    parser.add_argument("--device", type=_device, help="cpu, cuda, cuda:1, xpu; default: as the server does")
    parser.add_argument("--again", action="store_true", help="build also what is there, or what failed before")
    parser.add_argument("--low-priority", action="store_true", help="leave the processor to all others")
    return parser


def _buckets(text: str) -> tuple[int, ...]:
    try:
        buckets = tuple(int(number) for number in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers like 1,2,4") from error
    if buckets[0] != 1 or list(buckets) != sorted(set(buckets)):
        raise argparse.ArgumentTypeError(f"{text!r} must begin with 1 and rise, since a lone request has a batch of 1")
    return buckets


def _device(text: str) -> str:
    kind, _, ordinal = text.partition(":")
    if kind not in BEST or (ordinal and not ordinal.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is no device: cpu, cuda, cuda:1 or xpu")
    return text


def _wanted(options: argparse.Namespace, settings: Settings) -> list[tuple[Kind, Clip | Face]]:
    """Return the sides of models to build for, each once; raises UnknownModel."""
    wanted = [part for name in options.names for part in parts(name, settings.face_alias)]
    if options.all:
        wanted += [(part.kind, part.entry) for part in preload_parts(settings)]
    if not wanted:
        raise UnknownModel("Give the NAME of a model, or --all and MACHINE_LEARNING_PRELOAD__… settings.")
    # All face models share one detector.
    unique = {(kind, kind if kind == "detection" else entry.name): (kind, entry) for kind, entry in wanted}
    return [part for part in unique.values() if options.kind in (None, part[0])]


def parts(name: str, face_alias: str) -> list[tuple[Kind, Clip | Face]]:
    """Return the sides of the model called `name`; raises UnknownModel."""
    if name == "mtcnn":
        return [("detection", catalog.face(catalog.DEMO))]
    found: list[tuple[Kind, Clip | Face]] = []
    unknown = None
    try:
        clip = catalog.clip(name)
        found += [("visual", clip), ("textual", clip)]
    except UnknownModel as error:
        unknown = error
    with contextlib.suppress(UnknownModel):  # what the search among CLIP models said is told
        face = catalog.face(name, face_alias)
        found += [("detection", face), ("recognition", face)]
    if not found and unknown is not None:
        raise unknown
    return found


def build_all(
    subject: Subject, store: Store, options: argparse.Namespace, config: Config, tell: Callable[[str], None]
) -> list[Outcome]:
    """Build what the command line asks for of one model, and return what became of each."""
    outcomes = []
    for name in _backends(options.backend, subject.device):
        for precision in _precisions(options, name):
            try:
                stored = builder.build(
                    subject,
                    name,
                    precision,
                    store,
                    buckets=[bucket for bucket in options.batch if bucket <= subject.buckets[-1]],
                    threads=config.threads,
                    again=options.again,
                    tell=lambda stage, name=name, precision=precision: tell(f"{name} {precision} {stage}"),  # type: ignore[misc]
                )
                outcomes.append(Outcome(name, precision, stored, ""))
                if options.precision in ("auto", "int8") and options.backend != "all":
                    break  # the lower precision came first
            except BuildFailed as error:
                outcomes.append(Outcome(name, precision, None, str(error)))
        if options.backend == "auto" and any(outcome.stored for outcome in outcomes):
            break  # the best backend came first
    return outcomes


def _backends(asked: str, device: torch.device) -> tuple[BackendName, ...]:
    if asked == "all":
        return BACKENDS
    if asked != "auto":
        return tuple(name for name in BACKENDS if name == asked)
    return BEST[device.type]


def _precisions(options: argparse.Namespace, name: BackendName) -> tuple[Precision, ...]:
    if options.precision == "all" or (options.precision == "auto" and options.backend == "all"):
        return ("float32", "bfloat16", "float16")
    if options.precision == "auto":
        return ("bfloat16", "float16", "float32")
    if options.precision == "int8" and options.backend != "all":
        return ("int8", "bfloat16", "float16", "float32")
    return tuple(precision for precision in get_args(Precision) if precision == options.precision)


@contextlib.contextmanager
def _progress(screen: Console, title: str) -> Iterator[Callable[[str], None]]:
    """Show what is being done: on a terminal as one line that changes, else as a line for each stage."""
    if not screen.is_terminal:
        yield lambda stage: screen.print(f"{title}: {stage}", markup=False, highlight=False, soft_wrap=True)
        return
    with screen.status(title) as status:
        yield lambda stage: status.update(f"{title}: {stage}")


def show(subject: Subject, outcomes: Sequence[Outcome]) -> None:
    """Print a table of what was built, and the reasons for what was not."""
    built = [outcome.stored.manifest for outcome in outcomes if outcome.stored]
    screen = Console()
    screen = screen if screen.is_terminal else Console(width=180)
    buckets = sorted({bucket for manifest in built for bucket in manifest.timings})
    table = Table(title=f"{subject.model} ({subject.kind}) on {machine.identity(subject.device).device}: items/s")
    table.add_column("backend")
    table.add_column("precision")
    for heading in (
        *(f"batch {bucket}" for bucket in buckets),
        "x eager, most",
        "x eager, peak",
        "lowest cosine",
        "MB",
        "build s",
        "memory MB",
    ):
        table.add_column(heading, justify="right")
    for manifest in built:
        table.add_row(
            manifest.key.backend,
            manifest.key.precision,
            *(f"{manifest.timings[bucket]:.1f}" if bucket in manifest.timings else "" for bucket in buckets),
            f"{most(manifest):.2f}",
            f"{peak(manifest):.2f}",
            f"{manifest.report.lowest_cosine:.6f}",
            f"{sum(file.bytes for file in manifest.files.values()) / 1e6:.0f}",
            f"{manifest.build_seconds:.0f}",
            f"{manifest.memory_bytes / 1e6:.0f}",
        )
    if built:
        screen.print(table)
    for outcome in outcomes:
        if outcome.stored is None:
            screen.print(f"{outcome.backend} {outcome.precision}: {outcome.reason}", markup=False, soft_wrap=True)


def best(timings: dict[int, float]) -> float:
    """Return the items per second at the best bucket."""
    return max(timings.values())


def most(manifest: Manifest) -> float:
    """Return how many times as fast as eager float32 the engine is in the bucket where it is so most."""
    return max(rate / manifest.reference_timings[bucket] for bucket, rate in manifest.timings.items())


def peak(manifest: Manifest) -> float:
    """Return its items per second at its best bucket over those of eager float32 at the best bucket of that."""
    return best(manifest.timings) / best(manifest.reference_timings)


def records_of(subject: Subject, model: str, outcome: Outcome) -> list[dict[str, Any]]:
    """Return what became of each network as JSON has it; the three of the detector were examined and timed together."""
    common = {
        "model": model,
        "kind": subject.kind,
        "backend": outcome.backend,
        "precision": outcome.precision,
        "passed": outcome.stored is not None,
        "reason": outcome.reason,
    }
    if outcome.stored is None:
        return [{**common, "network": network.name} for network in subject.networks]
    manifest = outcome.stored.manifest
    return [
        {
            **common,
            "network": network.name,
            "items_per_s": manifest.timings,
            "eager_float32_items_per_s": manifest.reference_timings,
            "ratio_most": most(manifest),
            "ratio_peak": peak(manifest),
            "lowest_cosine": manifest.report.lowest_cosine,
            "error_over_spread": manifest.report.error_over_spread,
            "bytes": sum(file.bytes for name, file in manifest.files.items() if name.startswith(network.name)),
            "build_seconds": manifest.build_seconds,
            "memory_bytes": manifest.memory_bytes,
            "streams": manifest.layout.streams,
            "untrained": manifest.untrained,
            "folder": str(outcome.stored.folder),
        }
        for network in subject.networks
    ]


if __name__ == "__main__":
    sys.exit(main())
