"""Weights on disk to tensors: found in the cache folder or fetched, held against their manifest, read.

Reads safetensors, and PyTorch files with `weights_only=True`: nothing that could run code. Deliberately knows no
network: names and shapes of the tensors are those of the published files, and whether they fit is the caller's affair.
"""

import json
import logging
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engines import download, manifest, sources
from engines.catalog import Clip, Face
from engines.download import UrlFile
from engines.errors import WeightsBroken, WeightsMissing
from engines.sources import Need

log = logging.getLogger(__name__)

_LOCK = ".lock"
# What torch.load raises on damaged files; with weights_only nothing of the file runs.
_DAMAGED = (
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    struct.error,
)


class Unpublished(WeightsMissing):
    """The servers answer, and none of them has the file."""


class _Unreadable(Exception):
    """The content of a file is no checkpoint; `str()` is the reason, to be put into a sentence."""


def clip_state(entry: Clip, kind: Literal["visual", "textual"], cache_folder: Path) -> dict[str, Tensor]:
    """Return the tensors of one tower on the CPU, keys, shapes and types as published.

    Visual: the keys that begin with "visual.". Textual: all others of open_clip's checkpoint; for M-CLIP those of its
    text repository ("transformer.…", "LinearTransformation.…"). Raises WeightsMissing, WeightsBroken.
    """
    if kind == "visual":
        return _load(sources.visual(entry, cache_folder), lambda key: key.startswith("visual."))
    return _load(
        sources.textual(entry, cache_folder),
        # Older versions of transformers stored these indices, newer ones compute them and refuse the key.
        lambda key: not key.startswith("visual.") and not key.endswith("embeddings.position_ids"),
    )


def face_state(entry: Face, cache_folder: Path) -> dict[str, Tensor]:
    """Return the tensors of the recogniser on the CPU, without the classifier ("logits.…") that it was trained with.

    Raises WeightsMissing, WeightsBroken; ValueError for the demo, which has no weights.
    """
    return _load(sources.face(entry, cache_folder), lambda key: not key.startswith("logits."))


def digest(need: Need) -> str:
    """Return the sha256 of a file of weights, as its manifest has it where that is still true of the file.

    Raises WeightsMissing, WeightsBroken.
    """
    path = obtain(need)
    record = manifest.read(need.folder).get(path.name)
    return manifest.sha256(path) if record is None or manifest.touched(path) else record.sha256


def tokenizer_folder(entry: Clip, cache_folder: Path) -> Path:
    """Return the folder with the Hugging Face tokenizer of `entry`: tokenizer.json and what its repository has beside.

    Raises WeightsMissing, WeightsBroken; ValueError for models whose tokenizer comes with open_clip.
    """
    files = sources.tokenizer(entry, cache_folder)
    if not files:
        raise ValueError(f"{entry.name} has CLIP's own tokenizer, which needs no files")
    for need in files:
        obtain_if_due(need)
    return files[0].folder


def locate(need: Need) -> Path | None:
    """Return where the file lies in the cache folder, unchecked; None if it does not."""
    paths = (need.folder / name for name in need.names)
    return next((path for path in paths if path.is_file()), None)


def obtain(need: Need) -> Path:
    """Return the file, fetched if it is not there or no longer what was verified.

    One thread of one process fetches, others wait for it. Raises WeightsMissing (Unpublished if all servers answer
    and none has the file), WeightsBroken.
    """
    try:
        path = locate(need)
        if path is not None and not manifest.touched(path):
            return path
        if path is not None and not os.access(need.folder, os.W_OK):
            # Nothing can be noted there, so it is read as a whole each time.
            if why := manifest.mismatch(path):
                raise _beyond_repair(path, why)
            return path
    except OSError as error:
        raise _missing(need, f"the folder cannot be read ({error})") from error
    with _locked(need):
        path = locate(need)
        if path is None:
            return _fetch(need)
        why = manifest.mismatch(path)
        if why:
            return _replace(need, path, why)
        manifest.refresh(path)
        return path


def obtain_if_due(need: Need) -> Path | None:
    """Do as `obtain`; None for an extra that is not published, or that was not there when its file was fetched."""
    if not need.extra_of:
        return obtain(need)
    if locate(need) is None and (need.folder / need.extra_of).is_file():
        return None
    try:
        return obtain(need)
    except Unpublished:
        return None


def adopt(file: Path, need: Need, revision: str) -> Path:
    """Copy a file that was brought by hand to its place in the cache folder, once it has proved readable.

    Its name must be one of `need.names`; `revision` is noted in the manifest. What lies there already is replaced.
    Raises WeightsBroken if it cannot be read or differs from the published sha256, WeightsMissing if the folder cannot
    be written.
    """
    source = next(source for source in need.sources if source.name == file.name)
    verified: manifest.Verified = "by hand"
    digest = manifest.sha256(file)
    if isinstance(source, UrlFile) and source.sha256:
        if not digest.startswith(source.sha256):
            raise WeightsBroken(f"{file} differs from the published sha256 {source.sha256}: fetch or copy it again.")
        verified = "sha256"
    check(file)
    with _locked(need):
        new = need.folder / (file.name + ".new")
        try:
            shutil.copyfile(file, new)
            path = new.replace(need.folder / file.name)
        finally:
            new.unlink(missing_ok=True)
        manifest.write(path, str(file), revision, verified, digest)
        return path


def check(path: Path) -> None:
    """Raise WeightsBroken if the file cannot be read; tensors themselves are not looked at."""
    try:
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix in (".safetensors", ".bin", ".pt", ".pth"):
            _read(path, lambda _: False)
    except (OSError, ValueError, _Unreadable) as error:
        raise WeightsBroken(f"{path} cannot be read ({error}): fetch or copy it again.") from error


def _load(need: Need, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    path, before = obtain(need), None
    try:
        before = path.stat()
        return _read(path, wanted)
    except FileNotFoundError:
        why = "it was there and is gone"  # another thread has just set it aside
    except OSError as error:
        raise WeightsBroken(f"{path} cannot be opened ({error}): check its permissions and the disk.") from error
    except _Unreadable as error:
        why = f"it cannot be read ({error})"
    if not os.access(need.folder, os.W_OK):
        raise _beyond_repair(path, why)
    with _locked(need):
        path = _repair(need, path, before, why)
    try:
        return _read(path, wanted)
    except _Unreadable as error:
        raise WeightsBroken(
            f"{path} came as it was published and cannot be read ({error}): update torch and safetensors, or move it "
            f"away and bring another one with `{_command(need)} --from FOLDER`."
        ) from error


def _repair(need: Need, path: Path, before: os.stat_result | None, why: str) -> Path:
    """Return what to read instead of the unreadable file at `path`: another, or the same if it is as published."""
    found = locate(need)
    if found is None:
        return _fetch(need)
    now = found.stat()
    if found != path or before is None or (now.st_ino, now.st_mtime_ns) != (before.st_ino, before.st_mtime_ns):
        return found  # another thread has put it there
    if path.name in manifest.read(need.folder) and manifest.mismatch(path) is None:
        return path  # fetched again, it would be the same
    return _replace(need, path, why)


def _replace(need: Need, path: Path, why: str) -> Path:
    aside = manifest.set_aside(path, why)
    return _fetch(need, f"{path.name} was broken ({why}) and was renamed to {aside.name}. ")


def _fetch(need: Need, before: str = "") -> Path:
    """Fetch from the first source that has the file; `before` tells what befell an earlier one."""
    answers = []
    for source in need.sources:
        try:
            return download.fetch(source, need.folder)
        except download.NotPublished as error:
            answers.append(f"{source.name} from {source}: {error}")
        except download.FetchFailed as error:
            raise _missing(need, f"{source.name} from {source}: {error}", before) from error
    raise Unpublished(str(_missing(need, "; ".join(answers), before)))


@contextmanager
def _locked(need: Need) -> Iterator[None]:
    """Hold the folder against other threads and processes; what cannot be written there becomes WeightsMissing."""
    try:
        need.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(need.folder / _LOCK)
        try:
            held = lock.acquire(blocking=False)
        except Timeout:
            log.info("Waiting for %s, which is being fetched into %s already", need.names[0], need.folder)
            held = lock.acquire()
        with held:
            yield
    except OSError as error:
        raise _missing(need, f"the folder cannot be written ({error})") from error


def _read(path: Path, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    """Return the wanted tensors of a checkpoint by name; raises _Unreadable, OSError."""
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                names = _names(file.keys())
                return {name: file.get_tensor(key) for name, key in names.items() if wanted(name)}
        except SafetensorError as error:
            raise _Unreadable(str(error)) from error
    try:
        # Files from before torch 1.6 are no zip archives and cannot be mapped.
        state: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        # torch's own words advise to load it all the same, which would run what is in it.
        log.debug("%s was refused: %s", path, error)
        raise _Unreadable("it is damaged, or holds more than tensors, which is never loaded") from error
    except _DAMAGED as error:
        raise _Unreadable(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}") from error
    if isinstance(state, dict) and "state_dict" in state:
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise _Unreadable("it does not hold tensors by name")
    return {name: state[key] for name, key in _names(state).items() if wanted(name)}


def _names(keys: Iterable[str]) -> dict[str, str]:
    """Map names to keys: those of a network that was saved inside torch's DataParallel begin with "module."."""
    return {key.removeprefix("module."): key for key in keys}


def _command(need: Need) -> str:
    return f"python -m scripts.fetch_weights {need.model}"


def _missing(need: Need, reason: str, before: str = "") -> WeightsMissing:
    return WeightsMissing(
        f"{before}{need.model} needs {need.names[0]} in {need.folder}, and it could not be put there: {reason}. "
        f"Run `{_command(need)}` where the network can be reached, or bring the file by hand and add `--from FOLDER`."
    )


def _beyond_repair(path: Path, why: str) -> WeightsBroken:
    return WeightsBroken(f"{path} is broken: {why}. Its folder cannot be written, so replace the file by hand.")
