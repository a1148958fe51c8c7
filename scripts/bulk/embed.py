"""Photos to rows: so many on their way at once that no batch waits for a decoder, and no more.

Knows the order of things: walk, look up, read, ask, collect, write. What is decoded and computed, and how, is the
predictor's affair; which rows are kept is the index's.
"""

import asyncio
import hashlib
import logging
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from engines.errors import EngineError
from scripts.bulk.index import GROUP, Index
from scripts.bulk.inside import Inside
from scripts.bulk.progress import Progress
from scripts.bulk.table import Row
from scripts.bulk.walk import Photo, Unread, Walk
from server.batcher import Closed
from server.budget import Budget
from server.errors import RequestError
from server.wire import Ask

log = logging.getLogger(__name__)

CHUNK = 64  # photos that are looked up at a time
BYTES = 256 << 20  # of files that are held at one time
DIGEST = 16  # bytes


@dataclass(slots=True)
class _Looked:
    """Some steps of the walk: photos that the index does not have, what cannot be looked into, how many it has."""

    fresh: list[Photo]
    unread: list[Unread]
    known: int


class Run:
    """One run over the photos of a folder into an index. `stop` ends it: what is on its way is still written."""

    def __init__(self, inside: Inside, index: Index, folder: Path, ask: Ask, progress: Progress) -> None:
        """`ask` is what is asked of every photo, without a picture."""
        self.walk = Walk(folder)
        self.stopped = False
        self._inside = inside
        self._engine = inside.engine
        self._index = index
        self._folder = os.fsencode(folder)
        self._ask = ask
        self._progress = progress
        self._walking = iter(self.walk)
        self._coming: deque[Photo] = deque()
        self._turn = asyncio.Lock()  # whoever finds nothing coming fetches more, for all
        self._held = Budget(BYTES)
        self._rows: list[Row] = []
        # The index and the walk are used by one thread at a time: this one.
        self._books = ThreadPoolExecutor(1, "books")
        self._readers = ThreadPoolExecutor(max(4, inside.threads), "read")

    def stop(self) -> None:
        """Take no further photo up."""
        self.stopped = True

    async def photos(self) -> None:
        """Embed all photos that the index does not have; raises Closed where nothing can be computed any longer.

        OSError where the index cannot be written.
        """
        counting = asyncio.create_task(self._count())
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._inside.callers):
                    group.create_task(self._caller())
            await self._write()
        except ExceptionGroup as error:
            raise error.exceptions[0] from None  # the first that failed ended the others
        finally:
            counting.cancel()
            for pool in (self._books, self._readers):
                pool.shutdown()

    async def _caller(self) -> None:
        while (photo := await self._next()) is not None:
            row = await self._row(photo)
            self._progress.done(photo.path, row.failure)
            self._rows.append(row)
            if len(self._rows) >= GROUP:
                await self._write()

    async def _write(self) -> None:
        rows, self._rows = self._rows, []
        if rows:
            await asyncio.get_running_loop().run_in_executor(self._books, self._index.write, rows)

    async def _next(self) -> Photo | None:
        async with self._turn:
            while not self._coming and not self.stopped:
                looked = await asyncio.get_running_loop().run_in_executor(self._books, self._look)
                if looked is None:
                    return None
                self._progress.known(looked.known)
                for one in looked.unread:
                    self._progress.unread(one.path, one.reason)
                self._coming.extend(looked.fresh)
        return None if self.stopped else self._coming.popleft()

    def _look(self) -> "_Looked | None":
        """Return what the next steps of the walk meet, None at its end."""
        found = list(islice(self._walking, CHUNK))
        if not found:
            return None
        looked = _Looked([], [], 0)
        for one in found:
            if isinstance(one, Unread):
                self._index.ledger.spare(one.path)
                looked.unread.append(one)
            elif self._index.ledger.has(one):
                looked.known += 1
            else:
                looked.fresh.append(one)
        return looked

    async def _row(self, photo: Photo) -> Row:
        if photo.bytes > self._inside.max_bytes:
            reason = f"The file has {photo.bytes / 1e6:.0f} MB, which is over MACHINE_LEARNING_MAX_BODY_MB: raise that."
            return Row(photo, self._engine, failure=reason)
        try:
            async with self._held.hold(photo.bytes):
                read = asyncio.get_running_loop().run_in_executor(self._readers, self._read, photo)
                image, digest = await read
                answer = await self._inside.predictor.answer(replace(self._ask, image=image), flow=None)
        except (EngineError, RequestError) as error:
            return Row(photo, self._engine, failure=str(error))
        except OSError as error:
            return Row(photo, self._engine, failure=f"The file cannot be read: {error.strerror or error}.")
        except Closed:
            raise
        except Exception as error:  # a model may raise anything, and one photo must not end the run of a million
            log.warning("%r could not be embedded", photo.path, exc_info=True)
            return Row(photo, self._engine, failure=f"{type(error).__name__}: {error}")
        return Row(photo, self._engine, answer.size, digest, answer.embedding, answer.faces)

    def _read(self, photo: Photo) -> tuple[bytes, bytes]:
        with open(os.path.join(self._folder, photo.path), "rb") as file:  # noqa: PTH118, PTH123 - pathlib has no bytes
            image = file.read()
        return image, hashlib.blake2b(image, digest_size=DIGEST).digest()

    async def _count(self) -> None:
        """Walk a second time, ahead of the photos, so that the progress knows how many there are."""
        walking, total = iter(Walk(Path(os.fsdecode(self._folder)))), 0
        while found := await asyncio.to_thread(_some, walking):
            total += sum(isinstance(one, Photo) for one in found)
        self._progress.total(total)


def _some(walking: Iterator[Photo | Unread]) -> list[Photo | Unread]:
    return list(islice(walking, 1000))
