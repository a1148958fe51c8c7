"""Who is told of downloads while they run.

A listener belongs to the thread that loads a model, so that nothing between it and the download has to hand it on.
Knows neither files nor networks.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol


class Listener(Protocol):
    """Is told of downloads, in the thread that loads."""

    def received(self, size: int) -> None:
        """So many bytes have come."""

    def fetched(self, ok: bool) -> None:
        """One file came and was verified, or was given up."""


_LISTENER: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def told_to(listener: Listener) -> Iterator[None]:
    """Tell `listener` of the downloads of this thread in the time of the block."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


def received(size: int) -> None:
    """Tell whoever listens that `size` bytes have come."""
    if (listener := _LISTENER.get()) is not None:
        listener.received(size)


def fetched(ok: bool) -> None:
    """Tell whoever listens that a file came, or was given up."""
    if (listener := _LISTENER.get()) is not None:
        listener.fetched(ok)
