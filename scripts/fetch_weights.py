"""Puts weights into the cache folder ahead of time: fetched from where they are published, or brought by hand.

    python -m scripts.fetch_weights NAME…                  fetch
    python -m scripts.fetch_weights NAME… --from FOLDER    import, without any network
    python -m scripts.fetch_weights --list                 what there is, and what of it is here

FOLDER may be another machine's cache folder, a Hugging Face cache (models--owner--name/snapshots/…), a cache of
torch.hub, or hold one folder per model; with a single NAME also the bare files.
"""

import argparse
import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from engines import catalog, manifest, sources, weights
from engines.catalog import Clip, Face
from engines.download import HubFile, human
from engines.errors import EngineError, UnknownModel
from engines.sources import Need
from server.settings import Settings

LISTED = "{:<55} {:<20} {}"
SUMMARY = "{:<55} {:>5} {:>12}  {}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one model: how many of its files are here, and how many bytes."""

    model: str
    files: int
    size: int
    complete: bool


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks; return 0, or 1 if any model is not complete."""
    parser = argparse.ArgumentParser(
        epilog="Complete means verified or readable; whether tensors fit their network is seen when a model is loaded.",
        prog="python -m scripts.fetch_weights",
        description=__doc__.split("\n")[0],
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="model name as in --list, in any of its spellings")
    parser.add_argument("--cache-folder", type=Path, help="default: MACHINE_LEARNING_CACHE_FOLDER")
    parser.add_argument("--from", type=Path, dest="origin", metavar="FOLDER", help="import files from here")
    parser.add_argument("--list", action="store_true", help="list all models and which of them are here")
    options = parser.parse_args(arguments)
    settings = Settings()
    cache_folder: Path = options.cache_folder or settings.cache_folder
    if options.list:
        list_models(cache_folder)
        return 0
    if not options.names:
        parser.error("give the NAME of a model, or --list")
    if options.origin and not options.origin.is_dir():
        parser.error(f"--from {options.origin} is no folder")

    names = tuple(dict.fromkeys(catalog.normalise(name) for name in options.names))
    outcomes = [bring(name, settings.face_alias, cache_folder, options.origin, alone=len(names) == 1) for name in names]
    print()
    print(SUMMARY.format("model", "files", "size", "state"))
    for outcome in outcomes:
        state = "complete" if outcome.complete else "failed, see above"
        print(SUMMARY.format(outcome.model, outcome.files, human(outcome.size), state))
    return 0 if all(outcome.complete for outcome in outcomes) else 1


def look_up(name: str, face_alias: str) -> Clip | Face:
    """Return the CLIP or face model called `name`, InsightFace's names as the server does; raises UnknownModel."""
    if name in (*catalog.names()["facial-recognition"], *catalog.FACE_ALIASES) and name != catalog.DEMO:
        return catalog.face(name, face_alias)
    return catalog.clip(name)


def bring(name: str, face_alias: str, cache_folder: Path, origin: Path | None, alone: bool) -> Outcome:
    """Fetch one model, or import it from `origin`, with one line per file; report what became of it."""
    files, size, problem = 0, 0, ""
    try:
        needs = sources.needs(look_up(name, face_alias), cache_folder)
        if not needs:
            print(f"{name} comes with the package: nothing to fetch")
        for need in needs:
            path = import_file(need, cache_folder, origin, alone) if origin else weights.obtain_if_due(need)
            if path is None:
                continue
            weights.check(path)
            files += 1
            size += path.stat().st_size
            print(describe(name, path), flush=True)
    except UnknownModel as error:
        problem = f"{error} `--list` does so too."
    except EngineError as error:
        problem = str(error)
    if problem:
        print(f"{name}: failed: {problem}", file=sys.stderr, flush=True)
    return Outcome(name, files, size, complete=not problem)


def import_file(need: Need, cache_folder: Path, origin: Path, alone: bool) -> Path | None:
    """Return the file in the cache folder, copied from `origin` unless a good one is there already.

    None for an extra that `origin` does not have. Raises MissingHere, WeightsBroken, WeightsMissing.
    """
    present = weights.locate(need)
    if present is not None and manifest.mismatch(present) is None:
        return present
    for file, revision in candidates(need, cache_folder, origin, alone):
        if file.is_file():
            return weights.adopt(file, need, revision)
    if need.extra_of:
        return None
    raise MissingHere(
        f"{need.model} needs {' or '.join(need.names)}, and {origin} has it neither under {need.folder.name}/ nor as a "
        f"Hugging Face or torch.hub cache: copy it there{'' if alone else ', or import this model alone'}."
    )


class MissingHere(EngineError):
    """The folder to import from does not have a file that is needed."""


def candidates(need: Need, cache_folder: Path, origin: Path, alone: bool) -> Iterator[tuple[Path, str]]:
    """Yield where the file may lie in `origin`, with its revision where the place tells it, the surest places first.

    Many models share the name of their file, so that a bare one can only be taken for a model that came `alone`.
    """
    for source in need.sources:
        yield origin / need.folder.relative_to(cache_folder) / source.name, ""
        yield origin / need.folder.name / source.name, ""
        if isinstance(source, HubFile):
            for root in (origin, origin / "hub"):
                yield from snapshots(root / f"models--{source.repo.replace('/', '--')}", source.name)
        else:
            for folder in (origin, origin / "checkpoints", origin / "hub" / "checkpoints"):
                yield folder / source.name, ""
        if alone:
            yield origin / source.name, ""


def snapshots(repository: Path, name: str) -> Iterator[tuple[Path, str]]:
    """Yield the file in the snapshots of a Hugging Face cache, the one that main stands for first, then newer ones."""
    main_reference = repository / "refs" / "main"
    revision = main_reference.read_text(encoding="utf-8").strip() if main_reference.is_file() else ""
    files = sorted(repository.glob(f"snapshots/*/{name}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for file in sorted(files, key=lambda path: path.parent.name != revision):
        yield file, file.parent.name


def describe(name: str, path: Path) -> str:
    """Return the line for one file: name, size, where it came from, how it was verified, where it lies."""
    record = manifest.read(path.parent).get(path.name)
    origin = f"from {record.source}" if record else "brought by hand"
    revision = f" at {record.revision[:12]}" if record and record.revision else ""
    verified = (
        f"{record.verified} verified"
        if record and record.verified != "by hand"
        else "readable, its content not verified"
    )
    return f"{name}: {path.name}, {human(path.stat().st_size)}, {origin}{revision}, {verified}, in {path.parent}"


def list_models(cache_folder: Path) -> None:
    """Print all models and whether their files are in the cache folder; looks at no content."""
    print(LISTED.format("model", "task", "weights"))
    for task, names in catalog.names().items():
        for name in names:
            entry = catalog.clip(name) if task == "clip" else catalog.face(name)
            required = [need for need in sources.needs(entry, cache_folder) if not need.extra_of]
            missing = [need for need in required if weights.locate(need) is None]
            state = "come with the package" if not required else "to be fetched" if missing else "here"
            print(LISTED.format(name, task, state))


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `… --list | head` ends quietly
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # one line per request otherwise
    sys.exit(main())
