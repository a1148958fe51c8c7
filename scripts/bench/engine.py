"""What each engine of a model makes of the device's matrix rate, in every bucket, in turn with eager float32.

Batches go the whole way: sent over the bus while the one before computes, run, fetched. What is not in the store of
engines yet is built, as by scripts.build_engines. Knows no queue and no HTTP.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, get_args

import torch
from numpy.typing import NDArray

from engines import builder, machine, models
from engines.builder import THOROUGH, Effort
from engines.engine import BackendName, Engine, Precision, Subject, host_of
from engines.errors import BuildFailed
from engines.fitting import Fitting
from engines.store import Store
from engines.transfer import Transfer
from scripts.bench.ceiling import Ceiling, gflop
from scripts.bench.options import Options
from scripts.bench.record import Row, row
from scripts.bench.show import say, tell
from scripts.bench.turns import in_turn
from scripts.build_engines import parts

Items = Sequence[NDArray[Any]]


def measure(options: Options, ceiling: Ceiling, effort: Effort = THOROUGH) -> list[Row]:
    """Measure the engines of every side of the models that is one network; raises EngineError for an unknown one."""
    config = options.config()
    torch.set_num_threads(config.threads or machine.cores())
    device = models.devices(config)[0]
    store = Store(options.cache / "engines")
    rows = []
    for name in options.models:
        for kind, entry in parts(name, ""):
            if kind != "detection":
                rows += _of(models.subject_of(kind, entry, config, device), store, options, ceiling, effort)
    return rows


def _of(subject: Subject, store: Store, options: Options, ceiling: Ceiling, effort: Effort) -> list[Row]:
    (network,) = subject.networks
    each = gflop(network)
    say(f"{subject.model} ({subject.kind}): {each:.2f} GFLOP each")
    rows = []
    for backend in get_args(BackendName):
        for precision in get_args(Precision):
            if options.engine in ("auto", backend) and options.precision in ("auto", precision):
                try:
                    rates = _rates(subject, backend, precision, store, options, effort)
                except BuildFailed as error:
                    say(f"{subject.model} ({subject.kind}), {backend} {precision}: {error}")
                    continue
                most = ceiling.items(precision, each)
                rows += [
                    row(
                        *("engine", subject.kind, "items/s", ours, eager),
                        at=bucket,
                        model=subject.model,
                        engine=f"{backend} {precision}",
                        ceiling=most,
                    )
                    for bucket, (ours, eager) in rates.items()
                ]
    return rows


def _rates(
    subject: Subject, backend: BackendName, precision: Precision, store: Store, options: Options, effort: Effort
) -> dict[int, list[list[float]]]:
    """Return items per second by bucket, of the engine and of eager float32; BuildFailed if there is no such engine."""
    (network,) = subject.networks
    stage = partial("{} {} {}".format, backend, precision)
    stored = builder.build(subject, backend, precision, store, effort, tell=lambda phrase: tell(stage(phrase)))
    buckets = sorted(stored.manifest.timings)
    specs = subject.specs(precision, stored.manifest.layout, buckets)
    (engine,) = builder.load(subject, backend, specs, stored.folder)
    (eager,) = builder.load(subject, "eager", subject.specs("float32", specs[0].layout, buckets), builder.NOWHERE)
    example = network.example.numpy()
    found = {}
    for bucket in buckets:
        items = [example[number % len(example)] for number in range(bucket)]
        sides: dict[str, Callable[[], float]] = {
            "ours": partial(rate, engine, items, buckets, options.seconds),
            "eager float32": partial(rate, eager, items, buckets, options.seconds),
        }
        found[bucket] = list(in_turn(f"{stage('')}batch {bucket}", sides, options.rounds).values())
    return found


def rate(engine: Engine, items: Items, buckets: Sequence[int], seconds: float) -> float:
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
