"""Trains the demo CLIP: a small model that knows shapes, colours, counts, positions and a few photos.

It is what the service shows, and what the tests measure, where no published weights are. The pictures are generated
(scripts.scenes) or come with scikit-image; nothing is downloaded. One seed gives the same file on the same machine.
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.model import CLIP
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from engines import bpe
from engines.preprocess import prepare
from scripts import bundled_photos, scenes

FOLDER = Path(__file__).parents[1] / "engines" / "data" / "demo"
STEPS = 1800
BATCH = 64
FAMILY = 4
PHOTO_SHARE = 0.25  # of families and photos together: one picture in thirteen is a photo
LEARNING_RATE = 5e-4
WEIGHT_DECAY = 0.05
NAMING_WEIGHT = 0.5
HELD_OUT_SEED = 1_000_003
CHOICES = 50

# What there is to tell of a scene: the options of each trait.
THING = (scenes.SHAPES, tuple(scenes.COLOURS))
PLACE = (tuple(scenes.SIZES), tuple(scenes.POSITIONS))
GROUND = (scenes.GROUNDS, tuple(scenes.GROUND_COLOURS))
TRAITS: tuple[tuple[str | int, ...], ...] = (
    *(*THING, *THING, tuple(scenes.OPPOSITES), tuple(scenes.NUMBERS), *PLACE, *GROUND),
)
ABSENT = -100


@dataclass(frozen=True, slots=True)
class Batch:
    """Pictures (B, H, W, 3) uint8, token ids (B, context) int64, and what each shows.

    Rows with the same number in `group`, (B,) int64, show the same and may be taken for each other. `traits`, (B, 10)
    int64, is the place of each of a scene's traits in TRAITS, or ABSENT.
    """

    pixels: Tensor
    ids: Tensor
    group: Tensor
    traits: Tensor


def normalised(batch: Tensor) -> Tensor:
    """Scale pixels (B, H, W, 3) uint8 to what the network takes: (B, 3, H, W) float32."""
    scaled = (batch.float() / 255 - torch.tensor(OPENAI_DATASET_MEAN)) / torch.tensor(OPENAI_DATASET_STD)
    return scaled.permute(0, 3, 1, 2).contiguous()


def tokens(texts: Sequence[str], config: dict[str, Any]) -> Tensor:
    """Return the token ids of `texts`, (B, context) int64."""
    text = config["text_cfg"]
    ids = [bpe.encode(one, text["context_length"], text["vocab_size"]) for one in texts]
    return torch.from_numpy(np.stack(ids))


def draw_batch(seed: int, index: int, rows: int, config: dict[str, Any]) -> Batch:
    """Return batch number `index` of a training, which depends on the seed and the index alone.

    Scenes come in families of four siblings, so that every detail must be learned and not the colours alone.
    """
    rng = np.random.default_rng((seed, index))
    size = config["vision_cfg"]["image_size"]
    shown: list[scenes.Scene | str] = []
    while len(shown) < rows:
        if rng.random() < PHOTO_SHARE:
            shown.append(str(rng.choice(list(bundled_photos.CAPTIONS))))
        else:
            first = scenes.scene(rng)
            shown.extend([first, *(scenes.sibling(first, rng) for _ in range(FAMILY - 1))])
    pictures, captions = [], []
    for subject in shown[:rows]:
        if isinstance(subject, str):
            pictures.append(bundled_photos.augmented(subject, rng, size))
            captions.append(str(rng.choice(bundled_photos.CAPTIONS[subject])))
        else:
            pictures.append(drawn(subject, rng, size))
            captions.append(scenes.caption(subject, rng))
    numbers: dict[scenes.Scene | str, int] = {}
    groups = [numbers.setdefault(subject, len(numbers)) for subject in shown[:rows]]
    return Batch(
        pixels=torch.from_numpy(np.stack(pictures)),
        ids=tokens(captions, config),
        group=torch.tensor(groups),
        traits=torch.tensor([traits(subject) for subject in shown[:rows]]),
    )


def traits(subject: scenes.Scene | str) -> list[int]:
    """Return the place of each trait of a scene in TRAITS; all are ABSENT from a photo."""
    if isinstance(subject, str):
        return [ABSENT] * len(TRAITS)
    shape, colour = subject.other or (None, None)
    found = (
        *(subject.shape, subject.colour, shape, colour, subject.relation, subject.count),
        *(subject.size, subject.position, subject.ground, subject.ground_colour),
    )
    return [ABSENT if one is None else options.index(one) for one, options in zip(found, TRAITS, strict=True)]


def drawn(scene: scenes.Scene, rng: Generator, size: int) -> NDArray[np.uint8]:
    """Return `scene` as (size, size, 3) uint8, drawn larger and resized so that its edges are smooth."""
    return prepare(np.array(scenes.draw(scene, rng, size * 3 // 2)), size, "shortest")


def encode_text(network: CLIP, ids: Tensor) -> Tensor:
    """Return text embeddings (B, D) float32, not normalised; computes no more of the context than is used.

    Equal to the network's own `encode_text`: attention is causal, so nothing after the end token reaches it.
    """
    ends = ids.argmax(1)  # the end token has the highest id
    length = int(ends.max()) + 1
    x = network.token_embedding(ids[:, :length]) + network.positional_embedding[:length]
    x = network.transformer(x, attn_mask=network.attn_mask[:length, :length])
    features: Tensor = network.ln_final(x)[torch.arange(len(x)), ends] @ network.text_projection
    return features


def embed(network: CLIP, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the embeddings, of unit length, of pictures (B, H, W, 3) uint8 and texts (C, context) int64."""
    pictures = functional.normalize(network.encode_image(normalised(pixels)), dim=1)
    return pictures, functional.normalize(encode_text(network, ids), dim=1)


def contrastive(images: Tensor, texts: Tensor, scale: Tensor, group: Tensor) -> Tensor:
    """Return the symmetric loss of CLIP (arXiv 2103.00020, figure 3); rows of a group share the probability.

    `images` and `texts` (B, D) have unit length, `group` is (B,).
    """
    logits = scale * images @ texts.T
    same = (group[:, None] == group[None, :]).float()
    target = same / same.sum(1, keepdim=True)
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2


def naming(features: Tensor, names: nn.Linear, traits: Tensor) -> Tensor:
    """Return how badly one linear layer, the same for pictures and texts, reads the traits off `features` (B, D)."""
    # Unit vectors times the root of their length have the scale that the layer is initialised for.
    read = names(features * features.shape[1] ** 0.5).split([len(options) for options in TRAITS], dim=1)
    losses = [
        functional.cross_entropy(logits, wanted, ignore_index=ABSENT, reduction="sum")
        for logits, wanted in zip(read, traits.T, strict=True)
    ]
    return torch.stack(losses).sum() / len(features)


def waves(side: int, width: int) -> Tensor:
    """Return sines and cosines of the places on a grid, (side * side, width) float32, to start positions with.

    A quarter of the width each for the sine and cosine of column and row, periods from four sides to an eighth of one.
    Starting from noise, as the network is built, it takes longer until positions are used at all.
    """
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    frequencies = math.pi / (2 * side) * 2 ** torch.linspace(0, 5, width // 4)
    angles = [place.reshape(-1, 1) * frequencies for place in (column, row)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)


def train(network: CLIP, seed: int, steps: int, rows: int, config: dict[str, Any]) -> None:
    """Train `network` in place on batches of `rows` pairs: AdamW, a short warm-up, then a cosine down to nothing.

    Contrast alone finds the colours, which tell most pictures apart, and then learns little more in this time. So a
    layer that is thrown away afterwards must also name every trait, from the picture and from the text alike.
    """
    names = nn.Linear(network.text_projection.shape[1], sum(map(len, TRAITS)))
    decayed: list[Tensor] = []
    others: list[Tensor] = []
    for name, parameter in [*network.named_parameters(), *names.named_parameters()]:
        # Biases, norms, positions and the embeddings of tokens that never come are left as they are.
        (decayed if parameter.ndim == 2 and "embedding" not in name else others).append(parameter)
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}],
        lr=LEARNING_RATE,
        betas=(0.9, 0.98),
    )
    warm_up = max(1, steps // 20)

    def rate(step: int) -> float:
        return min((step + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * step / steps))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
    network.train()
    for index in (progress := tqdm(range(steps), unit="step")):
        batch = draw_batch(seed, index, rows, config)
        optimiser.zero_grad()
        images, texts = embed(network, batch.pixels, batch.ids)
        value = contrastive(images, texts, network.logit_scale.exp(), batch.group)
        value = value + NAMING_WEIGHT * (naming(images, names, batch.traits) + naming(texts, names, batch.traits))
        torch.autograd.backward(value)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            network.logit_scale.clamp_(max=math.log(100))  # the bound of arXiv 2103.00020, section 2.5
        progress.set_postfix(loss=f"{value.item():.3f}")
    network.eval()


def held_out(config: dict[str, Any], rounds: int) -> tuple[Tensor, Tensor]:
    """Return scenes from a seed that no training uses, 50 per round, all different within a round.

    Pixels (50 rounds, H, W, 3) uint8 and the ids of their complete captions (50 rounds, context) int64.
    """
    rng = np.random.default_rng(HELD_OUT_SEED)
    shown: list[scenes.Scene] = []
    for _ in range(rounds):
        different: dict[scenes.Scene, None] = {}
        while len(different) < CHOICES:
            different[scenes.scene(rng)] = None
        shown.extend(different)
    pictures = [drawn(scene, rng, config["vision_cfg"]["image_size"]) for scene in shown]
    return torch.from_numpy(np.stack(pictures)), tokens([scenes.caption(scene) for scene in shown], config)


@torch.inference_mode()
def accuracy(network: CLIP, pixels: Tensor, ids: Tensor) -> float:
    """Return the share of pictures whose own caption is first among those of their round of 50."""
    right = 0
    for first in range(0, len(pixels), CHOICES):
        images, texts = embed(network, pixels[first : first + CHOICES], ids[first : first + CHOICES])
        right += int(((images @ texts.T).argmax(1) == torch.arange(CHOICES)).sum())
    return right / len(pixels)


def save(network: CLIP, path: Path) -> None:
    """Write the parameters as float16 safetensors; a reader sees the whole file or the one before it."""
    tensors = {name: tensor.detach().half().contiguous() for name, tensor in network.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        written = Path(folder, path.name)
        # Not save_file: it makes files that no one but their owner may read, and this one is to be shipped.
        written.write_bytes(serialise(tensors, metadata={"format": "pt"}))
        written.replace(path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, write the weights, and print what they can do, as the last line in JSON."""
    parser = argparse.ArgumentParser(prog="python -m scripts.train_demo", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the pictures")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"batches; {STEPS} take under 15 minutes on two cores")
    parser.add_argument("--batch", type=int, default=BATCH, help="pictures with captions per step")
    parser.add_argument("--rounds", type=int, default=20, help=f"of {CHOICES} held-out scenes at the end")
    parser.add_argument("--config", type=Path, default=FOLDER / "clip.json", help="the architecture, as open_clip's")
    parser.add_argument("--out", type=Path, default=FOLDER / "clip.safetensors")
    asked = parser.parse_args(arguments)
    started = time.monotonic()
    config = json.loads(asked.config.read_text())
    torch.manual_seed(asked.seed)
    network = CLIP(**config)
    positions = network.visual.positional_embedding
    with torch.no_grad():
        positions[1:] = waves(network.visual.grid_size[0], positions.shape[1])  # all but the class token's
    train(network, asked.seed, asked.steps, asked.batch, config)
    save(network, asked.out)
    network.load_state_dict(load_file(asked.out))  # what is measured is what was written, rounded to float16
    result = {
        "seed": asked.seed,
        "steps": asked.steps,
        "seconds": round(time.monotonic() - started),
        "held_out_accuracy": round(accuracy(network, *held_out(config, asked.rounds)), 4),
        "bytes": asked.out.stat().st_size,
    }
    print(f"The right caption among {CHOICES} is first for {result['held_out_accuracy']:.1%} of the held-out scenes.")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
