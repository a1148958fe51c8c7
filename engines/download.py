"""Brings one published file into a folder: partial file, resumed, verified, renamed.

Knows the Hugging Face hub through its library, which honours HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN and the proxies of
the environment, also for plain URLs. The library's own download neither survives a restart nor checks more than sizes,
so only its addresses, checksums and HTTP session are used. Deliberately knows neither models nor tensors.
"""

import errno
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Literal

import httpx2
from huggingface_hub import constants, get_hf_file_metadata, get_session, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented, yet not in __all__
from tqdm import tqdm

from engines import manifest, progress

log = logging.getLogger(__name__)

RETRIES = 4  # in a row, without a new byte in between
PAUSE = 1.0  # seconds before a retry, doubled with each further one in a row
_INCOMPLETE = ".incomplete"


@dataclass(frozen=True, slots=True)
class HubFile:
    """The file `name` of the Hugging Face repository `repo`, newest revision."""

    repo: str
    name: str

    def __str__(self) -> str:
        return f"the Hugging Face repository {self.repo}"


@dataclass(frozen=True, slots=True)
class UrlFile:
    """A file at a plain URL. `sha256` is its checksum or the first digits of it, "" where none is published."""

    url: str
    sha256: str = ""

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]

    def __str__(self) -> str:
        return self.url


Source = HubFile | UrlFile


class FetchFailed(Exception):
    """The file did not come; `str()` is the reason, to be put into a sentence."""


class NotPublished(FetchFailed):
    """The server answers, and does not have the file."""


class _Interrupted(FetchFailed):
    """Trying again may help."""


@dataclass(frozen=True, slots=True)
class _Remote:
    """Where the bytes come from and what they must be: `size` None and `checksum` "" where that is not known."""

    url: str
    headers: Mapping[str, str]
    revision: str
    size: int | None
    checksum: str
    algorithm: Literal["sha256", "git-sha1"]


def fetch(source: Source, folder: Path) -> Path:
    """Fetch `source` into the existing `folder`, record it in the manifest, return its path.

    Goes on where an earlier try, also of an earlier process, was cut off. The caller holds the folder's lock. Nothing
    has the final name before it was verified. Raises FetchFailed, NotPublished.
    """
    try:
        path = _fetch(source, folder)
    except NotPublished:  # it may lie elsewhere
        raise
    except FetchFailed:
        progress.fetched(ok=False)
        raise
    progress.fetched(ok=True)
    return path


def _fetch(source: Source, folder: Path) -> Path:
    log.info("Fetching %s from %s into %s", source.name, source, folder)
    left, most = RETRIES, _received(folder, source.name)
    while True:
        try:
            return _attempt(source, folder)
        except (HfHubHTTPError, httpx2.HTTPError, httpx2.InvalidURL, OSError, _Interrupted) as error:
            received = _received(folder, source.name)
            failure = _explain(error, under_way=received > most)
            left = RETRIES if received > most else left - 1
            most = max(most, received)
            if left < 0 or not isinstance(failure, _Interrupted):
                raise failure from error
            delay = PAUSE * 2.0 ** (RETRIES - left - 1)
            log.warning("%s: %s; trying again in %g s", source.name, failure, delay)
            time.sleep(delay)


def human(size: int) -> str:
    """Return a number of bytes for people, in decimal megabytes."""
    return f"{size / 1e6:,.1f} MB"


def _attempt(source: Source, folder: Path) -> Path:
    remote = _locate(source)
    # The checksum in its name keeps the beginning of one revision from being completed with the end of another.
    part = folder / f"{source.name}.{remote.checksum[:12] or 'part'}{_INCOMPLETE}"
    resumed = part.exists()
    _receive(remote, part, source.name)
    digest = manifest.sha256(part)
    verified = _verify(remote, part, digest, resumed)
    target = part.replace(folder / source.name)
    for stale in folder.iterdir():
        if stale.name.startswith(source.name + ".") and stale.name.endswith(_INCOMPLETE):
            stale.unlink()
    record = manifest.write(target, str(source), remote.revision, verified, digest)
    if verified == "size":
        log.warning(
            "No checksum is published for %s: only its length was verified. Its sha256 is %s",
            source.name,
            digest,
        )
    log.info("%s: %s, %s verified, in %s", source.name, human(record.size), verified, folder)
    return target


def _locate(source: Source) -> _Remote:
    if not isinstance(source, HubFile):
        return _Remote(source.url, {}, "", None, source.sha256, "sha256")
    published = get_hf_file_metadata(hf_hub_url(source.repo, source.name, endpoint=constants.ENDPOINT))
    # The tag of a large file is its sha256, that of a small one the id that git gives to its content.
    checksum = published.etag or ""
    digits = checksum if set(checksum) <= set("0123456789abcdef") and len(checksum) in (40, 64) else ""
    return _Remote(
        # The commit is named, so that checksum and content are of the same one.
        hf_hub_url(source.repo, source.name, revision=published.commit_hash, endpoint=constants.ENDPOINT),
        build_hf_headers(),
        published.commit_hash or "",
        published.size,
        digits,
        "git-sha1" if len(digits) == 40 else "sha256",
    )


def _receive(remote: _Remote, part: Path, name: str) -> None:
    """Append to `part` what it lacks. Raises _Interrupted if less or more than announced has come."""
    have = part.stat().st_size if part.exists() else 0
    if have and have == remote.size:
        return  # the process ended between the last byte and the new name
    headers = {**remote.headers, "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", remote.url, headers=headers, timeout=timeout, follow_redirects=True) as response:
        if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            if response.headers.get("Content-Range") == f"bytes */{have}":
                return
            part.unlink()
            raise _Interrupted("what was fetched before is no beginning of what is published now")
        response.raise_for_status()
        resumed = response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if not resumed:
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else remote.size
        _check_space(part.parent, (total or 0) - have)
        bar = tqdm(total=total, initial=have, desc=name, unit="B", unit_scale=True, disable=None)
        with bar, part.open("ab" if resumed else "wb") as file:
            # As it comes: a chunk size would keep bytes in a buffer, lost when the line goes dead.
            for chunk in response.iter_bytes():
                file.write(chunk)
                bar.update(len(chunk))
                progress.received(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    came = part.stat().st_size
    expected = remote.size if remote.size is not None else total
    if expected is not None and came != expected:
        if came > expected:
            part.unlink()
        raise _Interrupted(f"{came:,} bytes came, {expected:,} were announced")


def _verify(remote: _Remote, part: Path, digest: str, resumed: bool) -> manifest.Verified:
    """Hold `part`, of sha256 `digest`, against what is published; return what that was. A wrong file is deleted."""
    if not remote.checksum:
        return "size"
    actual = digest if remote.algorithm == "sha256" else _git_sha1(part)
    if actual.startswith(remote.checksum):
        return remote.algorithm
    part.unlink()
    reason = (
        f"its {remote.algorithm} is {actual}, and {remote.checksum} is published: "
        "it was altered on the way, so it was not put in place"
    )
    # Only the part that came first may have been wrong.
    raise _Interrupted(reason) if resumed else FetchFailed(reason)


def _git_sha1(path: Path) -> str:
    # https://git-scm.com/book/en/v2/Git-Internals-Git-Objects: sha1 over "blob <size>\0" and the content.
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _received(folder: Path, name: str) -> int:
    """Return how many bytes of `name` lie there incomplete."""
    parts = (path for path in folder.iterdir() if path.name.startswith(name + "."))
    return sum(path.stat().st_size for path in parts if path.name.endswith(_INCOMPLETE))


def _check_space(folder: Path, missing: int) -> None:
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise OSError(errno.ENOSPC, f"{human(missing)} are still to come and {human(free)} are free")


def _explain(error: Exception, under_way: bool) -> FetchFailed:
    """Return the reason why a try failed; an _Interrupted where another one may help.

    `under_way` says that bytes came in this try. What cannot be reached at all is not tried again: somebody waits for
    the answer.
    """
    if isinstance(error, FetchFailed):
        return error
    if isinstance(error, OfflineModeIsEnabled):
        return FetchFailed("HF_HUB_OFFLINE is set, so nothing is fetched: unset it, or bring the file by hand")
    if isinstance(error, HfHubHTTPError | httpx2.HTTPStatusError):
        return _explain_status(error.response)
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.ProxyError):
        kind = _Interrupted if under_way else FetchFailed
        return kind(f"{error.request.url.host} cannot be reached ({error}): check the network and the proxy settings")
    if isinstance(error, httpx2.TransportError) and not isinstance(error, httpx2.UnsupportedProtocol):
        return _Interrupted(f"the connection broke ({error or type(error).__name__})")
    if isinstance(error, OSError):
        if error.errno == errno.ENOSPC:
            return FetchFailed(f"the disk is full ({error.strerror}): make room, or choose another cache folder")
        return FetchFailed(f"the folder cannot be written ({error}): make it writable, or choose another cache folder")
    return FetchFailed(f"the address cannot be followed ({error}): check HF_ENDPOINT")


def _explain_status(response: httpx2.Response) -> FetchFailed:
    status, host = response.status_code, response.url.host
    if status == HTTPStatus.NOT_FOUND:
        return NotPublished(f"{host} does not have it (404)")
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return FetchFailed(
            f"{host} refuses it ({status}): if the repository asks for it, accept its terms there and set HF_TOKEN"
        )
    if status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS) or status >= 500:
        return _Interrupted(f"{host} answers {status}: try again later")
    return FetchFailed(f"{host} answers {status}: check HF_ENDPOINT and the proxy settings")
