"""The photos below a folder, one by one as they are met, in whatever order the file system has them.

Holds one open folder per level of depth and nothing of what it has passed, so that a library may have any size. Paths
are bytes, as file systems have them: a name need not be text. Knows names and links, and opens no photo.

A link to a folder is followed where that folder is reached in no other way: not if it lies within what is walked
already, or around it. So nothing comes twice, and no loop has a beginning. A link to a file is a photo of its own name.
Names that begin with a dot are passed over, and so is what file servers leave beside photos.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from engines import images

LEFT_BY_SERVERS = (b"@eaDir", b"#recycle", b"$RECYCLE.BIN")


def suffixes() -> frozenset[bytes]:
    """Return how the names of pictures end that can be read here, in small letters: b".jpg", …"""
    known = Image.registered_extensions()
    return frozenset(ending.encode() for ending, name in known.items() if name in images.FORMATS)


@dataclass(frozen=True, slots=True)
class Photo:
    """One file: its path below the folder, its length in bytes, when it was last modified in ns since 1970."""

    path: bytes
    bytes: int
    modified: int


@dataclass(frozen=True, slots=True)
class Unread:
    """A folder or a link below the folder that cannot be looked into, b"" for the folder itself, and why."""

    path: bytes
    reason: str


class Walk:
    """Yields what lies below `folder`. While it goes on it counts what is passed over."""

    def __init__(self, folder: Path) -> None:
        self.others = 0  # files whose names are not those of pictures
        self.links = 0  # to folders that are reached without them
        self._suffixes = suffixes()
        self._folder = os.fsencode(folder)
        self._roots = [os.path.realpath(self._folder)]

    def __iter__(self) -> Iterator[Photo | Unread]:
        # Not by recursion: each level of a generator would hand every photo on to the one above.
        levels = [self._open(b"")]
        while levels:
            entries, prefix = levels[-1]
            entry = None
            try:
                entry = next(entries, None)
                if entry is None:
                    levels.pop()
                elif entry.name.startswith(b".") or entry.name in LEFT_BY_SERVERS:
                    pass
                elif entry.is_dir():
                    if self._enters(entry):
                        levels.append(self._open(prefix + entry.name + b"/"))
                elif (photo := self._photo(entry, prefix)) is not None:
                    yield photo
            except OSError as error:
                if entry is None:
                    levels.pop()
                path = prefix.rstrip(b"/") if entry is None else prefix + entry.name
                yield Unread(path, error.strerror or str(error))

    def _open(self, prefix: bytes) -> "tuple[Iterator[os.DirEntry[bytes]], bytes]":
        return os.scandir(os.path.join(self._folder, prefix)), prefix  # noqa: PTH118 - pathlib has no bytes

    def _enters(self, entry: "os.DirEntry[bytes]") -> bool:
        if not entry.is_symlink():
            return True
        target = os.path.realpath(entry.path)
        if any(_within(target, root) or _within(root, target) for root in self._roots):
            self.links += 1
            return False
        self._roots.append(target)
        return True

    def _photo(self, entry: "os.DirEntry[bytes]", prefix: bytes) -> Photo | None:
        if entry.is_symlink():
            entry.stat()  # raises for a link that leads nowhere: a disk with photos may not be mounted
        if os.path.splitext(entry.name)[1].lower() not in self._suffixes:  # noqa: PTH122 - pathlib has no bytes
            self.others += 1
            return None
        status = entry.stat()
        return Photo(prefix + entry.name, status.st_size, status.st_mtime_ns) if entry.is_file() else None


def _within(path: bytes, folder: bytes) -> bool:
    return path == folder or path.startswith(folder.rstrip(b"/") + b"/")


def shown(path: bytes) -> str:
    """Return a path as people read it: what is no text, or would move their cursor, is written out as \\x…"""
    text = path.decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
