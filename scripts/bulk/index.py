"""An index while it is made: groups of rows in files of their own, put together at the end.

Beside `photos.parquet` lies the folder `photos.parquet.parts` for as long as that takes. Every group of rows is a whole
file there before the next one begins, so an interrupted run loses one group at most, and the next run goes on behind
it. The index itself is replaced at the end, in one step. Knows files, and which rows are kept; not how they are made.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from filelock import FileLock, Timeout
from pyarrow import parquet

from scripts.bulk.ledger import Ledger
from scripts.bulk.table import About, BadIndex, Row, opened, paths, schema, table
from scripts.bulk.walk import Photo

GROUP = 256  # rows that an interrupted run may lose
ROWS = 2048  # in a group of the whole index: what a search holds at one time
_LOCK, _DRAFT = "lock", "draft"


class Index:
    """The index at `out`, with what earlier runs left. Open it with `begin`; used by one thread at a time."""

    def __init__(self, out: Path, about: About) -> None:
        self.out = out
        self.about = about
        self.parts = parts_of(out)
        self.ledger = Ledger()
        self._sources: list[Path] = []
        self._stale = False  # whether a file there names the folder otherwise
        self._lock = FileLock(self.parts / _LOCK, thread_local=False)  # begun and finished by different threads

    def begin(self, *, moved: bool = False) -> int:
        """Read what is there already and return how many photos were embedded.

        Raises BadIndex if it was made with other models or cannot be read, or another run is at it; or if it is of
        another folder, unless the photos have `moved`.
        """
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.parts.mkdir(exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise BadIndex(f"Another run is writing {self.out}: wait for its end, or give another --out.") from error
        for path in [self.out, *sorted(self.parts.glob("*.parquet"))]:
            if path.exists():
                self._read(path, moved=moved)
        return self.ledger.count()

    def _read(self, path: Path, *, moved: bool) -> None:
        file, about = opened(path)
        if differs := about.made_with.difference(self.about.made_with):
            raise BadIndex(
                f"{path} was made otherwise ({differs}), and what differs cannot be compared: ask for the same again, "
                f"give another --out, or delete {path.parent if path.parent == self.parts else path} to begin anew."
            )
        if about.folder != self.about.folder:
            if not moved and not _same(about.folder, self.about.folder):
                raise BadIndex(
                    f"{path} is of the photos in {about.folder}, and those in {self.about.folder} would take their "
                    "place: give another --out, or add --moved if they are the same photos, elsewhere now."
                )
            self._stale = True
        self._sources.append(path)
        wanted = ["path", "raw_path", "bytes", "modified", "failure"]
        for batch in file.iter_batches(ROWS, columns=wanted):
            sizes, times = (batch.column(name).to_pylist() for name in ("bytes", "modified"))
            photos = [Photo(*values) for values in zip(paths(batch), sizes, times, strict=True)]
            whole = batch.column("failure").is_null().to_pylist()
            self.ledger.note(len(self._sources) - 1, photos, whole, met=False)

    def write(self, rows: Sequence[Row]) -> None:
        """Add a group of rows; when this returns it is safe."""
        known = [int(path.stem) for path in self._sources if path != self.out]
        path = self.parts / f"{max(known, default=0) + 1:06}.parquet"
        draft = self.parts / _DRAFT
        parquet.write_table(table(rows, self.about), draft)
        _publish(draft, path)
        self._sources.append(path)
        source = len(self._sources) - 1
        self.ledger.note(source, [row.photo for row in rows], [row.failure is None for row in rows], met=True)

    def finish(self) -> None:
        """Put all together, with the newest row of each photo that was met, and clear away."""
        if self._sources != [self.out] or self._stale or self.ledger.unmet():
            draft = self.parts / _DRAFT
            columns = schema(self.about)
            with parquet.ParquetWriter(draft, columns) as writer:
                for group in self._groups(columns):
                    writer.write_table(group)
            _publish(draft, self.out)
        shutil.rmtree(self.parts)
        self._lock.release()

    def close(self) -> None:
        """Let go of it; what was written stays for the next run."""
        self.ledger.close()
        if self._lock.is_locked:  # else the folder is another run's
            if not any(self.parts.glob("*.parquet")):
                shutil.rmtree(self.parts)
            self._lock.release()

    def _groups(self, columns: Any) -> Iterator[Any]:
        """Yield the rows that are kept, so many that a search does not open thousands of small groups."""
        waiting: list[Any] = []
        for source, path in enumerate(self._sources):
            for batch in opened(path)[0].iter_batches(ROWS):
                kept = self.ledger.kept(source, paths(batch))
                waiting.append(batch.filter(pa.array(kept, pa.bool_())))
                if sum(len(one) for one in waiting) >= ROWS:
                    yield _together(waiting, columns)
                    waiting = []
        if waiting:
            yield _together(waiting, columns)


def parts_of(out: Path) -> Path:
    """Return the folder where the parts of the index at `out` lie while it is made."""
    return out.with_name(f"{out.name}.parts")


def _same(one: str, other: str) -> bool:
    """Return whether two paths lead to one folder, as far as that can be told today."""
    try:
        return Path(one).samefile(other)
    except OSError:
        return False


def _together(batches: Sequence[Any], columns: Any) -> Any:
    # The files say of themselves in which folder they were made, and that may have moved since.
    return pa.Table.from_batches([batch.replace_schema_metadata(columns.metadata) for batch in batches], columns)


def _publish(draft: Path, path: Path) -> None:
    """Let what lies at `draft` take the place of `path`, once it is on the disk."""
    with draft.open("rb+") as file:
        os.fsync(file.fileno())
    draft.replace(path)
