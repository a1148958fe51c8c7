"""The two sides of a CLIP model as the server sees them: one input prepared, a batch run.

Knows how to put a tower, its weights, an engine and the preparation together. Deliberately knows no queues and no HTTP.
"""

import logging
import math
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load as read_safetensors
from torch import Tensor

from engines import catalog, checkpoints, preprocess, samples, tokenizer, towers, untrained, weights
from engines.catalog import Clip, ResizeMode
from engines.choice import choose
from engines.engine import Choice, Network, host_of
from engines.fitting import Fitting
from engines.images import Pixels
from engines.model import Config, Info
from engines.subject import Cut, Vectors, info_of
from engines.tokenizer import Ids, Tokenizer
from engines.towers import Tower
from engines.transfer import Transfer, Upload

log = logging.getLogger(__name__)

Vector = NDArray[np.float32]
# A batch of texts is cut to the longest of them, but only to these lengths: few shapes keep memory on a GPU flat.
LENGTHS = (8, 16, 32)


class Visual:
    """The picture side; items are uint8 (S, S, 3), results float32 (dim,) of unit length."""

    def __init__(
        self, choice: Choice, info: Info, size: int, mode: ResizeMode, floor_offset: bool, enough_pixels: int
    ) -> None:
        """A picture may be decoded at a fraction of its size that has `enough_pixels` on both sides, 0 for never."""
        self.info = info
        self.enough_pixels = enough_pixels
        self.buckets = choice.buckets
        self._engine = Fitting(choice.engine, choice.buckets)
        self._transfer = Transfer(host_of(choice.engine.device), choice.buckets)
        self._size = size
        self._mode = mode
        self._floor_offset = floor_offset

    def prepare(self, picture: Pixels) -> Pixels:
        """Return the square of a picture (H, W, 3) RGB that the network sees, (S, S, 3)."""
        return preprocess.prepare(picture, self._size, self._mode, self._floor_offset)

    def collate(self, items: Sequence[Pixels]) -> Upload:
        """Send at most `buckets[-1]` items to the device as (B, S, S, 3)."""
        return self._transfer.upload(items)

    def run(self, batch: Upload) -> list[Vector]:
        """Return one vector per picture of a batch."""
        return list(self._transfer.run(self._engine, batch))


class Textual:
    """The text side; items are int64 (L,) ids, results float32 (dim,) of unit length."""

    def __init__(self, choice: Choice, info: Info, tokenize: Tokenizer, length_of: Callable[[Ids], int] | None) -> None:
        self.info = info
        self.buckets = choice.buckets
        self._engine = Fitting(choice.engine, choice.buckets)
        self._transfer = Transfer(host_of(choice.engine.device), choice.buckets)
        self._tokenize = tokenize
        self._length_of = length_of

    def prepare(self, text: str, language: str | None = None) -> Ids:
        """Return the token ids of a text, padded to the context (L,); `language` is a code like "de", if known."""
        return self._tokenize(text, language)

    def collate(self, items: Sequence[Ids]) -> Upload:
        """Send at most `buckets[-1]` items to the device as (B, L), L as short as they and the network allow."""
        if self._length_of is not None:
            longest = max(self._length_of(ids) for ids in items)
            items = [ids[: _cut_to(longest)] for ids in items]
        return self._transfer.upload(items)

    def run(self, batch: Upload) -> list[Vector]:
        """Return one vector per text of a batch."""
        return list(self._transfer.run(self._engine, batch))


def load_visual(entry: Clip, config: Config, device: torch.device) -> Visual:
    """Build the picture side of `entry` with its weights for `device`; raises WeightsMissing, WeightsBroken."""
    choice, info = _place(visual_subject(entry, config, device), config)
    # The reference deployment crops for all models, and cuts the offset of the crop down where torchvision rounds.
    crop = config.resize == "crop"
    mode = "shortest" if crop else entry.resize
    enough = math.ceil(config.scaled_decode * entry.image_size)
    return Visual(choice, info, entry.image_size, mode, floor_offset=crop, enough_pixels=enough)


def load_textual(entry: Clip, config: Config, device: torch.device) -> Textual:
    """Build the text side of `entry` with its weights and tokenizer for `device`.

    Raises WeightsMissing, WeightsBroken.
    """
    tokenize, remark = tokenizer.load(entry, config)
    choice, info = _place(textual_subject(entry, config, device, tokenize), config, remark)
    return Textual(choice, info, tokenize, _length_of(entry))


def visual_subject(entry: Clip, config: Config, device: torch.device) -> Vectors:
    """Return the picture tower with its weights as it is compiled and examined, on pictures as it was trained with.

    Raises WeightsMissing, WeightsBroken.
    """
    network = _build(entry, "visual", towers.visual, config)
    if _is_untrained(entry, config):
        untrained.spread(network, torch.from_numpy(untrained.pictures(entry.image_size)))
    inputs = torch.from_numpy(
        np.stack([preprocess.prepare(np.array(image), entry.image_size, entry.resize) for image in samples.pictures()])
    )
    mean, std = towers.mean_and_std(entry)
    return Vectors(
        model=entry.name,
        kind="visual",
        network=Network("visual", network, tuple(inputs.shape[1:]), torch.uint8, example=inputs[:2]),
        inputs=inputs,
        cuts=(),
        preparation=f"{entry}; {towers.architecture(entry)}; mean {mean}, standard deviation {std}",
        untrained=_is_untrained(entry, config),
        device=device,
    )


def textual_subject(entry: Clip, config: Config, device: torch.device, tokenize: Tokenizer) -> Vectors:
    """Return the text tower with its weights as it is compiled and examined, at every length that it is run with.

    Raises WeightsMissing, WeightsBroken.
    """
    network = _build(entry, "textual", towers.textual, config)
    if _is_untrained(entry, config):
        examples = np.stack([tokenize(text, None) for text in untrained.TEXTS])
        untrained.spread(network, torch.from_numpy(examples))
    length_of = _length_of(entry)
    inputs = np.stack([tokenize(text, None) for text in samples.TEXTS])
    context = inputs.shape[1]
    architecture = towers.text_config(entry) if entry.text_tower == "masked" else towers.architecture(entry)
    cuts = []
    if length_of is not None:
        lengths = [length_of(ids) for ids in inputs]
        for cut in (length for length in LENGTHS if length < context):
            rows = tuple(row for row, length in enumerate(lengths) if length <= cut)
            cuts.append(Cut(f"at length {cut}", rows, torch.from_numpy(inputs[list(rows), :cut])))
    return Vectors(
        model=entry.name,
        kind="textual",
        network=Network(
            "textual",
            network,
            (context,),
            torch.int64,
            # A short and a long one, so that there is padding to mask.
            example=torch.from_numpy(inputs[[0, -2]]),
            free=((0, LENGTHS[0], context),) if cuts else (),
        ),
        inputs=torch.from_numpy(inputs),
        cuts=cuts,
        preparation=f"{entry}; {architecture}",
        untrained=_is_untrained(entry, config),
        device=device,
    )


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


def _place(subject: Vectors, config: Config, remark: str = "") -> tuple[Choice, Info]:
    choice = choose(subject, config)
    info = info_of(subject, choice, remark)
    if info.untrained:
        log.warning(
            "UNTRAINED: %s (%s) has random weights, its answers mean nothing%s. Unset MACHINE_LEARNING_UNTRAINED "
            "to serve real ones.",
            info.name,
            info.kind,
            f"; {remark}" if remark else "",
        )
    return choice, info


def _cut_to(longest: int) -> int | None:
    """Return the length to cut a batch of texts to, None for none, where `longest` ids count."""
    return next((length for length in LENGTHS if longest <= length), None)


def _length_of(entry: Clip) -> Callable[[Ids], int] | None:
    """Return how to find the number of ids of a text that count, None where all do."""
    if entry.text_tower == "causal":
        return lambda ids: int(ids.argmax()) + 1  # the end token has the highest id
    if entry.text_tower == "masked":
        pad_id = int(towers.text_config(entry)["pad_token_id"])
        return lambda ids: int(np.flatnonzero(ids != pad_id)[-1]) + 1
    return None
