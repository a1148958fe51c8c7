"""Networks without weights, for load tests: random numbers from a fixed seed that still tell inputs apart.

Straight from their initialisers the towers answer nearly the same to everything (cosine 0.7 to 0.999 between different
pictures), and then no comparison of outputs means anything. Here statistics of batch norms are measured, and the mean
answer to a few generated inputs is subtracted before the norm. What remains similar is what any network of this kind
finds similar: pictures of white noise, texts that share most of their words. Deliberately knows no published weights.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from engines.towers import PictureTower, TextTower, Tower

SEED = 20240917
# Residual branches of a ResNet start at zero (open_clip zeroes the last batch norm of each): nothing of the picture
# passes them. At 1 they amplify rounding errors from block to block; at this value bfloat16 errs by 2 % of the spread.
_RESNET_BRANCH = 0.2
# The texts of a SigLIP are mostly padding, and its untrained attention looks at all tokens alike. With sharper
# attention and stronger branches the words show (bfloat16 errs by 3 % of the spread, where it would by 14 %).
_SHARPER_ATTENTION = 2.0
_STRONGER_BRANCH = 6.0

# Generated searches of several lengths; what they say does not matter.
TEXTS = (
    "snow",
    "red car",
    "a dog on a beach",
    "two people at a long table",
    "mountains and a lake at sunset",
    "children playing football in the park in summer",
    "a screenshot of a chat with my brother about the train to the coast",
    "an old black and white photo of a wedding with many guests in front of a small church",
)


@contextmanager
def seeded() -> Iterator[None]:
    """Build a network in this context from a fixed seed; torch's own random state is as before afterwards."""
    state = torch.get_rng_state()
    generator: torch.Generator = torch.default_generator  # of the CPU alone: those of GPUs are not touched
    generator.manual_seed(SEED)
    try:
        yield
    finally:
        torch.set_rng_state(state)


@torch.no_grad()
def spread(network: Tower, inputs: Tensor) -> None:
    """Change a network straight from its initialisers so that different inputs get different answers.

    `inputs` are a few examples as the network takes them; it is run on them once or twice.
    """
    if isinstance(network, PictureTower):
        _measure_batch_norms(network, inputs)
    if isinstance(network, TextTower) and not network.causal:
        _sharpen(network.tower)
    network.centre = network.raw(inputs).float().mean(dim=0)


def pictures(size: int) -> NDArray[np.uint8]:
    """Return example pictures, (6, size, size, 3) uint8: coloured blobs, blobs with fine grain, and white noise.

    Those of blobs come with their negatives, so that so few of them do not favour a colour.
    """
    random = np.random.default_rng(SEED)
    coarse = ((1, 60), (3, 60), (9, 40))  # cells per side, contrast in levels
    shown = [_blobs(size, scales, random) for scales in (coarse, (*coarse, (size // 4, 20), (size, 15)))]
    noise = random.integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    return np.stack([picture for blobs in shown for picture in (blobs, 255 - blobs)] + list(noise))


def _blobs(size: int, scales: Iterable[tuple[int, float]], random: np.random.Generator) -> NDArray[np.uint8]:
    picture = np.full((size, size, 3), 128.0)
    for cells, contrast in scales:
        for channel in range(3):
            grid = Image.fromarray(random.normal(0, contrast, (cells, cells)).astype(np.float32))
            picture[..., channel] += np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC))
    levels: NDArray[np.uint8] = np.clip(picture, 0, 255).astype(np.uint8)
    return levels


def _measure_batch_norms(network: PictureTower, inputs: Tensor) -> None:
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        return
    for name, module in network.named_modules():
        if name.endswith("bn3") and isinstance(module, nn.BatchNorm2d):
            module.weight.fill_(_RESNET_BRANCH)
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all that it sees
    network.train()
    network.raw(inputs)
    network.eval()


def _sharpen(tower: nn.Module) -> None:
    for name, parameter in tower.named_parameters():
        if name.endswith("attn.in_proj_weight"):
            width = parameter.shape[1]
            parameter[: 2 * width].mul_(_SHARPER_ATTENTION)  # queries and keys
        elif name.endswith(("attn.out_proj.weight", "mlp.c_proj.weight")):
            parameter.mul_(_STRONGER_BRANCH)
