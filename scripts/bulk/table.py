"""Rows of an index as Parquet has them: the columns, what the file says of itself, rows in and out.

Knows Arrow. Does not know how rows come to be, nor which of them are kept.
"""

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet
from pydantic import BaseModel, ConfigDict, ValidationError

from scripts.bulk.made_with import MadeWith
from scripts.bulk.walk import Photo, shown
from server.wire import Face

ABOUT = b"facet"  # the key of what the file says of itself
FORMAT = 1

Vector = NDArray[np.float32]


class BadIndex(Exception):
    """A file is no index, or none of this version, or was made with other models; says what to do."""


class About(BaseModel):
    """What the file says of itself: made with what, of which folder, with embeddings of which lengths."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    folder: str
    made_with: MadeWith
    dim: int
    face_dim: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """One photo: its size (width, height), what was computed of it, or the reason why nothing was.

    `digest` is of the file's bytes, equal for equal files. `engine` is what computed it, in words.
    """

    photo: Photo
    engine: str = ""
    size: tuple[int, int] | None = None
    digest: bytes | None = None
    embedding: Vector | None = None
    faces: Sequence[Face] | None = None
    failure: str | None = None


def schema(about: About) -> Any:
    """Return the columns of an index, with what the file says of itself."""
    face = pa.struct(
        [
            pa.field("box", pa.list_(pa.float32(), 4)),  # x1, y1, x2, y2 in pixels of the photo
            pa.field("score", pa.float32()),
            pa.field("embedding", pa.list_(pa.float32(), about.face_dim)),
        ]
    )
    columns = [
        pa.field("path", pa.string()),  # below the folder, for people
        pa.field("raw_path", pa.binary()),  # the same, only where it is no text
        pa.field("bytes", pa.int64()),
        pa.field("modified", pa.int64()),  # ns since 1970
        pa.field("digest", pa.binary(16)),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("model", pa.string()),
        pa.field("engine", pa.string()),
        pa.field("embedding", pa.list_(pa.float32(), about.dim)),
        *([pa.field("faces", pa.list_(face))] if about.face_dim else []),
        pa.field("failure", pa.string()),
    ]
    return pa.schema(columns, metadata={ABOUT: about.model_dump_json().encode()})


def table(rows: Sequence[Row], about: About) -> Any:
    """Return `rows` as an Arrow table."""
    return pa.Table.from_pylist([_record(row, about) for row in rows], schema=schema(about))


def _record(row: Row, about: About) -> dict[str, Any]:
    width, height = row.size or (None, None)
    faces = None
    if row.faces is not None:
        faces = [{"box": face.box, "score": face.score, "embedding": face.embedding} for face in row.faces]
    return {
        "path": shown(row.photo.path),
        "raw_path": None if shown(row.photo.path).encode() == row.photo.path else row.photo.path,
        "bytes": row.photo.bytes,
        "modified": row.photo.modified,
        "digest": row.digest,
        "width": width,
        "height": height,
        "model": about.made_with.clip,
        "engine": row.engine,
        "embedding": row.embedding,
        "faces": faces,
        "failure": row.failure,
    }


def opened(path: Path) -> tuple[Any, About]:
    """Return an index, opened to be read in parts, and what it says of itself.

    Raises BadIndex; FileNotFoundError if it is not there.
    """
    if not path.exists():  # Arrow's own error does not say of which file
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    if path.is_dir():
        raise BadIndex(f"{path} is a folder: give the path of a file, such as {path / 'index.parquet'}.")
    try:
        file = parquet.ParquetFile(path)
        about = About.model_validate_json((file.schema_arrow.metadata or {}).get(ABOUT, b""))
    except (pa.ArrowException, OSError, ValidationError) as error:  # it may be anything, of anybody
        raise BadIndex(f"{path} is no index of photos that can be read here: give the path of another file.") from error
    if about.format != FORMAT:
        raise BadIndex(f"{path} is of another version of Facet: delete it and run scripts.index_photos again.")
    return file, about


def paths(batch: Any) -> list[bytes]:
    """Return the paths of a batch of rows as bytes, exactly as the file system has them."""
    texts, raws = batch.column("path").to_pylist(), batch.column("raw_path").to_pylist()
    return [text.encode() if raw is None else raw for text, raw in zip(texts, raws, strict=True)]
