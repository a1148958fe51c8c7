"""How far a run is: a bar on a terminal, a line every ten seconds elsewhere, and the list of what failed.

The rate and the time left are of the photos that are embedded: those that an earlier run did count for neither.
"""

import time
from pathlib import Path
from types import TracebackType
from typing import TextIO

from rich import progress
from rich.console import Console
from rich.markup import escape

from scripts.bulk.walk import shown

EVERY_S = 10.0
SHOWN_S = 0.2  # rates are summed up anew each time, which would cost as much as reading the photo
LISTED = 20  # failures that are shown at the end; all are in the file


class Progress:
    """Counts photos and shows them on `screen`. What failed goes to the file `failures`, line by line as it comes."""

    def __init__(self, screen: Console, failures: Path) -> None:
        self.embedded = 0
        self.kept = 0
        self.failed = 0
        self.first: list[str] = []  # the first lines of what failed
        self._screen = screen
        self._path = failures
        self._file: TextIO | None = None
        self._found: int | None = None
        self._told = self._shown = time.monotonic()
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[rate]}"),
            progress.TimeRemainingColumn(),
            progress.TextColumn("[red]{task.fields[failures]}"),
            console=screen,
            disable=not screen.is_terminal,
        )
        self._task = self._bar.add_task("photos", total=None, rate="", failures="")

    def __enter__(self) -> "Progress":
        # Names need not be text: what is none is written out.
        self._file = self._path.open("w", encoding="utf-8")
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._shown = 0.0
        self._show()
        self._bar.stop()
        assert self._file is not None, "it was entered"  # noqa: S101 - an invariant of this class
        self._file.close()
        if not self.failed:
            self._path.unlink()

    def total(self, photos: int) -> None:
        """Take note of how many photos there are, once that is known."""
        self._found = photos
        self._show()

    def known(self, photos: int) -> None:
        """Count photos that the index has."""
        self.kept += photos

    def done(self, path: bytes, failure: str | None) -> None:
        """Count a photo that was embedded, or that failed."""
        if failure is None:
            self.embedded += 1
        else:
            self._fail(path, failure)
        self._show()

    def unread(self, path: bytes, reason: str) -> None:
        """Count a folder or a link that cannot be looked into."""
        self._fail(path, f"It cannot be looked into: {reason}.")

    def _fail(self, path: bytes, reason: str) -> None:
        self.failed += 1
        line = f"{shown(path)}\t{' '.join(reason.split())}"
        if len(self.first) < LISTED:
            self.first.append(line)
        assert self._file is not None, "it was entered"  # noqa: S101 - an invariant of this class
        print(line, file=self._file)

    def _show(self) -> None:
        now = time.monotonic()
        if now < self._shown + SHOWN_S:
            return
        self._shown = now
        speed = self._bar.tasks[0].speed
        rate = f"{speed:.1f}/s" if speed else ""
        failures = f"{self.failed} failed" if self.failed else ""
        done = self.embedded + self.failed
        left = None if self._found is None else self._found - self.kept
        self._bar.update(self._task, completed=done, total=left, rate=rate, failures=failures)
        if self._screen.is_terminal or now < self._told + EVERY_S:
            return
        self._told = now
        of = "" if left is None else f" of {left}"
        rest = self._bar.tasks[0].time_remaining
        until = "" if rest is None else f", {rest / 60:.0f} min left"
        told = ", ".join(filter(None, [f"{done}{of} photos", rate + until, failures]))
        self._screen.print(escape(told), highlight=False, soft_wrap=True)
