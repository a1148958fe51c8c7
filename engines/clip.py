"""The two sides of a CLIP model as the server sees them: one input prepared, a batch run.

Knows how to put a tower, its weights, an engine and the preparation together. Deliberately knows no queues and no HTTP.
"""

import logging
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load as read_safetensors
from torch import Tensor

from engines import catalog, checkpoints, engine, preprocess, tokenizer, towers, untrained, weights
from engines.catalog import Clip, ResizeMode
from engines.engine import Choice
from engines.model import Config, Info
from engines.tokenizer import Ids, Tokenizer
from engines.towers import Tower

log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]
Vector = NDArray[np.float32]
# A batch of texts is cut to the longest of them, but only to these lengths: few shapes keep memory on a GPU flat.
LENGTHS = (16, 32)


class Visual:
    """The picture side; items are uint8 (S, S, 3), results float32 (dim,) of unit length."""

    def __init__(self, choice: Choice, info: Info, size: int, mode: ResizeMode, floor_offset: bool) -> None:
        self.info = info
        self.buckets = choice.buckets
        self._choice = choice
        self._size = size
        self._mode = mode
        self._floor_offset = floor_offset

    def prepare(self, image: Image.Image) -> Pixels:
        """Return the square of an RGB picture that the network sees, (S, S, 3)."""
        return preprocess.prepare(image, self._size, self._mode, self._floor_offset)

    def collate(self, items: Sequence[Pixels]) -> Pixels:
        """Stack items to (B, S, S, 3)."""
        return np.stack(items)

    def run(self, batch: Pixels) -> list[Vector]:
        """Return one vector per picture of a batch of at most `buckets[-1]`."""
        return _run(self._choice, batch)


class Textual:
    """The text side; items are int64 (L,) ids, results float32 (dim,) of unit length."""

    def __init__(self, choice: Choice, info: Info, tokenize: Tokenizer, length_of: Callable[[Ids], int] | None) -> None:
        self.info = info
        self.buckets = choice.buckets
        self._choice = choice
        self._tokenize = tokenize
        self._length_of = length_of

    def prepare(self, text: str, language: str | None = None) -> Ids:
        """Return the token ids of a text, padded to the context (L,); `language` is a code like "de", if known."""
        return self._tokenize(text, language)

    def collate(self, items: Sequence[Ids]) -> Ids:
        """Stack items to (B, L), L as short as the longest text and the network allow."""
        batch = np.stack(items)
        if self._length_of is None:
            return batch
        longest = max(self._length_of(ids) for ids in items)
        fitting = [length for length in LENGTHS if longest <= length < batch.shape[1]]
        return batch[:, : fitting[0]] if fitting else batch

    def run(self, batch: Ids) -> list[Vector]:
        """Return one vector per text of a batch of at most `buckets[-1]`."""
        return _run(self._choice, batch)


def load_visual(entry: Clip, config: Config) -> Visual:
    """Build the picture side of `entry` with its weights; raises WeightsMissing, WeightsBroken."""
    network = _build(entry, "visual", towers.visual, config)
    if _is_untrained(entry, config):
        untrained.spread(network, torch.from_numpy(untrained.pictures(entry.image_size)))
    choice, info = _place(network, entry, "visual", config)
    # The reference deployment crops for all models, and cuts the offset of the crop down where torchvision rounds.
    crop = config.resize == "crop"
    return Visual(choice, info, entry.image_size, "shortest" if crop else entry.resize, floor_offset=crop)


def load_textual(entry: Clip, config: Config) -> Textual:
    """Build the text side of `entry` with its weights and tokenizer; raises WeightsMissing, WeightsBroken."""
    tokenize, remark = tokenizer.load(entry, config)
    network = _build(entry, "textual", towers.textual, config)
    if _is_untrained(entry, config):
        examples = np.stack([tokenize(text, None) for text in untrained.TEXTS])
        untrained.spread(network, torch.from_numpy(examples))
    choice, info = _place(network, entry, "textual", config, remark)
    return Textual(choice, info, tokenize, _length_of(entry))


def _build(entry: Clip, kind: Literal["visual", "textual"], build: Callable[[Clip], Tower], config: Config) -> Tower:
    if _is_untrained(entry, config):
        with untrained.seeded():
            return build(entry)
    state = _demo_state() if entry.name == catalog.DEMO else weights.clip_state(entry, kind, config.cache_folder)
    with checkpoints.to_be_loaded():
        network = build(entry)
    checkpoints.load(network, state, entry.name)
    return network


def _is_untrained(entry: Clip, config: Config) -> bool:
    return config.untrained and entry.name != catalog.DEMO


def _demo_state() -> dict[str, Tensor]:
    data = resources.files("engines").joinpath("data/demo/clip.safetensors").read_bytes()
    state: dict[str, Tensor] = read_safetensors(data)
    return state


def _place(
    network: Tower, entry: Clip, kind: Literal["visual", "textual"], config: Config, remark: str = ""
) -> tuple[Choice, Info]:
    size = sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
    choice = engine.choose(network, engine.pick_device(config.device_ids))
    info = Info(
        name=entry.name,
        kind=kind,
        device=str(choice.engine.device),
        backend=choice.engine.backend,
        precision=choice.engine.precision,
        reason="; ".join(part for part in (choice.reason, remark) if part),
        untrained=_is_untrained(entry, config),
        bytes=size,
    )
    if info.untrained:
        log.warning(
            "UNTRAINED: %s (%s) has random weights, its answers mean nothing%s. Unset MACHINE_LEARNING_UNTRAINED "
            "to serve real ones.",
            entry.name,
            kind,
            f"; {remark}" if remark else "",
        )
    return choice, info


def _length_of(entry: Clip) -> Callable[[Ids], int] | None:
    """Return how to find the number of ids of a text that count, None where all do."""
    if entry.text_tower == "causal":
        return lambda ids: int(ids.argmax()) + 1  # the end token has the highest id
    if entry.text_tower == "masked":
        pad_id = int(towers.text_config(entry)["pad_token_id"])
        return lambda ids: int(np.flatnonzero(ids != pad_id)[-1]) + 1
    return None


def _run(choice: Choice, batch: Pixels | Ids) -> list[Vector]:
    return list(engine.run_padded(choice, torch.from_numpy(batch)).cpu().numpy())
