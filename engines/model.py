"""What the server sees of a model: the protocol, what it tells of itself, and the settings it is built with.

Imports no torch, so that the server can name these types before torch is loaded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

Kind = Literal["visual", "textual", "detection", "recognition"]
Resize = Literal["native", "crop"]
Precision = Literal["float32", "bfloat16", "float16", "int8"]
BackendName = Literal["eager", "torchscript", "inductor", "tensorrt", "openvino", "ipex"]


@dataclass(frozen=True, slots=True)
class Config:
    """The settings that change how models are built; one value for the life of the process.

    `min_face` is in pixels of the picture as sent. `device` is auto, cpu, cuda or xpu (an Intel GPU, by OpenVINO
    alone), `device_ids` are ordinals of it, `require_device` refuses all others. `threads` is the number of threads of
    one operation, 0 is all cores at hand; `examine` whether a load may take seconds to examine eager PyTorch in lower
    precisions; `streams` the number of parts of a batch that run at once, 0 is what was measured to be the fastest;
    `hint` is for OpenVINO. `calibration` is a folder of pictures and `calibration_texts` a file of texts, one per line,
    that int8 is calibrated on; without them it is on generated ones. `scaled_decode` is how many times the side that a
    CLIP model takes a JPEG must keep on both sides where it is decoded at a fraction of its size, 0 for never. `decode`
    is where the JPEGs are decoded of which only a CLIP vector is wanted.
    """

    cache_folder: Path
    untrained: bool = False
    resize: Resize = "native"
    min_face: int = 40
    device_ids: tuple[int, ...] = (0,)
    threads: int = 0
    device: Literal["auto", "cpu", "cuda", "xpu"] = "auto"
    require_device: Literal["", "cpu", "cuda", "xpu"] = ""
    engine: BackendName | Literal["auto"] = "eager"
    precision: Precision | Literal["auto"] = "float32"
    examine: bool = True
    streams: int = 0
    hint: Literal["latency", "throughput"] = "latency"
    scaled_decode: float = 4.0
    calibration: Path | None = None
    calibration_texts: Path | None = None
    decode: Literal["cpu", "cuda"] = "cpu"


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
    built: bool = False  # a compiled engine from the store


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
