"""Embeds a whole folder of photos, and the faces in them, into one Parquet file, straight through the engines.

    python -m scripts.index_photos FOLDER --out index.parquet

Run again it goes on where it stopped: photos that have not changed are kept, those that are gone are left out, and what
failed is tried once more. Nothing is gone that lies in a folder which cannot be looked into; another folder, or one
where most photos are no longer, is refused until --moved or --gone says that it is meant. Ctrl-C ends it after what is
on its way. Exit code 0: every photo is in; 1: some could not be read, and are listed in index.parquet.failed.txt;
2: nothing could be done; 130: interrupted, run it again to go on.
"""

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from engines import catalog
from engines.errors import EngineError
from scripts.bulk.embed import Run
from scripts.bulk.index import Index
from scripts.bulk.inside import inside
from scripts.bulk.made_with import MadeWith, made_with
from scripts.bulk.progress import Progress
from scripts.bulk.table import About, BadIndex, opened
from server.batcher import Closed
from server.loading import engine_config
from server.settings import Settings
from server.shelf import Part
from server.wire import DEFAULT_MIN_SCORE, Ask

CLIP, FACE = "ViT-B-32__openai", "facenet-vggface2"
MOST = 0.5  # of the index: if more of it is not there, a disk is missing rather than so many photos
INTERRUPTED = 130  # as shells have it: 128 and the number of SIGINT


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks; return the exit code."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    screen = Console(stderr=True)
    if not options.folder.is_dir():
        screen.print(f"{options.folder} is no folder: give the one with the photos.", markup=False, soft_wrap=True)
        return 2
    try:
        return index(options, Settings(), screen)
    except (EngineError, BadIndex, Closed) as error:
        screen.print(str(error), markup=False, soft_wrap=True)
    except OSError as error:
        screen.print(
            f"The index cannot be written ({error}): make room, or give another --out. What was written stays, and the "
            "next run goes on behind it.",
            markup=False,
            soft_wrap=True,
        )
    except KeyboardInterrupt:
        screen.print("Ended at once. Run the same command again to go on.")
        return INTERRUPTED
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.index_photos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Cache folder, device, engine and all else are taken from the settings of the server: see the README.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where the photos are, in folders below it too")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the index, as index.parquet")
    parser.add_argument("--clip", metavar="NAME", help=f"CLIP model; default: that of the index, else {CLIP}")
    parser.add_argument("--face", metavar="NAME", help=f"face model; default: that of the index, else {FACE}")
    parser.add_argument("--no-faces", action="store_true", help="look for no faces: much faster")
    parser.add_argument("--min-score", type=_score, help=f"least score of a face; default: {DEFAULT_MIN_SCORE}")
    parser.add_argument("--moved", action="store_true", help="go on with an index although its folder was another one")
    parser.add_argument("--gone", action="store_true", help="leave photos out even if most of the index are not there")
    return parser


def _score(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= (score := float(text)) <= 1:  # false for NaN
            return score
    raise argparse.ArgumentTypeError(f"{text!r} is no score: give a number from 0 to 1")


def index(options: argparse.Namespace, settings: Settings, screen: Console) -> int:
    """Embed the photos; raises EngineError, BadIndex, Closed and OSError where that cannot be done."""
    screen.print("looks for models and weights", highlight=False)
    mine = _made_with(options, settings)
    clip = catalog.clip(mine.clip)
    face = catalog.face(mine.face, settings.face_alias) if mine.face else None
    about = About(
        folder=str(options.folder.absolute()).encode("utf-8", "backslashreplace").decode(),
        made_with=mine,
        dim=clip.dim,
        face_dim=face.dim if face else 0,
    )
    parts = [Part("visual", clip), *([Part("detection", face), Part("recognition", face)] if face else [])]
    ask = Ask(visual=mine.clip, detection=mine.face or None, recognition=mine.face or None, min_score=mine.min_score)
    work = Index(options.out, about)
    try:
        if there := work.begin(moved=options.moved):
            screen.print(f"{there} photos are in the index already", highlight=False)
        return asyncio.run(_run(settings, parts, work, options, ask, screen))
    finally:
        work.close()


def _made_with(options: argparse.Namespace, settings: Settings) -> MadeWith:
    """Return what to make the index with: what is asked for, else what it was made with before."""
    before = opened(options.out)[1].made_with if options.out.exists() else None
    clip = options.clip or (before.clip if before else CLIP)
    face = "" if options.no_faces else options.face or (before.face if before else FACE)
    score = options.min_score
    if score is None:
        score = before.min_score if before and before.face else DEFAULT_MIN_SCORE
    return made_with(settings, engine_config(settings), clip, face, score)


async def _run(
    settings: Settings, parts: Sequence[Part], work: Index, options: argparse.Namespace, ask: Ask, screen: Console
) -> int:
    folder, known = options.folder, work.ledger.unmet()
    failures = work.out.with_name(f"{work.out.name}.failed.txt")
    screen.print("loads the models", highlight=False)
    async with inside(settings, parts) as ready:
        screen.print(f"embeds with {ready.engine}", highlight=False)
        with Progress(screen, failures) as progress:
            run = Run(ready, work, folder, ask, progress)
            _until_interrupted(run, screen)
            await run.photos()
    if run.stopped:
        screen.print("Interrupted. Run the same command again to go on.")
        return INTERRUPTED
    if not progress.embedded + progress.kept + progress.failed:
        screen.print(f"There is no photo in {folder}: the index stays as it was.", markup=False, soft_wrap=True)
        return 2
    gone = work.ledger.unmet()
    if gone > MOST * known and not options.gone:
        screen.print(
            f"{gone} of {known} photos of the index are not in {folder}: see whether its disks are mounted, or add "
            "--gone to leave them out. The index stays as it was; what is new is kept for the next run.",
            markup=False,
            soft_wrap=True,
        )
        return 2
    await asyncio.to_thread(work.finish)
    _tell(screen, run, progress, gone, failures)
    return 1 if progress.failed else 0


def _until_interrupted(run: Run, screen: Console) -> None:
    """Let the first signal end the run after what is on its way, and the second one at once."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        run.stop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
        screen.print("Ends after the photos that are on their way; Ctrl-C again ends at once, and loses those.")

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)


def _tell(screen: Console, run: Run, progress: Progress, gone: int, failures: Path) -> None:
    """Say what became of all files, and which could not be read."""
    told = {
        "embedded": progress.embedded,
        "kept": progress.kept,
        "gone and left out": gone,
        "failed": progress.failed,
        "no pictures by their names": run.walk.others,
        "links to folders that are reached without them": run.walk.links,
    }
    for what, count in told.items():
        if count:
            screen.print(f"{what}: {count}", markup=False, highlight=False)
    for line in progress.first:
        screen.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    if progress.failed:
        more = progress.failed - len(progress.first)
        rest = f"{more} more, and all of them, are" if more else "They are"
        screen.print(f"{rest} listed in {failures}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
