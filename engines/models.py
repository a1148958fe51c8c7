"""One way to load any model. Knows which module builds which kind, and nothing about any of them.

Importing it imports torch, open_clip and facenet-pytorch, which takes seconds.
"""

import torch

from engines import clip, faces
from engines.catalog import Clip, Face
from engines.model import Config, Kind, Model


def load(kind: Kind, entry: Clip | Face, config: Config) -> Model:
    """Build a model, ready to run; raises WeightsMissing, WeightsBroken.

    Takes seconds, and minutes where weights are fetched. ValueError for an entry that has no such side.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    match entry, kind:
        case Clip(), "visual":
            return clip.load_visual(entry, config)
        case Clip(), "textual":
            return clip.load_textual(entry, config)
        case Face(), "detection":
            return faces.load_detector(config)
        case Face(), "recognition":
            return faces.load_recogniser(entry, config)
    raise ValueError(f"{entry.name} is a {type(entry).__name__} entry and has no {kind} model")
