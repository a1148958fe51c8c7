"""Searches an index of photos by words, or by another picture.

    python -m scripts.search index.parquet "a red circle"
    python -m scripts.search index.parquet --image photo.jpg

Prints the best matches with the cosine of their embeddings, the best first. The model is the one that the index was
made with. The index is read group by group, so it may be larger than the memory.
"""

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from engines import catalog
from engines.errors import EngineError
from scripts.bulk.best import Match, nearest
from scripts.bulk.index import parts_of
from scripts.bulk.inside import inside
from scripts.bulk.made_with import made_with
from scripts.bulk.table import About, BadIndex, Vector, opened
from server.errors import RequestError
from server.loading import engine_config
from server.settings import Settings
from server.shelf import Part
from server.wire import Ask


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks; return 0, or 2 if nothing can be searched."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("index", type=Path, metavar="INDEX", help="a file made by scripts.index_photos")
    parser.add_argument("text", nargs="?", metavar="TEXT", help="what the photo shows")
    parser.add_argument("--image", type=Path, metavar="FILE", help="find photos like this one instead")
    parser.add_argument("--language", metavar="CODE", help="of the text, like de: for models that want to know")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="how many to print (default: 10)")
    parser.add_argument("--json", action="store_true", help="print JSON, with sizes and copies")
    options = parser.parse_args(arguments)
    if (options.text is None) == (options.image is None):
        parser.error("give either a TEXT or an --image")
    if options.top < 1:
        parser.error("--top must be at least 1")
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    try:
        file, about = opened(options.index)
        ask = Ask(
            visual=about.made_with.clip if options.image else None,
            textual=about.made_with.clip if options.text is not None else None,
            image=options.image.read_bytes() if options.image else None,
            text=options.text,
            language=options.language,
        )
        wanted = asyncio.run(_vector(ask, about))
        found = nearest(file, about, wanted, options.top)
    except (EngineError, RequestError, BadIndex) as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(_unread(error, options.index), file=sys.stderr)
        return 2
    show(found, about, as_json=options.json)
    return 0


async def _vector(ask: Ask, about: About) -> Vector:
    """Return what is searched for as a vector (dim,) in the space of the index; raises BadIndex if that is not here."""
    # Prepared as the photos of the index were.
    settings = Settings().model_copy(update={"clip_resize": about.made_with.resize, "exif": about.made_with.exif})
    name = about.made_with.clip
    here = made_with(settings, engine_config(settings), name)
    without_faces = about.made_with.model_copy(update={"face": "", "face_weights": "", "min_face": 0, "min_score": 0.0})
    if differs := without_faces.difference(here):
        raise BadIndex(
            f"Vectors of the index cannot be compared with those made here ({differs}): search with the settings and "
            "the cache folder that it was made with, or make it anew."
        )
    part = Part("textual" if ask.image is None else "visual", catalog.clip(name))
    async with inside(settings, [part]) as ready:
        answer = await ready.predictor.answer(ask, flow=None)
    assert answer.embedding is not None, "it was asked for"  # noqa: S101 - an invariant of predict
    return answer.embedding


def _unread(error: OSError, index: Path) -> str:
    if not index.exists() and parts_of(index).exists():
        return f"{index} is not finished: run scripts.index_photos again as before, and let it end."
    return f"{error.filename} cannot be read: {error.strerror}. Give the path of an index, and of a picture."


def show(found: Sequence[Match], about: About, *, as_json: bool) -> None:
    """Print matches, with the paths where the photos lay when the index was made."""
    if as_json:
        records: list[dict[str, Any]] = [
            {**asdict(match), "score": round(match.score, 6), "file": _file(match, about)} for match in found
        ]
        print(orjson.dumps(records, option=orjson.OPT_INDENT_2).decode())
        return
    for match in found:
        copies = f"  (and {match.copies} cop{'y' if match.copies == 1 else 'ies'})" if match.copies else ""
        print(f"{match.score:.3f}  {_file(match, about)}{copies}")


def _file(match: Match, about: About) -> str:
    return f"{about.folder.rstrip('/')}/{match.path}"


if __name__ == "__main__":
    sys.exit(main())
