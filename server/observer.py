"""What a queue tells of itself to whoever counts.

Knows no queue and no metrics: the methods here do nothing, and a subclass overrides those that it wants. They are
called on the event loop and on device threads, mostly with the lock of the scheduler held, so they return at once.
"""

from collections.abc import Sequence
from typing import Literal, Protocol, get_args

# The largest batch was full; the next item would have been too heavy; a smaller bucket was filled and the rest waits;
# all that waited rides.
Cut = Literal["full", "weight", "bucket", "all"]
Dropped = Literal["given_up", "unloaded", "closed"]
Refused = Literal["items", "weight", "seconds"]

CUTS: tuple[Cut, ...] = get_args(Cut)
DROPS: tuple[Dropped, ...] = get_args(Dropped)
REFUSALS: tuple[Refused, ...] = get_args(Refused)


class Observer:
    """Is told what becomes of the items of one queue, and listens to nothing."""

    def refused(self, reason: Refused) -> None:
        """An item was turned away: too many wait, too heavy ones, or for too long."""

    def dropped(self, items: int, reason: Dropped) -> None:
        """Items left before their batch was cut: nobody waits for them, or nobody computes them any longer."""

    def cut(self, items: int, reason: Cut) -> None:
        """A batch was cut."""

    def ran(self, seconds: float, errors: Sequence[Exception]) -> None:
        """A batch ended after `seconds` on the device, with an error for each item that failed."""

    def swapped(self) -> None:
        """Another engine took the place of the one that computes the queue."""


class Rider(Protocol):
    """Whoever wants to know where the time of one item goes, and tells of it where it fails.

    Times are of time.perf_counter, in seconds.
    """

    def began(self, at: float) -> None:
        """Told on the device thread: its batch begins. It may begin again, where the first one came to nothing."""

    def rode(self, queued: float, began: float, ended: float) -> None:
        """Told on the event loop, before the result: when an item was queued, and its batch began and ended."""
