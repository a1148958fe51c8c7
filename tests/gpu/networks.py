"""The networks that are tried on a GPU, with what eager float32 says on the processor: the truth of all these tests."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from engines import catalog, faces, preprocess, samples, tokenizer, towers, untrained
from engines.engine import Engine, Network, given, powers_of_two
from engines.fitting import Fitting
from engines.model import Config
from engines.transfer import Transfer

BUCKETS = powers_of_two(32)
ENTRY = catalog.clip("ViT-B-32__openai")
SHORT = 16  # ids: the length to which a batch of short texts is cut


@dataclass(frozen=True)
class Sample:
    """Inputs of one shape, (N, …), and what eager float32 says to them on the processor, (N, dim)."""

    inputs: Tensor
    expected: Tensor


@dataclass(frozen=True)
class Case:
    """A network and samples of all the shapes that it is run with."""

    network: Network
    samples: tuple[Sample, ...]


@cache
def picture_tower() -> Case:
    """Return the untrained picture side of ViT-B-32."""
    with untrained.seeded():
        tower = towers.visual(ENTRY)
    untrained.spread(tower, torch.from_numpy(untrained.pictures(ENTRY.image_size)))
    shown = [preprocess.prepare(np.array(image), ENTRY.image_size, ENTRY.resize) for image in samples.pictures()]
    return _case("visual", tower, [torch.from_numpy(np.stack(shown))])


@cache
def text_tower() -> Case:
    """Return the untrained text side of ViT-B-32, for texts in full and cut short."""
    tokenize, _ = tokenizer.load(ENTRY, Config(cache_folder=Path(), untrained=True))
    ids = torch.from_numpy(np.stack([tokenize(text, None) for text in samples.TEXTS]))
    with untrained.seeded():
        tower = towers.textual(ENTRY)
    untrained.spread(tower, ids)
    short = ids[ids.argmax(dim=1) < SHORT, :SHORT]  # the end token has the highest id
    return _case("textual", tower, [ids, short], free=((0, SHORT, ids.shape[1]),))


@cache
def recogniser() -> Case:
    """Return the untrained InceptionResnetV1."""
    network = faces.Embedder(faces.build(faces.untrained_state() | faces.untrained_statistics()))
    return _case("recognition", network, [torch.from_numpy(samples.faces(faces.CROP_SIZE))])


CASES: dict[str, Callable[[], Case]] = {
    "visual": picture_tower,
    "textual": text_tower,
    "recognition": recogniser,
}


def through(engine: Engine, buckets: Sequence[int] = BUCKETS) -> Callable[[Tensor], Tensor]:
    """Return `engine` as the server calls it: sent over the bus, cut to what fits, fetched."""
    transfer, fitting = Transfer(engine.device, buckets), Fitting(engine, buckets)
    return lambda rows: torch.from_numpy(transfer.run(fitting, transfer.upload(list(rows.numpy()))))


def _case(name: str, module: nn.Module, inputs: Sequence[Tensor], free: tuple[tuple[int, int, int], ...] = ()) -> Case:
    module = module.eval().requires_grad_(False)
    network = Network(
        name, given(module), tuple(inputs[0].shape[1:]), inputs[0].dtype, example=inputs[0][:2], free=free
    )
    with torch.inference_mode():
        known = [Sample(rows, torch.cat([module(row[None]) for row in rows])) for rows in inputs]
    return Case(network, tuple(known))
