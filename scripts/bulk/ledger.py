"""Which photos an index has, in which file their newest row is, and which of them were met again.

Kept in a temporary SQLite file that goes with the process, so that a million of photos take no memory. Knows neither
Arrow nor how photos are met.
"""

import sqlite3
from collections.abc import Iterable, Sequence

from scripts.bulk.walk import Photo


class Ledger:
    """Rows by path. Sources are numbers of files: of two rows of one path the one from the later source counts."""

    def __init__(self) -> None:
        # Used by one thread at a time, but not always by the same one.
        self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._db.execute(
            "CREATE TABLE photo (path BLOB PRIMARY KEY, bytes INTEGER, modified INTEGER, whole INTEGER, "
            "source INTEGER, met INTEGER) WITHOUT ROWID"
        )
        self._db.execute("BEGIN")  # and never an end: nothing of it is wanted later

    def note(self, source: int, photos: Iterable[Photo], whole: Sequence[bool], *, met: bool) -> None:
        """Remember rows of `source`; `whole` says of each whether its photo could be read, `met` that it is there."""
        self._db.executemany(
            "INSERT OR REPLACE INTO photo VALUES (?, ?, ?, ?, ?, ?)",
            [
                (photo.path, photo.bytes, photo.modified, ok, source, met)
                for photo, ok in zip(photos, whole, strict=True)
            ],
        )

    def has(self, photo: Photo) -> bool:
        """Return whether a whole row of this very file is there; if so, it counts as met."""
        cursor = self._db.execute(
            "UPDATE photo SET met = 1 WHERE path = ? AND bytes = ? AND modified = ? AND whole",
            (photo.path, photo.bytes, photo.modified),
        )
        return cursor.rowcount == 1

    def spare(self, path: bytes) -> None:
        """Count as met what lies at `path` and below, b"" for all: it cannot be told whether it is still there."""
        if not path:
            self._db.execute("UPDATE photo SET met = 1")
            return
        # What begins with the path and a slash is all that lies between these two.
        below = (path + b"/", path + b"0")
        self._db.execute("UPDATE photo SET met = 1 WHERE path = ? OR (path > ? AND path < ?)", (path, *below))

    def kept(self, source: int, paths: Sequence[bytes]) -> list[bool]:
        """Return of each row of `source` whether it is the newest of its path, and was met."""
        query = "SELECT 1 FROM photo WHERE path = ? AND source = ? AND met"
        return [self._db.execute(query, (path, source)).fetchone() is not None for path in paths]

    def unmet(self) -> int:
        """Return how many photos were not met again."""
        (count,) = self._db.execute("SELECT COUNT(*) FROM photo WHERE NOT met").fetchone()
        return int(count)

    def count(self) -> int:
        """Return how many whole rows there are."""
        (count,) = self._db.execute("SELECT COUNT(*) FROM photo WHERE whole").fetchone()
        return int(count)

    def close(self) -> None:
        """Give its file back."""
        self._db.close()
