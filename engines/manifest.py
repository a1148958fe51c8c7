"""What lies in a folder of the cache: where each file came from, and whether it is still what was verified.

Keeps manifest.json beside the files, for people to read and for the checks here. Deliberately knows neither networks
nor formats. A file without a record was brought by hand: it is as good as it loads.
"""

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

log = logging.getLogger(__name__)

FILE = "manifest.json"
Verified = Literal["sha256", "git-sha1", "size", "by hand"]


@dataclass(frozen=True, slots=True)
class Record:
    """One file: its source, the revision there, and what it measured when it was put in place.

    `size` is in bytes; `verified` says what it was held against: the published sha256, the id that git gives to its
    content, only its length, or nothing but that it loads.
    """

    source: str
    revision: str
    size: int
    sha256: str
    verified: Verified
    mtime_ns: int


def read(folder: Path) -> dict[str, Record]:
    """Return the records of `folder` by file name; empty, with a warning, if its manifest cannot be understood."""
    path = folder / FILE
    try:
        records: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["files"]
        return {name: Record(**record) for name, record in records.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s cannot be understood (%s): the files beside it count as brought by hand", path, error)
        return {}


def write(path: Path, source: str, revision: str, verified: Verified, digest: str) -> Record:
    """Record the file at `path`, of sha256 `digest`; return the record. The caller holds the folder's lock."""
    stat = path.stat()
    record = Record(source, revision, stat.st_size, digest, verified, stat.st_mtime_ns)
    _save(path.parent, read(path.parent) | {path.name: record})
    return record


def touched(path: Path) -> bool:
    """Return whether the file is on record and its size or time of change is another: cheap, reads no content."""
    record = read(path.parent).get(path.name)
    try:
        stat = path.stat()
    except FileNotFoundError:
        return True  # another process has just set it aside
    return record is not None and (stat.st_size, stat.st_mtime_ns) != (record.size, record.mtime_ns)


def mismatch(path: Path) -> str | None:
    """Return what differs between the file and its record, None if nothing does or it has none; reads it all."""
    record = read(path.parent).get(path.name)
    if record is None:
        return None
    size = path.stat().st_size
    if size != record.size:
        return f"it has {size:,} bytes and had {record.size:,} when it was verified"
    if sha256(path) != record.sha256:
        return f"its sha256 is not the one that {FILE} recorded when it was verified"
    return None


def refresh(path: Path) -> None:
    """Record the time of change of an unaltered file, so that it need not be read again to know so."""
    records = read(path.parent)
    if path.name in records:
        old = asdict(records[path.name]) | {"mtime_ns": path.stat().st_mtime_ns}
        _save(path.parent, records | {path.name: Record(**old)})


def set_aside(path: Path, why: str) -> Path:
    """Rename a broken file to <name>.broken, numbered if that is taken, forget its record; return where it lies now."""
    aside = path.with_name(path.name + ".broken")
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.broken.{number}")
    path.rename(aside)
    records = read(path.parent)
    if path.name in records:
        del records[path.name]
        _save(path.parent, records)
    log.warning("%s is broken: %s. It was set aside as %s", path, why, aside.name)
    return aside


def sha256(path: Path) -> str:
    """Return the sha256 of the file's content, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _save(folder: Path, records: dict[str, Record]) -> None:
    text = json.dumps({"files": {name: asdict(record) for name, record in sorted(records.items())}}, indent=2)
    new = folder / (FILE + ".new")
    new.write_text(text + "\n", encoding="utf-8")
    new.replace(folder / FILE)
