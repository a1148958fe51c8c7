"""Devices, instruction sets, engines, weights, and a forward of every model that is loaded at the start.

Everything below torch is asked through engines/, which is imported when it is first needed. Weights that are missing
are told of and not fetched.
"""

import importlib
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from engines import catalog
from engines.errors import EngineError
from engines.machine import cores
from engines.model import BackendName, Config, Kind, Precision
from server.check.finding import Finding, Level
from server.settings import Settings
from server.shelf import Part

LOWER: tuple[Precision, ...] = ("bfloat16", "float16", "int8")
DEMO_KINDS: tuple[Kind, ...] = get_args(Kind)
MORE = "docs/engines.md has more."


def devices(config: Config) -> tuple[tuple[Any, ...], list[Finding]]:
    """Return the devices that models run on, none if there is no such, and what is to be said of them."""
    machine = importlib.import_module("engines.machine")
    with heard("devices") as remarks:
        try:
            picked: tuple[Any, ...] = machine.pick_devices(config)
        except EngineError as error:
            return (), [Finding("devices", config.device, str(error), "to do", "Then run this check again.")]
    found = [Finding("devices", "cores at hand", str(cores()))]
    for device in picked:
        identity = machine.identity(device)
        found.append(Finding("devices", str(device), " ".join(filter(None, (identity.device, identity.cuda)))))
        found.append(Finding("devices", "instructions", identity.instructions or "not known"))
    return picked, [*found, *remarks, *_precisions(picked[0], config)]


def _precisions(device: Any, config: Config) -> Iterator[Finding]:
    native = importlib.import_module("engines.machine").native
    for precision in LOWER:
        reason = native(precision, device)
        if reason is None:
            yield Finding("devices", precision, "computed by the hardware")
        elif config.precision == precision:
            yield Finding("devices", precision, reason, "to do", "Set MACHINE_LEARNING_PRECISION=auto.")
        else:
            yield Finding("devices", precision, reason, "note", "Leave MACHINE_LEARNING_PRECISION at auto.")


def engines(device: Any, config: Config) -> Iterator[Finding]:
    """Look at every backend, and at the engines that are built."""
    backend_named = importlib.import_module("engines.engine").backend_named
    for name in get_args(BackendName):
        reason = backend_named(name).available(device, "float32")
        if reason is None:
            yield Finding("engines", name, "available")
        elif config.engine == name:
            yield Finding("engines", name, reason, "to do", "Or set MACHINE_LEARNING_ENGINE=auto.")
        else:
            yield Finding("engines", name, reason, "note", "Nothing to do unless you want it.")
    with heard("engines") as remarks:
        stored = importlib.import_module("engines.store").at(config.cache_folder / "engines").all()
    yield from remarks
    built = [one.manifest.key for one in stored if one.manifest.key.backend != "eager"]  # that was only examined
    for key in built:
        yield Finding("engines", "built", f"{key.model} ({key.kind}), {key.backend} {key.precision}")
    if not built:
        advice = "To be faster, run: python -m scripts.build_engines NAME"
        yield Finding("engines", "built", "none", "note", advice)


def weights(parts: Sequence[Part], settings: Settings) -> tuple[set[Part], list[Finding]]:
    """Return the parts whose weights are here, and what is to be said of the others and of the cache folder."""
    found = list(_kept(settings.cache_folder))
    ready = set(parts)
    for entry in dict.fromkeys(part.entry for part in parts):
        problems = [] if settings.untrained else list(_problems(entry, settings.cache_folder))
        if problems:
            ready -= {part for part in parts if part.entry == entry}
            advice = f"Run: python -m scripts.fetch_weights {entry.name}"
            found += [Finding("weights", entry.name, problem, "to do", advice) for problem in problems]
    return ready, found


def _kept(folder: Path) -> Iterator[Finding]:
    kept = sorted(path for kind in ("clip", "faces") for path in (folder / kind).glob("*") if path.is_dir())
    sizes = [sum(file.stat().st_size for file in path.iterdir() if file.is_file()) for path in kept]
    listed = [f"{path.name} ({size / 1e6:.0f} MB)" for path, size in zip(kept, sizes, strict=True)]
    yield Finding("weights", "kept", ", ".join(listed) or "none; demo comes with the package")


def _problems(entry: Any, folder: Path) -> Iterator[str]:
    """Yield what is wrong with the files that a model needs: not there, or no longer what was verified."""
    locate = importlib.import_module("engines.weights").locate
    manifest = importlib.import_module("engines.manifest")
    for need in importlib.import_module("engines.sources").needs(entry, folder):
        path = locate(need)
        if path is None and not need.extra_of:
            yield f"{' or '.join(need.names)} is not in {need.folder}"
        elif path is not None and manifest.touched(path) and (why := manifest.mismatch(path)):
            yield f"{path}: {why}"


def forwards(parts: Sequence[Part], config: Config) -> Iterator[Finding]:
    """Load every part as the server does and run one input through it, on each device."""
    models = importlib.import_module("engines.models")
    trial = importlib.import_module("engines.trial")
    for part in parts:
        with heard("models") as remarks:
            try:
                began = time.perf_counter()
                loaded = models.load(part.kind, part.entry, config)
                took = time.perf_counter() - began
                found = [_ran(part, model, took, trial.forward) for model in loaded]
            except EngineError as error:
                found = [Finding("models", str(part), str(error), "to do", "Then run this check again.")]
            except Exception as error:  # noqa: BLE001 - loading runs foreign code: whatever it raises is to be told
                says = f"{type(error).__name__}: {error}"
                found = [
                    Finding("models", str(part), says, "to do", "Set MACHINE_LEARNING_ENGINE=eager and try again.")
                ]
        yield from (*found, *remarks)


def _ran(part: Part, model: Any, took: float, forward: Any) -> Finding:
    answer = forward(model, part.kind)  # the first one takes longer than all others will
    began = time.perf_counter()
    forward(model, part.kind)
    milliseconds = 1000 * (time.perf_counter() - began)
    info = model.info
    return Finding(
        "models",
        str(part),
        f"{answer}, in {milliseconds:.0f} ms after {took:.1f} s of loading: on {info.device}, {info.backend} "
        f"{info.precision} ({info.reason})",
    )


def tried(parts: Sequence[Part]) -> list[Part]:
    """Return what to try where these are preloaded: the demo if there are none, since that needs no weights."""
    return list(parts) or [Part(kind, catalog.look_up(kind, catalog.DEMO)) for kind in DEMO_KINDS]


class _Ear(logging.Handler):
    """Takes the warnings of engines/ as findings."""

    def __init__(self, section: str) -> None:
        super().__init__(logging.WARNING)
        self.section = section
        self.found: list[Finding] = []

    def emit(self, record: logging.LogRecord) -> None:
        level: Level = "to do" if record.levelno >= logging.ERROR else "note"
        self.found.append(Finding(self.section, "log", record.getMessage(), level, MORE))


@contextmanager
def heard(section: str) -> Iterator[list[Finding]]:
    """Give a list that fills with what engines/ warns of within the block, in place of the log."""
    ear, logger = _Ear(section), logging.getLogger("engines")
    before = logger.propagate
    logger.addHandler(ear)
    logger.propagate = False
    try:
        yield ear.found
    finally:
        logger.removeHandler(ear)
        logger.propagate = before
