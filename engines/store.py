"""Built engines on disk: one folder each, named by its key, published whole or not at all.

Knows who may build, what becomes of builds that were killed, and where broken engines go. Deliberately knows no
backend, and not what makes a single folder good (engines/artefact.py). Names that begin with a dot are no engines:
drafts that are being built, broken ones that were set aside, locks, and notes of builds that failed.
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from engines import artefact
from engines.artefact import Manifest, Stored
from engines.errors import ArtefactBroken, BuildFailed
from engines.key import Key

log = logging.getLogger(__name__)

BROKEN_KEPT = 5
_DRAFT, _OLD, _BROKEN, _LOCK, _REFUSED = ".draft-", ".old-", ".broken-", ".lock-", ".refused-"


class _Refusal(BaseModel):
    """A build that did not pass, why, and when."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: Key
    reason: str
    made: str


@cache
def at(folder: Path) -> "Store":
    """Return the store in `folder`, always the same one: so what it has to tell it tells once in a process."""
    return Store(folder)


class Store:
    """The engines in one folder, which need not exist. Those who read it never wait and never raise. See also `at`.

    Those who build hold `lock`, write into a `draft`, and `publish` it; these raise BuildFailed if the folder cannot be
    written, or could be by others.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._told: set[str] = set()
        self._ignored: set[tuple[int, ...]] = set()  # broken ones in a folder that cannot be written

    def find(self, key: Key) -> Stored | None:
        """Return the engine of `key`, None if there is none or it had to be set aside."""
        folder = self.folder / key.digest()
        return self._open(folder) if self._trusted() and os.path.lexists(folder) else None

    def all(self) -> list[Stored]:
        """Return all engines with readable manifests, for whatever machine; others are set aside."""
        if not self._trusted():
            return []
        try:
            folders = sorted(path for path in self.folder.iterdir() if path.name[0] != "." and not path.is_file())
        except FileNotFoundError:
            return []  # nothing was built yet
        except OSError as error:
            self._tell(f"The engines in {self.folder} cannot be read ({error}). The server goes on without them.")
            return []
        return [stored for folder in folders if (stored := self._open(folder)) is not None]

    def verify(self, stored: Stored) -> None:
        """Raise ArtefactBroken unless the files are those that were published, all of them and no others."""
        artefact.verify(stored)

    def set_aside(self, stored: Stored, reason: str) -> None:
        """Put a broken engine where nobody loads it, and tell `reason`, a sentence; the newest few are kept.

        One that took its place meanwhile stays, and so does what another process is just building anew.
        """
        self._set_aside(stored.folder, stored.manifest, reason)

    def refusal(self, key: Key) -> str | None:
        """Return why an earlier build of `key` was not published, None if none failed."""
        path = self._refused(key)
        if not self._trusted():
            return None
        try:
            return _Refusal.model_validate_json(path.read_bytes()).reason
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            self._tell(f"{path} cannot be read, so that engine may be built once more: {error}")
            return None

    def refuse(self, key: Key, reason: str) -> None:
        """Note that a build of `key` did not pass, so that it is not tried again and again."""
        refusal = _Refusal(key=key, reason=reason, made=datetime.now(UTC).isoformat(timespec="seconds"))
        with self._writing():
            artefact.write(self._refused(key), refusal.model_dump_json(indent=2))
            self._prune_refusals(key)

    @contextmanager
    def lock(self, key: Key) -> Iterator[None]:
        """Hold `key` against other builders, waiting for one who is at it: what that one made, `find` gives.

        A thread that holds it may take it again. The system lets go of it when the process ends, however it ends.
        """
        with self._writing():
            held = self._lock(key.digest())
            try:
                held.acquire(blocking=False)
            except Timeout:
                what = f"{key.model} ({key.kind}, {key.backend}, {key.precision})"
                log.info("Waiting for the engine of %s, which another process is building already", what)
                held.acquire()
        try:
            yield
        finally:
            held.release()

    @contextmanager
    def draft(self, key: Key) -> Iterator[Path]:
        """Give an empty folder to build in, under the lock; it is gone at the end unless it was published."""
        with self.lock(key):
            with self._writing():
                self._sweep(key.digest())
                folder = Path(tempfile.mkdtemp(prefix=f"{_DRAFT}{key.digest()}-", dir=self.folder))
            try:
                yield folder
            finally:
                with self._writing():
                    _remove(folder)

    def publish(self, key: Key, draft: Path, manifest: Manifest) -> Stored:
        """Make the `draft` the engine of `key`, in place of an older one, and return it.

        Whoever looks meanwhile finds the older one, none, or the new one as a whole. What `key` replaces, engines and
        refusals of the same weights on the same device by other versions of our code or of libraries, is deleted unless
        somebody else holds its lock: this installation can never use it again.
        """
        if manifest.key != key:
            raise ValueError(f"the manifest describes another engine: {'; '.join(manifest.key.differences(key))}")
        folder, old = self.folder / key.digest(), self.folder / (_OLD + key.digest())
        with self.lock(key), self._writing():
            sealed = artefact.seal(draft, manifest)
            if os.path.lexists(folder):
                folder.rename(old)  # put back by _sweep if this process ends here
            draft.rename(folder)
            artefact.sync(self.folder)
            _remove(old)
            self._refused(key).unlink(missing_ok=True)
            self._prune_refusals(key)
            self._prune(key)
        return Stored(folder, sealed)

    def _open(self, folder: Path) -> Stored | None:
        if _identity(folder) in self._ignored:
            return None
        try:
            return artefact.read(folder)
        except ArtefactBroken as error:
            if os.path.lexists(folder):  # and not replaced at this moment
                self._set_aside(folder, None, str(error))
            return None

    def _set_aside(self, folder: Path, found: Manifest | None, reason: str) -> None:
        """Rename `folder` if it still holds the engine of `found`, None if that could not be read."""
        aside = self.folder / f"{_BROKEN}{folder.name}-{datetime.now(UTC):%Y%m%dT%H%M%S%f}Z"
        try:
            with self._lock(folder.name).acquire(blocking=False):
                if _manifest(folder) not in (found, None):
                    return  # it was built anew meanwhile
                folder.rename(aside)
        except Timeout:
            self._tell(f"The engine {folder} is ignored while another process builds it: {reason}")
            return
        except FileNotFoundError:
            return  # somebody else was quicker
        except OSError as error:
            self._ignored.add(_identity(folder))
            self._tell(
                f"The engine {folder} is ignored: {reason} It cannot be set aside ({error.strerror}). "
                "The server goes on without it."
            )
            return
        self._tell(f"The engine {folder} was set aside as {aside.name}: {reason} The server goes on without it.")
        broken = sorted(self.folder.glob(_BROKEN + "*"), key=lambda path: path.name.rpartition("-")[2])
        for path in broken[:-BROKEN_KEPT]:
            try:
                _remove(path)
            except OSError as error:
                self._tell(f"{path} can be deleted by hand: doing so failed ({error}).")

    def _prune(self, key: Key) -> None:
        """Delete the engines that `key` replaces."""
        for folder in self.folder.iterdir():
            other = None if folder.name[0] == "." else _manifest(folder)
            if other is None or not key.replaces(other.key):
                continue
            doomed = self.folder / f"{_DRAFT}{folder.name}-replaced"  # swept away if this process ends here
            try:
                with self._lock(folder.name).acquire(blocking=False):
                    _remove(doomed)
                    folder.rename(doomed)
                    _remove(doomed)
            except Timeout:
                continue  # somebody is at it
            except OSError as error:  # what was published stays good
                self._tell(f"{folder} can be deleted by hand, being of an older version: doing so failed ({error}).")

    def _prune_refusals(self, key: Key) -> None:
        """Delete the refusals that `key` replaces."""
        for path in self.folder.glob(_REFUSED + "*.json"):
            try:
                if key.replaces(_Refusal.model_validate_json(path.read_bytes()).key):
                    path.unlink()
            except (OSError, ValidationError) as error:
                self._tell(f"{path} cannot be read or deleted, and can be by hand: {error}")

    def _trusted(self) -> bool:
        """Return whether what lies in the folder may be loaded: what anybody could have put there may not."""
        why = artefact.distrust(self.folder)
        if why is not None:
            self._tell(f"No compiled engine is used: {why}")
        return why is None

    def _tell(self, sentence: str) -> None:
        if sentence not in self._told:
            self._told.add(sentence)
            log.warning("%s", sentence)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Make the folder if need be; raise BuildFailed for whatever keeps from writing there."""
        try:
            self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            if (why := artefact.distrust(self.folder)) is not None:
                raise BuildFailed(f"Nothing can be built: {why}")
            yield
        except OSError as error:
            raise BuildFailed(
                f"Engines cannot be kept in {self.folder} ({error}): make it writable, make room, or choose another "
                "MACHINE_LEARNING_CACHE_FOLDER."
            ) from error

    def _lock(self, digest: str) -> FileLock:
        # One object per file, so that a thread which holds it may take it again.
        return FileLock(self.folder / (_LOCK + digest), is_singleton=True)

    def _sweep(self, mine: str) -> None:
        """Clear away what killed builds left: nobody holds its lock, or it is of `mine`, which this thread holds."""
        for path in [*self.folder.glob(_DRAFT + "*"), *self.folder.glob(_OLD + "*")]:
            digest = path.name.split("-")[1]
            lock = self._lock(digest)
            if lock.is_locked and digest != mine:
                continue  # this thread is building that one as well
            try:
                with lock.acquire(blocking=False):
                    whole = self.folder / digest
                    if path.name.startswith(_OLD) and not os.path.lexists(whole):
                        path.rename(whole)
                    else:
                        _remove(path)
            except Timeout:
                continue  # somebody is at it

    def _refused(self, key: Key) -> Path:
        return self.folder / f"{_REFUSED}{key.digest()}.json"


def _manifest(folder: Path) -> Manifest | None:
    try:
        return artefact.read(folder).manifest
    except ArtefactBroken:
        return None  # whoever looks for it will tell


def _identity(folder: Path) -> tuple[int, ...]:
    """Return what tells a folder from one that takes its place; empty if it is not there."""
    try:
        status = folder.lstat()
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_ctime_ns


def _remove(path: Path) -> None:
    """Delete a folder, a file or a link, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
