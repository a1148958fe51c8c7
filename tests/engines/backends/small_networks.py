"""Small real networks with real inputs, as all backends take them: a picture tower, a text tower, P-Net."""

import torch
from torch import Tensor, nn

from engines import catalog, mtcnn, towers, untrained
from engines.engine import Precision, Spec

CPU = torch.device("cpu")
Free = tuple[tuple[int, int, int], ...]
Sample = tuple[nn.Module, Tensor, Free]


def spec_of(example: Tensor, precision: Precision, largest: int = 8, free: Free = ()) -> Spec:
    return Spec(
        network="network",
        item=tuple(example.shape[1:]),
        dtype=example.dtype,
        free=free,
        example=example,
        precision=precision,
        buckets=tuple(1 << i for i in range(largest.bit_length())),
        device=CPU,
    )


def picture_tower() -> Sample:
    with untrained.seeded():
        tower = towers.visual(catalog.clip("demo"))
    return tower.requires_grad_(False), torch.from_numpy(untrained.pictures(96))[:8], ()


def text_tower() -> Sample:
    with untrained.seeded():
        tower = towers.textual(catalog.clip("demo"))
    ids = torch.randint(1, 4000, (8, 77), generator=torch.Generator().manual_seed(1))
    ids[:, 12] = 4095  # the highest id ends a text
    return tower.requires_grad_(False), ids, ((0, 13, 77),)


def proposal_stage() -> Sample:
    levels = torch.rand(8, 3, 40, 60, generator=torch.Generator().manual_seed(1)) * 255
    return mtcnn.load_stages()[0], levels, ((1, 12, 40), (2, 12, 60))


def smaller(batch: Tensor, free: Free) -> Tensor:
    for dimension, low, high in free:
        batch = batch.narrow(dimension + 1, 0, (low + high) // 2)
    return batch
