"""Between the settings and engines/: what of it is called in threads, and what the settings mean there.

Imports of engines/ that need torch wait until a function here is called, so that the server answers before. Does not
know when a model is loaded (shelf.py), nor what is asked of it.
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from engines import catalog
from engines.model import Config, Kind, Model
from server.queue import Limits
from server.settings import Settings
from server.shelf import Part

DETECTION_BATCH_PIXELS = 16_000_000  # ten previews of 1440x1080: bounds the memory of one detector batch
# Forty of them, three bytes each, and one at a time in float32: bounds what JPEGs take that the GPU decodes.
GPU_DECODED_PIXELS = 64_000_000


class Engines:
    """The functions of engines/ that need torch, imported when the first of them is called."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._memory: Any = None  # engines.memory, once it is imported

    def find_devices(self) -> None:
        """Look for the devices that the settings want, which imports torch; raises EngineMissing."""
        importlib.import_module("engines.machine").pick_devices(self._config)

    def warm_up(self) -> None:
        """Import torch and all else that is heavy, keep it out of the garbage collector's way, and look for devices.

        Logs what is wrong with them; raises EngineMissing where the settings want one that is not there.
        """
        importlib.import_module("engines.lean").import_open_clip()
        models = importlib.import_module("engines.models")
        memory = importlib.import_module("engines.memory")
        memory.settle()
        self._memory = memory
        models.devices(self._config)

    def load(self, part: Part) -> Sequence[Model]:
        """Load one model, once for each device; raises the errors of engines.errors."""
        return self._load(part, self._config)

    def load_eager(self, part: Part) -> Sequence[Model]:
        """Load one model as `load` does, on eager PyTorch in float32: what computes where an engine fails."""
        return self._load(part, replace(self._config, engine="eager", precision="float32"))

    def _load(self, part: Part, config: Config) -> Sequence[Model]:
        models: Sequence[Model] = importlib.import_module("engines.models").load(part.kind, part.entry, config)
        self.release()  # of the weights from which they were made
        return models

    def release(self) -> None:
        """Give the memory of models that are gone back to the system."""
        importlib.import_module("engines.memory").release()

    def gpu_bytes(self) -> Mapping[str, Mapping[str, int]]:
        """Return the memory of the GPUs in use, in bytes by device and state; imports nothing."""
        return {} if self._memory is None else self._memory.gpu_bytes()


def engine_config(settings: Settings) -> Config:
    """Return what the engines need of the settings."""
    return Config(
        cache_folder=settings.cache_folder,
        untrained=settings.untrained,
        resize=settings.clip_resize,
        min_face=settings.min_face,
        device_ids=settings.device_ids,
        threads=settings.model_intra_op_threads,
        device=settings.device,
        require_device=settings.require_device,
        engine=settings.engine,
        precision=settings.precision,
        # Where something better is being built, the start does not wait for it.
        examine=settings.build == "never" or settings.engine == "eager",
        streams=settings.streams,
        hint=settings.openvino_hint,
        scaled_decode=settings.scaled_decode,
        calibration=settings.calibration,
        calibration_texts=settings.calibration_texts,
        decode=settings.decode,
    )


def preload_parts(settings: Settings) -> list[Part]:
    """Return what the settings want loaded at the start; raises UnknownModel, also for a wrong face alias."""
    if settings.face_alias:
        catalog.face(catalog.FACE_ALIASES[0], settings.face_alias)
    return [Part(kind, catalog.look_up(kind, name, settings.face_alias)) for kind, name in settings.preloads()]


def batch_weight(kind: Kind) -> int:
    """Return how heavy a batch of several inputs of a kind may be: in pixels for pictures, else 1 each."""
    match kind:
        case "detection":
            return DETECTION_BATCH_PIXELS
        case "visual":
            return GPU_DECODED_PIXELS
        case _:
            return Limits().batch_weight
