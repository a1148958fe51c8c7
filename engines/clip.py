"""The two sides of a CLIP model as the server sees them: one input prepared, a batch run.

Knows how to put a tower, its weights, an engine and the preparation together. Deliberately knows no queues and no HTTP.
"""

import hashlib
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import resources
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load as read_safetensors
from torch import Tensor

from engines import (
    calibration,
    card,
    catalog,
    checkpoints,
    own,
    preprocess,
    samples,
    sources,
    tokenizer,
    towers,
    untrained,
    weights,
)
from engines.catalog import Clip, ResizeMode
from engines.choice import choose
from engines.engine import Choice, Network, host_of
from engines.fitting import Fitting
from engines.images import Header, Pixels
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
    """The picture side; items are uint8 (S, S, 3), results float32 (dim,) of unit length.

    With a card an item may also be a JPEG as it came, uint8 (bytes,); its result is None where the card cannot read it.
    """

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
        self._card: card.Card | None = None

    def decode_on(self, gpu: card.Card) -> None:
        """Let `gpu` decode JPEGs from now on, if the vectors stay what they are; else say in the log why not."""
        self._card = gpu
        if (reason := card.refusal(self.prepare, self._in_batches)) is not None:
            log.warning("%s: pictures are decoded by the processor, since %s", self.info.name, reason)
            self._card = None

    def takes_jpeg(self, header: Header, data: bytes) -> bool:
        """Whether the picture of `header` and `data` may be an item as it is."""
        return self._card is not None and self._card.takes(header, data)

    def prepare(self, picture: Pixels) -> Pixels:
        """Return the square of a picture (H, W, 3) RGB that the network sees, (S, S, 3)."""
        return preprocess.prepare(picture, self._size, self._mode, self._floor_offset)

    def collate(self, items: Sequence[NDArray[np.uint8]]) -> Upload:
        """Send at most `buckets[-1]` items to the device as (B, S, S, 3)."""
        jpegs = frozenset(row for row, item in enumerate(items) if item.ndim == 1)
        if not jpegs:
            return self._transfer.upload(items)
        if self._card is not None:
            return self._card.upload(items)
        # The model that let them in was replaced by this one while they waited.
        blank = np.zeros((self._size, self._size, 3), np.uint8)
        squares = [blank if row in jpegs else item for row, item in enumerate(items)]
        return replace(self._transfer.upload(squares), unread=jpegs)

    def run(self, batch: Upload) -> list[Any]:
        """Return one vector per picture of a batch, None for a JPEG that could not be read."""
        vectors = self._transfer.run(self._engine, batch)
        return [None if row in batch.unread else vector for row, vector in enumerate(vectors)]

    def _in_batches(self, items: Sequence[NDArray[np.uint8]]) -> list[Any]:
        most = self.buckets[-1]
        return [vector for i in range(0, len(items), most) for vector in self.run(self.collate(items[i : i + most]))]


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
    visual = Visual(choice, info, entry.image_size, mode, floor_offset=crop, enough_pixels=enough)
    if config.decode == "cuda":
        if (reason := card.unavailable(device, config.device_ids)) is None:
            visual.decode_on(card.Card(device, visual.buckets, entry.image_size, mode, floor_offset=crop))
        else:
            log.warning("%s: MACHINE_LEARNING_DECODE=cuda has no effect: %s", entry.name, reason)
    return visual


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
    if entry.module:
        return own.subject_of("visual", entry, device)

    def network() -> Tower:
        tower = _build(entry, "visual", towers.visual, config)
        if _is_untrained(entry, config):
            untrained.spread(tower, torch.from_numpy(untrained.pictures(entry.image_size)))
        return tower

    inputs = _squares([np.array(image) for image in samples.pictures()], entry)
    mean, std = towers.mean_and_std(entry)
    return Vectors(
        model=entry.name,
        kind="visual",
        network=Network("visual", network, tuple(inputs.shape[1:]), torch.uint8, example=inputs[:2]),
        inputs=inputs,
        cuts=(),
        preparation=f"{entry}; {towers.architecture(entry)}; mean {mean}, standard deviation {std}",
        untrained=_is_untrained(entry, config),
        weights=_weights(entry, "visual", config),
        device=device,
        calibrate=lambda: list(_squares(calibration.pictures(config.calibration), entry)),
    )


def textual_subject(entry: Clip, config: Config, device: torch.device, tokenize: Tokenizer) -> Vectors:
    """Return the text tower with its weights as it is compiled and examined, at every length that it is run with.

    Raises WeightsMissing, WeightsBroken.
    """
    if entry.module:
        return own.subject_of("textual", entry, device)

    def network() -> Tower:
        tower = _build(entry, "textual", towers.textual, config)
        if _is_untrained(entry, config):
            examples = np.stack([tokenize(text, None) for text in untrained.TEXTS])
            untrained.spread(tower, torch.from_numpy(examples))
        return tower

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
        weights=_weights(entry, "textual", config),
        device=device,
        calibrate=lambda: [
            torch.from_numpy(ids if length_of is None else ids[: _cut_to(length_of(ids))])
            for ids in (tokenize(text, None) for text in calibration.texts(config.calibration_texts))
        ],
    )


def _squares(pictures: Sequence[Pixels], entry: Clip) -> Tensor:
    """Return pictures (H, W, 3) as the network takes them, (N, S, S, 3)."""
    return torch.from_numpy(np.stack([preprocess.prepare(one, entry.image_size, entry.resize) for one in pictures]))


def _build(entry: Clip, kind: Literal["visual", "textual"], build: Callable[[Clip], Tower], config: Config) -> Tower:
    if _is_untrained(entry, config):
        with untrained.seeded():
            return build(entry)
    state = _demo_state() if entry.name == catalog.DEMO else weights.clip_state(entry, kind, config.cache_folder)
    with checkpoints.to_be_loaded():
        network = build(entry)
    checkpoints.load(network, state, entry.name)
    return network


def _weights(entry: Clip, kind: Literal["visual", "textual"], config: Config) -> str:
    """Return what the weights of a tower are made from; raises WeightsMissing, WeightsBroken."""
    if _is_untrained(entry, config):
        return f"untrained, from seed {untrained.SEED}"
    if entry.name == catalog.DEMO:
        return hashlib.sha256(_demo_file()).hexdigest()
    of = sources.visual if kind == "visual" else sources.textual
    return weights.digest(of(entry, config.cache_folder))


def _is_untrained(entry: Clip, config: Config) -> bool:
    return config.untrained and entry.name != catalog.DEMO


def _demo_state() -> dict[str, Tensor]:
    state: dict[str, Tensor] = read_safetensors(_demo_file())
    return state


def _demo_file() -> bytes:
    return resources.files("engines").joinpath("data/demo/clip.safetensors").read_bytes()


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
