"""One way to load any model. Knows which module builds which kind, and nothing about any of them."""

import torch

from engines.catalog import Clip, Face
from engines.model import Config, Kind, Model


def load(kind: Kind, entry: Clip | Face, config: Config) -> Model:
    """Build a model, ready to run; raises WeightsMissing, WeightsBroken.

    Takes seconds, and minutes where weights are fetched. ValueError for an entry that has no such side.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    if isinstance(entry, Clip):
        from engines import clip

        if kind == "visual":
            return clip.load_visual(entry, config)
        if kind == "textual":
            return clip.load_textual(entry, config)
    else:
        # Imported only when a face model is asked for: facenet-pytorch and its weights come with it.
        from engines import faces

        if kind == "detection":
            return faces.load_detector(config)
        if kind == "recognition":
            return faces.load_recogniser(entry, config)
    raise ValueError(f"{entry.name} is a {type(entry).__name__} entry and has no {kind} model")
