"""One built engine as a folder: the manifest, what makes the folder whole, and when it is not to be trusted.

Shared objects in it are run by whoever loads them, so nobody else may have written there. Deliberately knows neither
other engines nor backends: what the files hold is theirs, and nothing here unpickles or runs any of it.
"""

import json
import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, field_validator, model_validator

from engines.engine import Layout
from engines.errors import ArtefactBroken, BuildFailed
from engines.key import Key
from engines.manifest import sha256
from engines.parity import Report

FILE = "manifest.json"
FORMAT = 2  # of the manifest; raised with every change that older or newer code would misread
_CONFIG = ConfigDict(frozen=True, extra="forbid")
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]  # items/s


class File(BaseModel):
    """A file of an engine: its size in bytes and the sha256 of its content."""

    model_config = _CONFIG

    bytes: int
    sha256: str


class Manifest(BaseModel):
    """What is told of an engine that passed the gate; ValidationError for one that did not, or was not timed.

    `timings` and `reference_timings` (eager float32, same run) are items/s by bucket; the buckets ascend from 1.
    `memory_bytes` is what the loaded engine holds, `made` the UTC time in ISO 8601, `cores` those at hand when it was
    timed. `files`, by their path inside the folder, are filled in when it is published.
    """

    model_config = _CONFIG

    format: int = FORMAT
    key: Key
    files: dict[str, File] = {}
    report: Report
    timings: dict[PositiveInt, Rate]
    reference_timings: dict[PositiveInt, Rate]
    layout: Layout
    untrained: bool
    build_seconds: float
    memory_bytes: int
    made: str
    cores: int

    @field_validator("report")
    @classmethod
    def _passed(cls, report: Report) -> Report:
        if not report.passed:
            raise ValueError(f"it did not pass the gate: {'; '.join(report.failures)}")
        if not all(map(math.isfinite, (report.lowest_cosine, report.error_over_spread, report.lowest_same))):
            raise ValueError("its numbers are not all finite")
        return report

    @model_validator(mode="after")
    def _timed(self) -> "Manifest":
        buckets = list(self.timings)
        if buckets[:1] != [1] or buckets != sorted(buckets):
            raise ValueError(f"the buckets of its timings do not ascend from 1: {buckets}")
        if list(self.reference_timings) != buckets:
            raise ValueError(f"it was timed for {buckets}, eager float32 for {list(self.reference_timings)}")
        return self


@dataclass(frozen=True, slots=True)
class Stored:
    """A published engine: where it lies, and its manifest. Its files are as good as `verify` finds them."""

    folder: Path
    manifest: Manifest


def read(folder: Path) -> Stored:
    """Return the engine in `folder` with its files unread; ArtefactBroken, with a sentence, if it is none of ours."""
    if folder.is_symlink():
        raise ArtefactBroken("It is a link, not a folder.")
    if (why := distrust(folder)) is not None:
        raise ArtefactBroken(why)
    try:
        text = (folder / FILE).read_text(encoding="utf-8")
        found = json.loads(text)
        known = found.get("format") if isinstance(found, dict) else None
        if known != FORMAT:
            raise ArtefactBroken(f"Its {FILE} has format {known}, and {FORMAT} is read here: build it again.")
        manifest = Manifest.model_validate_json(text)
    except OSError as error:
        raise ArtefactBroken(f"Its {FILE} cannot be read ({error.strerror}).") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "all of it"
        raise ArtefactBroken(f"Its {FILE} cannot be understood ({where}: {first['msg']}).") from error
    except ValueError as error:  # no JSON, or no UTF-8
        raise ArtefactBroken(f"Its {FILE} cannot be understood ({error}).") from error
    if folder.name != manifest.key.digest():
        raise ArtefactBroken(f"Its {FILE} describes another engine, {manifest.key.digest()}.")
    return Stored(folder, manifest)


def verify(stored: Stored) -> None:
    """Read all files; raise ArtefactBroken unless they are those that were published, all of them and no others."""
    expected = stored.manifest.files
    try:
        there = _files(stored.folder)
        for name in sorted(expected.keys() | there.keys()):
            if name not in there:
                raise ArtefactBroken(f"{name} is missing.")
            if name not in expected:
                raise ArtefactBroken(f"{name} does not belong to it.")
            size = there[name].stat().st_size
            if size != expected[name].bytes:
                raise ArtefactBroken(f"{name} has {size:,} bytes, {expected[name].bytes:,} were published.")
            if sha256(there[name]) != expected[name].sha256:
                raise ArtefactBroken(f"{name} was changed: its sha256 is not the published one.")
    except OSError as error:
        raise ArtefactBroken(f"It cannot be read ({error}).") from error


def seal(folder: Path, manifest: Manifest) -> Manifest:
    """Write `manifest` into `folder` with all files that lie there, make them safe on the disk, return it.

    Raises BuildFailed if links or the like are among them.
    """
    files = {}
    for path in [folder, *folder.rglob("*")]:
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise BuildFailed(f"{path.name} is neither a file nor a folder: an engine is made of nothing else.")
        # Compilers follow the umask, which may let a group write.
        path.chmod(0o755 if path.is_dir() else stat.S_IMODE(path.stat().st_mode) & ~0o022 | 0o444)
        if path.is_file() and path != folder / FILE:
            files[path.relative_to(folder).as_posix()] = File(bytes=path.stat().st_size, sha256=sha256(path))
        sync(path)
    sealed = manifest.model_copy(update={"files": dict(sorted(files.items()))})
    write(folder / FILE, sealed.model_dump_json(indent=2))
    return sealed


def write(path: Path, text: str) -> None:
    """Put `text` into a file that others see as a whole or not at all, and that survives a loss of power."""
    new = path.with_name(f".{path.name}.new")
    with new.open("w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o644)
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def distrust(path: Path) -> str | None:
    """Return a sentence if somebody else could write to `path`, None if not, or if it cannot be looked at.

    Trusted are this user and root; of groups those that this process is in, since some platforms make volumes writable
    for the group of the container.
    """
    try:
        status = path.stat()
    except OSError:
        return None  # whoever reads it will find out
    me = os.geteuid()
    if status.st_uid not in (me, 0):
        return f"{path} belongs to user {status.st_uid}, and what lies there is run: `chown -R {me} {path}`."
    others = status.st_mode & stat.S_IWOTH
    strangers = status.st_mode & stat.S_IWGRP and status.st_gid not in (os.getegid(), *os.getgroups())
    if others or strangers:
        mode = stat.S_IMODE(status.st_mode)
        return f"{path} can be written by others (mode {mode:o}), and what lies there is run: `chmod -R go-w {path}`."
    return None


def _files(folder: Path) -> dict[str, Path]:
    """Return the files of a published engine by their path inside its folder, without the manifest."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ArtefactBroken(f"{path.name} is neither a file nor a folder.")
        if (why := distrust(path)) is not None:
            raise ArtefactBroken(why)
        if path.is_file() and path != folder / FILE:
            files[path.relative_to(folder).as_posix()] = path
    return files
