"""What the server sees of a model: the protocol, what it tells of itself, and the settings it is built with.

Imports no torch, so that the server can name these types before torch is loaded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

Kind = Literal["visual", "textual", "detection", "recognition"]
Resize = Literal["native", "crop"]


@dataclass(frozen=True, slots=True)
class Config:
    """The settings that change how models are built; one value for the life of the process.

    `min_face` is in pixels of the picture as sent. `device_ids` are CUDA ordinals. `threads` is the number of
    intra-op threads of torch, 0 leaves torch's own choice.
    """

    cache_folder: Path
    untrained: bool = False
    resize: Resize = "native"
    min_face: int = 40
    device_ids: tuple[int, ...] = (0,)
    threads: int = 0


@dataclass(frozen=True, slots=True)
class Info:
    """What a loaded model tells of itself; shown in the log and at /models."""

    name: str
    kind: Kind
    device: str
    backend: str
    precision: str
    reason: str
    untrained: bool
    bytes: int


class Model(Protocol):
    """One loaded model. `collate` and `run` take what the `prepare` of the concrete class returned.

    `prepare` is not part of the protocol, since its input differs by kind; it is a pure function of one input, needs
    no device and may run in any thread. `run` is called on one thread at a time. Options of a request (a threshold)
    travel with the item, never on the model.
    """

    info: Info
    buckets: tuple[int, ...]  # ascending batch sizes that the engine takes without padding; the last is the largest

    def collate(self, items: Sequence[Any]) -> Any:
        """Put prepared items together into one batch; may run ahead, while another batch is on the device."""

    def run(self, batch: Any) -> Sequence[Any]:
        """Compute one result per item, in the order of the items, as NumPy on the host."""
