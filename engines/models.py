"""One way to load any model. Knows which module builds which kind, and nothing about any of them.

Importing it imports torch, open_clip and facenet-pytorch, which takes seconds.
"""

from functools import cache

import torch

from engines import clip, faces, machine, tokenizer
from engines.catalog import Clip, Face
from engines.engine import Subject
from engines.model import Config, Kind, Model


def load(kind: Kind, entry: Clip | Face, config: Config) -> tuple[Model, ...]:
    """Build a model, ready to run, once for each device that is used; raises WeightsMissing, WeightsBroken.

    Takes seconds, and minutes where weights are fetched. EngineMissing if the settings want a device that is not there,
    ValueError for an entry that has no such side.
    """
    torch.set_num_threads(config.threads or machine.cores())
    return tuple(_load(kind, entry, config, device) for device in devices(config))


@cache  # what keeps a GPU from being used is told once
def devices(config: Config) -> tuple[torch.device, ...]:
    """Return the devices to run on; raises EngineMissing."""
    return machine.pick_devices(config)


def subject_of(kind: Kind, entry: Clip | Face, config: Config, device: torch.device) -> Subject:
    """Return what is compiled and examined of a model; raises WeightsMissing, WeightsBroken, ValueError as `load`."""
    match entry, kind:
        case Clip(), "visual":
            return clip.visual_subject(entry, config, device)
        case Clip(), "textual":
            return clip.textual_subject(entry, config, device, tokenizer.load(entry, config)[0])
        case Face(), "detection":
            return faces.detector_subject(device)
        case Face(), "recognition":
            return faces.recogniser_subject(entry, config, device)
    raise ValueError(f"{entry.name} is a {type(entry).__name__} entry and has no {kind} model")


def _load(kind: Kind, entry: Clip | Face, config: Config, device: torch.device) -> Model:
    match entry, kind:
        case Clip(), "visual":
            return clip.load_visual(entry, config, device)
        case Clip(), "textual":
            return clip.load_textual(entry, config, device)
        case Face(), "detection":
            return faces.load_detector(config, device)
        case Face(), "recognition":
            return faces.load_recogniser(entry, config, device)
    raise ValueError(f"{entry.name} is a {type(entry).__name__} entry and has no {kind} model")
