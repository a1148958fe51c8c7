"""Which engine a model runs on, and why: the fastest one in the store that passed the gate on this device, else eager.

Knows settings, store and timings. Does not know how engines are built (builder.py) or examined (parity.py); what it
has to examine itself, eager PyTorch in a lower precision, it asks the builder for.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from engines import builder, machine
from engines.artefact import Manifest, Stored
from engines.engine import Choice, Layout, Precision, Subject, host_of
from engines.errors import ArtefactBroken, BuildFailed, EngineMissing
from engines.key import key_for
from engines.model import Config
from engines.store import Store
from engines.store import at as open_store

log = logging.getLogger(__name__)

# AOTInductor's runner holds Python's lock while it computes. On a GPU it only launches there; on a processor a server
# would answer nothing for as long as a batch takes. Who asks for it by name gets it.
STALLS = (("inductor", "cpu"),)
ENOUGH = 0.95  # of the best throughput: the smallest bucket that reaches it is the largest that is used


def choose(subject: Subject, config: Config) -> Choice:
    """Return the engines for `subject` on its device, the batch sizes to feed them with, and the reason.

    Never fails for want of a built engine: eager float32 is always there. int8 is a wish: where there is no engine in
    it, or can be none, the others are chosen among as without it.
    """
    if config.precision == "int8" and (obstacle := _no_int8(subject)) is not None:
        chosen = choose(subject, replace(config, precision="auto"))
        return replace(chosen, reason=f"{chosen.reason}; not int8: {obstacle.rstrip('.')}")
    if (config.engine, config.precision) == ("eager", "float32"):
        return eager_float32(subject, "the settings ask for it")
    store = open_store(config.cache_folder / "engines")
    candidates = fitting(subject, config, store)
    remarks: list[str] = []
    if not candidates and config.examine:
        candidates, remarks = _eager_in_lower_precisions(subject, config, store)
    while candidates:
        best = max(candidates, key=lambda one: (_is_wish(one, config), speedup(one.manifest, candidates)))
        ratio = speedup(best.manifest, candidates)
        if ratio <= 1 and config.engine in ("auto", "eager") and not _is_wish(best, config):
            remark = f"faster here than the best that passed, {_words(best.manifest)} ({ratio:.2f} x)"
            if best.manifest.key.backend != "eager":  # there is nothing left to build
                return eager_float32(subject, remark)
            remarks.append(remark)
            break
        try:
            store.verify(best)
        except ArtefactBroken as error:
            store.set_aside(best, str(error))
            candidates.remove(best)
            continue
        try:
            return _load(subject, config, best, ratio)
        except ArtefactBroken as error:
            # Its files are as they were published: memory may be short, or a disk full. It is tried at the next load.
            log.warning(
                "%s (%s): %s cannot be loaded now. %s", subject.model, subject.kind, _words(best.manifest), error
            )
            candidates.remove(best)
    return eager_float32(subject, "; ".join([*remarks, how_to_build(subject, config)]))


def eager_float32(subject: Subject, reason: str) -> Choice:
    """Return PyTorch as it is, which needs no gate: it is what all others are held against."""
    device = host_of(subject.device)
    # On a GPU every new shape costs memory that the caching allocator keeps, so few shapes keep it flat.
    buckets = subject.buckets if device.type == "cuda" else tuple(range(1, subject.buckets[-1] + 1))
    specs = [replace(spec, device=device) for spec in subject.specs("float32", Layout(), buckets)]
    return Choice(builder.load(subject, "eager", specs, builder.NOWHERE), buckets, reason, False, _in_memory(subject))


def how_to_build(subject: Subject, config: Config) -> str:
    """Return the sentence that tells a person how to get a compiled engine such as the settings ask for."""
    if config.engine == "eager":
        return "the settings ask for eager PyTorch"
    options = [f"--backend {config.engine}"] if config.engine != "auto" else []
    options += [f"--precision {config.precision}"] if config.precision != "auto" else []
    command = " ".join(["python -m scripts.build_engines", subject.model, *options])
    in_int8 = " in int8" if config.precision == "int8" else ""
    return f"no compiled engine{in_int8}: {command} builds one"


def speedup(manifest: Manifest, rivals: Sequence[Stored]) -> float:
    """Return how many times as fast as eager float32 in the same run, over the buckets that all `rivals` have.

    The geometric mean over buckets: a queue runs lone items as well as full batches, and neither may be forgotten.
    """
    common = set(manifest.timings).intersection(*(rival.manifest.timings for rival in rivals))
    logs = [math.log(manifest.timings[bucket] / manifest.reference_timings[bucket]) for bucket in common]
    return math.exp(sum(logs) / len(logs))


def useful(timings: Mapping[int, float]) -> tuple[int, ...]:
    """Return the buckets worth filling: up to the smallest one that reaches ENOUGH of the best items per second.

    Beyond that a larger batch only makes others wait longer.
    """
    enough = ENOUGH * max(timings.values())
    largest = min(bucket for bucket, rate in timings.items() if rate >= enough)
    return tuple(sorted(bucket for bucket in timings if bucket <= largest))


def fitting(subject: Subject, config: Config, store: Store) -> list[Stored]:
    """Return what may be used here; tell in the log of each engine that was built for something else."""
    found = []
    for stored in store.all():
        key = stored.manifest.key
        if (key.model, key.kind) != (subject.model, subject.kind) or not _allowed(stored.manifest, subject, config):
            continue
        if differences := _differences(subject, stored.manifest):
            log.warning(
                "%s (%s): the engine %s is not used. %s",
                subject.model,
                subject.kind,
                _words(stored.manifest),
                "; ".join(differences),
            )
        else:
            found.append(stored)
    return found


def _allowed(manifest: Manifest, subject: Subject, config: Config) -> bool:
    key = manifest.key
    if config.engine == "auto" and (key.backend, subject.device.type) in STALLS:
        return False
    if config.engine not in ("auto", key.backend):
        return False
    if config.precision == "int8":
        return True
    if config.precision == "auto":
        # What int8 loses depends on the weights: a gate that was passed by random ones says nothing of real ones.
        return key.precision != "int8" or not manifest.untrained
    return config.precision == key.precision


def _is_wish(stored: Stored, config: Config) -> bool:
    """Return whether the settings name the precision of an engine, other than that of eager PyTorch as it is."""
    return stored.manifest.key.precision == config.precision != "float32"


def _no_int8(subject: Subject) -> str | None:
    """Return None, or one sentence why there can be no engine of `subject` in int8 on its device."""
    if subject.device.type == "cuda":
        return "no backend builds it for GPUs of NVIDIA"
    return subject.no_int8 or machine.native("int8", subject.device)


def _differences(subject: Subject, manifest: Manifest) -> list[str]:
    key = manifest.key
    specs = subject.specs(key.precision, Layout(), sorted(manifest.timings))
    try:
        # Whatever an engine in int8 was calibrated on, it passed.
        here = key_for(subject, key.backend, key.precision, subject.device, specs, key.calibration)
        return key.differences(here)
    except EngineMissing as error:  # its libraries are not installed
        return [str(error)]


def _load(subject: Subject, config: Config, stored: Stored, ratio: float) -> Choice:
    """Raises ArtefactBroken."""
    manifest = stored.manifest
    key = manifest.key
    # How many streams are the fastest was measured with the cores of that time.
    measured = manifest.layout.streams if manifest.cores == machine.cores() else 1
    layout = Layout(config.threads, config.streams or measured, hint=config.hint)
    specs = subject.specs(key.precision, layout, sorted(manifest.timings))
    engines = builder.load(subject, key.backend, specs, stored.folder)
    reason = f"{ratio:.1f} x eager float32 here, lowest cosine to it {manifest.report.lowest_cosine:.5f}"
    # Of the same weights there may be a better one to build.
    built = key.backend != "eager" and (config.precision != "int8" or key.precision == "int8")
    reason = reason if built else f"{reason}; {how_to_build(subject, config)}"
    of_weights = sum(file.bytes for file in manifest.files.values()) or _in_memory(subject)
    return Choice(engines, useful(manifest.timings), reason, built, of_weights)


def _in_memory(subject: Subject) -> int:
    """Return the bytes of the networks as they are, in float32."""
    modules = [network.module for network in subject.networks]
    return sum(tensor.nbytes for module in modules for tensor in (*module.parameters(), *module.buffers()))


def _eager_in_lower_precisions(subject: Subject, config: Config, store: Store) -> tuple[list[Stored], list[str]]:
    """Return eager PyTorch in the precisions that the settings allow and that pass, and why the others do not."""
    passed: list[Stored] = []
    remarks = []
    lower: tuple[Precision, ...] = ("bfloat16", "float16")
    for precision in lower:
        if config.precision not in ("auto", "int8", precision):
            continue
        try:
            passed.append(builder.build(subject, "eager", precision, store, builder.BRIEF))
        except BuildFailed as error:
            remarks.append(f"not {precision}: {str(error).rstrip('.')}")
    return passed, remarks


def _words(manifest: Manifest) -> str:
    return f"{manifest.key.backend} {manifest.key.precision}"
