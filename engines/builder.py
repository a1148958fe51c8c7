"""Builds one engine: compile, load, hold against eager float32, time, publish. What does not pass is not published.

Knows the order of these steps and how time and memory are measured. Does not know how a backend compiles, what the gate
asks for, or which engine is used in the end.
"""

import logging
import math
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from engines import machine, memory
from engines.artefact import Manifest, Stored
from engines.engine import BackendName, Engine, Layout, Precision, Spec, Subject, backend_named, host_of
from engines.errors import ArtefactBroken, BuildFailed, EngineMissing
from engines.graphs import recorded
from engines.key import Key, calibration_words, key_for
from engines.store import Store

log = logging.getLogger(__name__)

LAYOUT_S = 0.5  # for which each number of streams is tried, at each of two buckets
NOWHERE = Path()  # where eager engines are loaded from


@dataclass(frozen=True, slots=True)
class Effort:
    """How long building may take.

    Each bucket is timed `rounds` times, at least `seconds` each, in turn with eager float32; the best counts. `most` is
    the largest bucket on a processor. If eager float32 needs more than `patience` seconds for the inputs of the gate,
    nothing is built: gate and timings take some ten times as long.
    """

    rounds: int
    seconds: float
    most: int
    patience: float


THOROUGH = Effort(rounds=3, seconds=0.3, most=32, patience=math.inf)
BRIEF = Effort(rounds=2, seconds=0.0, most=8, patience=2.5)  # at a start, which waits for it
GATE_ROWS = 12  # about as many inputs does the gate have

Tell = Callable[[str], None]


def build(
    subject: Subject,
    name: BackendName,
    precision: Precision,
    store: Store,
    effort: Effort = THOROUGH,
    *,
    buckets: Sequence[int] = (),
    threads: int = 0,
    again: bool = False,
    tell: Tell = lambda stage: None,
) -> Stored:
    """Return the engine of `subject` by backend `name` in `precision` from `store`, after building it if need be.

    `buckets` are ascending numbers of items, those of the subject if empty. With `again` it is built even if there is
    one, or a build failed before. `tell` is called with a phrase before each stage. Raises BuildFailed with the reason.
    """
    if (refusal := backend_named(name).available(subject.device, precision)) is not None:
        raise BuildFailed(refusal)
    if not buckets:
        on_cpu = subject.device.type != "cuda"
        buckets = [bucket for bucket in subject.buckets if not on_cpu or bucket <= effort.most]
    specs = subject.specs(precision, Layout(threads), buckets)
    calibration: tuple[Tensor, ...] = ()
    if precision == "int8":
        tell("collects what to calibrate on")
        calibration = subject.calibration()
        specs = tuple(replace(spec, calibration=calibration) for spec in specs)
    try:
        key = key_for(subject, name, precision, subject.device, specs, calibration_words(calibration))
    except EngineMissing as error:
        raise BuildFailed(str(error)) from error
    if not again and (reason := store.refusal(key)) is not None:
        raise BuildFailed(reason)
    tell("waits for its turn")
    with store.lock(key):
        if not again and (found := _found(store, key)) is not None:
            return found
        with store.draft(key) as folder:
            try:
                manifest = _make(subject, name, key, specs, buckets, folder, effort, tell)
            except Refused as error:
                store.refuse(key, str(error))
                raise
            return store.publish(key, folder, manifest)


class Refused(BuildFailed):
    """What was built did not pass the gate: trying again would end the same. Other failures may pass."""


def load(subject: Subject, name: BackendName, specs: Sequence[Spec], folder: Path) -> tuple[Engine, ...]:
    """Return the engines of the subject's networks that lie in `folder`; raises ArtefactBroken."""
    backend = backend_named(name)
    return tuple(
        recorded(backend.load(network.module if name == "eager" else None, spec, folder), spec)
        for network, spec in zip(subject.networks, specs, strict=True)
    )


def _found(store: Store, key: Key) -> Stored | None:
    found = store.find(key)
    if found is None:
        return None
    try:
        store.verify(found)
    except ArtefactBroken as error:
        store.set_aside(found, str(error))
        return None
    return found


def _make(
    subject: Subject,
    name: BackendName,
    key: Key,
    specs: Sequence[Spec],
    buckets: Sequence[int],
    folder: Path,
    effort: Effort,
    tell: Tell,
) -> Manifest:
    tell("eager float32 answers")
    _check_patience(subject, effort)
    subject.expected  # noqa: B018 - computed once and kept
    tell("is compiled")
    started = time.monotonic()
    backend = backend_named(name)
    for network, spec in zip(subject.networks, specs, strict=True):
        backend.build(network.module, spec, folder)
    build_seconds = time.monotonic() - started
    try:
        tell("is laid out")
        specs = _laid_out(subject, name, specs, buckets, folder)
        before = _memory(subject.device)
        engines = load(subject, name, specs, folder)
        subject.batch(engines, buckets[-1])()
        grown = max(0, _memory(subject.device) - before)
        tell("is examined")
        report = subject.examine(engines, specs[0].precision, buckets)
        if not report.passed:
            raise Refused("; ".join(report.failures))
        tell("is timed")
        timings, reference = _timed(subject, engines, buckets, effort)
    except BuildFailed:
        raise
    except ArtefactBroken as error:
        raise BuildFailed(f"what was built cannot be loaded: {error}") from error
    except Exception as error:  # a compiled network may raise anything, at any batch size: it is not published
        raise BuildFailed(f"what was built does not run: {type(error).__name__}: {error}") from error
    return Manifest(
        key=key,
        report=report,
        timings=timings,
        reference_timings=reference,
        layout=specs[0].layout,
        untrained=subject.untrained,
        build_seconds=build_seconds,
        memory_bytes=grown,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        cores=machine.cores(),
    )


def _check_patience(subject: Subject, effort: Effort) -> None:
    """Raise BuildFailed if the gate would take longer than a start may."""
    if effort.patience == math.inf:
        return
    run = subject.batch(_eager_float32(subject, (1,)), 1)
    run()
    seconds = GATE_ROWS / _rate(run, 1, 0.0)
    if seconds > effort.patience:
        raise BuildFailed(f"it was not examined, which would hold the start up for about {10 * seconds:.0f} s")


def _eager_float32(subject: Subject, buckets: Sequence[int]) -> tuple[Engine, ...]:
    device = host_of(subject.device)
    specs = [replace(spec, device=device) for spec in subject.specs("float32", Layout(), buckets)]
    return load(subject, "eager", specs, NOWHERE)


def _laid_out(
    subject: Subject, name: BackendName, specs: Sequence[Spec], buckets: Sequence[int], folder: Path
) -> list[Spec]:
    """Return `specs` with the number of streams that is fastest here, at the smallest and the largest bucket."""
    if name != "openvino" or subject.device.type != "cpu" or not subject.splits:
        return list(specs)
    cores = specs[0].layout.threads or machine.cores()
    tried = {}
    for streams in sorted({1, cores // 4, cores // 2, cores} - {0}):
        layout = replace(specs[0].layout, streams=streams)
        candidate = [replace(spec, layout=layout) for spec in specs]
        engines = load(subject, name, candidate, folder)
        rates = []
        for items in {buckets[0], buckets[-1]}:
            run = subject.batch(engines, items)
            run()
            rates.append(_rate(run, items, LAYOUT_S))
        tried[streams] = (math.prod(rates), candidate)
        del engines, run
        memory.release()
    return max(tried.values(), key=lambda one: one[0])[1]


def _timed(
    subject: Subject, engines: Sequence[Engine], buckets: Sequence[int], effort: Effort
) -> tuple[dict[int, float], dict[int, float]]:
    """Return the items per second of `engines` and of eager float32 by bucket, measured in turn."""
    eager = _eager_float32(subject, buckets)
    timings, reference = {}, {}
    for items in buckets:
        ours, its = subject.batch(engines, items), subject.batch(eager, items)
        its()  # the first run of a shape does more than compute
        ours()
        rounds = [(_rate(its, items, effort.seconds), _rate(ours, items, effort.seconds)) for _ in range(effort.rounds)]
        reference[items], timings[items] = (max(rates) for rates in zip(*rounds, strict=True))
    return timings, reference


def _rate(run: Callable[[], object], items: int, seconds: float) -> float:
    """Return the items per second of `run`, called at least once and for at least `seconds`."""
    count = 0
    started = time.perf_counter()
    while count == 0 or time.perf_counter() - started < seconds:
        run()
        count += 1
    return items * count / (time.perf_counter() - started)


def _memory(device: torch.device) -> int:
    """Return the bytes that this process holds on `device`: of a processor, what is resident."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    memory.release()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()
