"""python -m scripts.bench_engine [NAME]: what each engine of a model makes of the device's measured matrix rate.

Prints the ceiling first: large matrix products in float32 and bfloat16. Then, for every backend and precision that is
there and passes the gate, items per second in every bucket through the whole way of a batch (sent over the bus while
the one before computes, run, fetched), and what share of the ceiling that is. What is not in the store of engines yet
is built, as by scripts.build_engines. The last line is one line of JSON. Knows no queue and no HTTP.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, get_args

import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from engines import builder, machine, models
from engines.builder import THOROUGH, Effort
from engines.catalog import Clip, Face
from engines.engine import BackendName, Engine, Network, Precision, Subject, host_of
from engines.errors import BuildFailed, EngineError
from engines.fitting import Fitting
from engines.model import Config, Kind
from engines.store import Store
from engines.transfer import Transfer
from scripts.build_engines import parts
from server.app import engine_config
from server.settings import Settings

BACKENDS: tuple[BackendName, ...] = get_args(BackendName)
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "float16")
# Sides of the matrices: large enough that nothing but arithmetic counts, and done in well under a second.
SIDES = {"cpu": 2048, "cuda": 8192}
console = Console(width=140)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the GFLOP/s of the best of several large matrix products on `device`."""
    side = SIDES[device.type]
    a, b = torch.rand(2, side, side, device=device).to(dtype)
    best = min(_seconds(lambda: a @ b, device) for _ in range(6))
    return float(2 * side**3 / best / 1e9)


def gflop(network: Network) -> float:
    """Return the arithmetic of one item in GFLOP: matrix products and convolutions, a multiply-add counted as two."""
    # Attention in parts, since the counter does not know its fused form on a processor.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.inference_mode():
        network.module(network.example[:1])
    return float(counter.get_total_flops() / 1e9)


def rate(engine: Engine, items: Sequence[NDArray[Any]], buckets: Sequence[int], seconds: float) -> float:
    """Return items per second over at least `seconds`, each batch being all `items`, sent while another one runs."""
    fitting, transfer = Fitting(engine, buckets), Transfer(host_of(engine.device), buckets)
    with ThreadPoolExecutor(1, "ahead") as ahead:
        transfer.run(fitting, transfer.upload(items))  # the first one allocates, and records CUDA graphs
        done = 0
        coming = ahead.submit(transfer.upload, items)
        started = time.perf_counter()
        while done == 0 or time.perf_counter() - started < seconds:
            upload = coming.result()
            coming = ahead.submit(transfer.upload, items)
            transfer.run(fitting, upload)
            done += len(items)
        return done / (time.perf_counter() - started)


def measure(
    subject: Subject,
    store: Store,
    seconds: float,
    backends: Sequence[BackendName] = BACKENDS,
    precisions: Sequence[Precision] = PRECISIONS,
    effort: Effort = THOROUGH,
) -> dict[str, Any]:
    """Measure all engines of `subject`, a model of one network, print a table, and return the record."""
    (network,) = subject.networks
    on = host_of(subject.device)
    ceilings = {"float32": matrix_rate(on, torch.float32), "bfloat16": matrix_rate(on, torch.bfloat16)}
    each = gflop(network)
    console.print(
        f"ceiling of {machine.identity(subject.device).device}: "
        + ", ".join(
            f"{gflops / each:,.0f} items/s in {name} ({gflops:,.0f} GFLOP/s)" for name, gflops in ceilings.items()
        )
        + f", at {each:.2f} GFLOP for one of {subject.model} ({subject.kind})"
    )
    engines = []
    for backend in backends:
        for precision in precisions:
            record: dict[str, Any] = {"backend": backend, "precision": precision}
            try:
                rates = _rates(subject, backend, precision, store, seconds, effort)
                ceiling = ceilings["float32" if precision == "float32" else "bfloat16"] / each
                record |= {
                    "items_per_second": {bucket: round(one, 1) for bucket, one in rates.items()},
                    "share_of_ceiling": {bucket: round(one / ceiling, 4) for bucket, one in rates.items()},
                }
            except BuildFailed as error:
                record["reason"] = str(error)
            engines.append(record)
    _show(engines)
    return {
        "what": "engine",
        "model": subject.model,
        "kind": subject.kind,
        "device": machine.identity(subject.device).device,
        "gflop_per_item": round(each, 3),
        **{f"{name}_gflops": round(gflops) for name, gflops in ceilings.items()},
        "engines": engines,
    }


def _rates(
    subject: Subject, backend: BackendName, precision: Precision, store: Store, seconds: float, effort: Effort
) -> dict[int, float]:
    """Return items per second by bucket; raises BuildFailed with the reason why there is no such engine."""
    (network,) = subject.networks

    def tell(stage: str) -> None:
        print(f"{backend} {precision} {stage}", file=sys.stderr)

    stored = builder.build(subject, backend, precision, store, effort, tell=tell)
    buckets = sorted(stored.manifest.timings)
    specs = subject.specs(precision, stored.manifest.layout, buckets)
    (engine,) = builder.load(subject, backend, specs, stored.folder)
    example = network.example.numpy()
    return {
        bucket: rate(engine, [example[i % len(example)] for i in range(bucket)], buckets, seconds) for bucket in buckets
    }


def _show(engines: Sequence[dict[str, Any]]) -> None:
    measured = [record for record in engines if "reason" not in record]
    buckets = sorted({bucket for record in measured for bucket in record["items_per_second"]})
    table = Table("backend", "precision", *(f"batch {bucket}" for bucket in buckets), title="items/s (of the ceiling)")
    for record in measured:
        shares = record["share_of_ceiling"]
        cells = {bucket: f"{one:,.0f} ({shares[bucket]:.0%})" for bucket, one in record["items_per_second"].items()}
        table.add_row(record["backend"], record["precision"], *(cells.get(bucket, "") for bucket in buckets))
    if measured:
        console.print(table)
    for record in engines:
        if "reason" in record:
            console.print(f"{record['backend']} {record['precision']}: {record['reason']}", markup=False)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bench(
    names: Sequence[str], config: Config, face_alias: str, seconds: float, backends: Sequence[BackendName]
) -> list[dict[str, Any]]:
    """Measure the sides of the models called `names` that are one network; raises EngineError."""
    torch.set_num_threads(config.threads or machine.cores())
    device = models.devices(config)[0]
    sides: list[tuple[Kind, Clip | Face]] = [side for name in names for side in parts(name, face_alias)]
    store = Store(config.cache_folder / "engines")
    return [
        measure(models.subject_of(kind, entry, config, device), store, seconds, backends)
        for kind, entry in sides
        if kind != "detection"
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is asked for; the last line is JSON, one record for each side of each model."""
    parser = argparse.ArgumentParser(description="Measure engines against the matrix rate of the device.")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", default=["ViT-B-32__openai"], help="models as in GET /models"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), help="default: as the server does")
    parser.add_argument("--backend", nargs="+", choices=BACKENDS, default=BACKENDS, help="default: all")
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each bucket (default: 3)")
    options = parser.parse_args(arguments)
    settings = Settings()
    config = engine_config(settings)
    if options.device:
        config = replace(config, device=options.device)
    try:
        records = bench(options.names, config, settings.face_alias, options.seconds, options.backend)
    except EngineError as error:
        sys.exit(str(error))
    print(json.dumps(records))


if __name__ == "__main__":
    main()
