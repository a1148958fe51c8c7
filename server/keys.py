"""API keys: who may ask, and which routes ask for none.

Knows keys and addresses of routes. Does not know what is asked. Only digests of keys are held, and all of them are
compared, each in constant time, so that the time of an answer tells nothing of any key.
"""

import base64
import binascii
import hashlib
import hmac
import logging
import os
from collections.abc import Iterable
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from pydantic import SecretStr

from server.errors import NotAllowed
from server.lists import SHORTEST_KEY

log = logging.getLogger(__name__)

FLOW = web.RequestKey("flow", str)  # what a client is known by in the queues: not its key, and not to be turned into it
ALWAYS_FREE = frozenset({"/ping", "/health/live", "/health/ready"})
# What a choice of the settings frees, as templates of routes.
FREED = {
    "app": ("/app", "/app/{file}"),
    "docs": ("/docs", "/docs/{file}", "/openapi.json"),
    "metrics": ("/metrics",),
}
BEARER = 'Bearer realm="Facet"'
BASIC = 'Basic realm="Facet: any name, and a key as the password"'  # a browser asks for it before it opens a page


class KeyFileError(Exception):
    """The file of keys cannot be read, or has none that will do; `str()` is a sentence."""


class Keys:
    """The keys of the settings and of a file, which is read again whenever it has changed.

    Raises KeyFileError where it cannot be read at the start. Later its last keys stay good until it can be read again.
    """

    def __init__(self, keys: Iterable[SecretStr] = (), file: Path | None = None) -> None:
        self._own = tuple(_digest(key.get_secret_value().encode()) for key in keys)
        self._file = file
        self._state: tuple[int, ...] | None = None
        self._listed: tuple[bytes, ...] = ()
        if file is not None:
            self._state = _state(file)
            self._listed = _read(file)

    @property
    def wanted(self) -> bool:
        """Whether a request needs a key at all."""
        return bool(self._own) or self._file is not None

    def known(self, key: bytes) -> str | None:
        """Return what the owner of a key is told apart by, None for a key that is none."""
        self._look_again()
        digest = _digest(key)
        matches = [hmac.compare_digest(digest, one) for one in (*self._own, *self._listed)]
        return digest.hex()[:16] if any(matches) else None

    def _look_again(self) -> None:
        if self._file is None:
            return
        try:
            state = _state(self._file)
            if state == self._state:
                return
            self._state, listed = state, _read(self._file)
        except KeyFileError as error:
            if self._state is not None:
                log.error("%s The keys that it had stay good until then.", error)
                self._state = None  # told once; read again as soon as it is another
            return
        self._listed = listed
        log.info("%s has changed: it has %d keys now", self._file, len(listed))


def guard(keys: Keys, free: Iterable[str]) -> Middleware:
    """Return the middleware that lets nobody in without a key, but for the routes that `free` and ALWAYS_FREE name."""
    freed = ALWAYS_FREE.union(*(FREED[name] for name in free))

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if keys.wanted:
            owner = keys.known(given(request))
            resource = request.match_info.route.resource
            route = "" if resource is None else resource.canonical
            if owner is not None:
                request[FLOW] = owner
            elif route not in freed:
                page = any(route in FREED[name] for name in ("app", "docs"))
                raise NotAllowed(
                    "This server asks for an API key: send it in the header x-api-key.", BASIC if page else BEARER
                )
        return await handler(request)

    return middleware


def given(request: web.Request) -> bytes:
    """Return the key that a request carries, empty for none: x-api-key, else a bearer's, else a password."""
    if "x-api-key" in request.headers:
        return request.headers["x-api-key"].encode("utf-8", "surrogateescape")
    scheme, _, value = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode("utf-8", "surrogateescape")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):  # ValueError where it is not ASCII
            return b""
    return b""


def _digest(key: bytes) -> bytes:
    # Of equal length for all keys, so that comparing tells nothing of theirs. Keys are random: no salt, no stretching.
    return hashlib.sha256(key).digest()


def _state(file: Path) -> tuple[int, ...]:
    try:
        status = os.stat(file)  # noqa: PTH116 - half the time of Path.stat, for each request
    except OSError as error:
        raise _unreadable(file, error) from error
    return status.st_mtime_ns, status.st_size, status.st_ino


def _read(file: Path) -> tuple[bytes, ...]:
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise _unreadable(file, error) from error
    keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith(b"#")]
    if any(len(key) < SHORTEST_KEY for key in keys):
        raise KeyFileError(f"{file} has a key of under {SHORTEST_KEY} letters: make one with `openssl rand -hex 32`.")
    return tuple(_digest(key) for key in keys)


def _unreadable(file: Path, error: OSError) -> KeyFileError:
    return KeyFileError(f"The file of keys {file} cannot be read ({error.strerror}): make it readable for the server.")
