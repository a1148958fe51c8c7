"""CLIP models that are a file of their own: what such a file has to have, and how it takes part.

The entry in the catalogue names the module. All that open_clip's models have follows: queues and batches, the gate, the
choice of an engine, the store. docs/adding-a-model.md walks through one. Knows no such model itself.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray

from engines import manifest
from engines.catalog import Clip

if TYPE_CHECKING:
    from engines.subject import Vectors


class OwnModel(Protocol):
    """The functions of a module that is a model."""

    __file__: str

    def subject(self, kind: Literal["visual", "textual"], entry: Clip, device: torch.device) -> "Vectors":
        """Return one side as it is compiled and examined; may raise WeightsMissing, WeightsBroken.

        Its network takes pictures uint8 (B, S, S, 3), or ids int64 (B, context_length), and returns float32 (B, dim) of
        length 1.
        """

    def tokenize(self, text: str, language: str | None) -> NDArray[np.int64]:
        """Return the ids of a text, (context_length,). Called by several threads at a time."""


def module_of(entry: Clip) -> OwnModel:
    """Import the module of an entry that has one."""
    return cast(OwnModel, importlib.import_module(entry.module))


def subject_of(kind: Literal["visual", "textual"], entry: Clip, device: torch.device) -> "Vectors":
    """Return one side of the model of an entry that has a module; raises what its `subject` raises."""
    module = module_of(entry)
    subject = module.subject(kind, entry, device)
    # An engine that was built before the file or the entry changed is another one.
    subject.preparation = f"{entry}; {manifest.sha256(Path(module.__file__))}; {subject.preparation}"
    return subject
