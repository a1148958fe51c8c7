"""Faces: detect them, cut them out, recognise them.

Knows Pillow's way to cut a face out, which is the one of facenet-pytorch's README, the recogniser's network and the
untrained stand-in for it. Deliberately knows neither how the detector works (mtcnn.py) nor where weights come from
(weights.py), nor anything of requests.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from textwrap import shorten

import numpy as np
import safetensors.torch
import torch
from facenet_pytorch.models.inception_resnet_v1 import InceptionResnetV1
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from engines import mtcnn, weights
from engines.catalog import DEMO, Face
from engines.engine import Choice, choose, pick_device, run_padded
from engines.errors import WeightsBroken
from engines.model import Config, Info

log = logging.getLogger(__name__)

CROP_SIZE = 160  # side of the recogniser's input in pixels
PICTURES_AT_ONCE = 8  # more do not run faster on a CPU, and the tables of eight large photos fill a gigabyte
UNTRAINED_SEED = 20160411
STATISTICS = "data/demo/facenet_batchnorm.safetensors"


@dataclass(frozen=True, slots=True)
class Picture:
    """What the detector takes: pixels (H, W, 3) uint8 RGB, and the score that a face must exceed."""

    pixels: NDArray[np.uint8]
    min_score: float

    @property
    def weight(self) -> int:
        """What the picture costs beside others, in pixels."""
        return self.pixels.size // 3


@dataclass(frozen=True, slots=True)
class Faces:
    """The faces of one picture, highest score first.

    `boxes` (N, 4) float32 are x1, y1, x2, y2 in pixels of the picture; they may reach past its edge, and at least one
    whole pixel of each lies inside. `scores` (N,) float32 are O-Net's probabilities.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]


class Detector:
    """Finds the faces in pictures of any sizes."""

    def __init__(self, nets: mtcnn.Nets, min_face: int) -> None:
        self.info = Info(
            name="mtcnn",
            kind="detection",
            device=str(nets.device),
            backend="eager",
            precision="float32",
            reason="three small networks over pictures of all sizes",
            untrained=False,
            bytes=sum(_bytes(net) for net in (nets.proposal, nets.refine, nets.output)),
        )
        self.buckets = tuple(range(1, PICTURES_AT_ONCE + 1))
        self._nets = nets
        self._min_face = min_face

    def prepare(self, image: Image.Image, min_score: float) -> Picture:
        """Return an RGB image as the item of a batch; `min_score` is between 0 and 1."""
        return Picture(np.array(image), min_score)  # a copy: the arrays that Pillow lends are read-only

    def collate(self, items: Sequence[Picture]) -> tuple[Picture, ...]:
        """Return the pictures side by side: their sizes differ, so there is nothing to stack."""
        return tuple(items)

    def run(self, batch: Sequence[Picture]) -> list[Faces]:
        """Return the faces of each picture."""
        found = mtcnn.detect(self._nets, [p.pixels for p in batch], [p.min_score for p in batch], self._min_face)
        faces = []
        for picture, (boxes, scores) in zip(batch, found, strict=True):
            height, width = picture.pixels.shape[:2]
            x1, y1, x2, y2 = _whole_pixels(boxes, width, height).T
            # O-Net may move a box at the border until nothing of it can be cut out; box and score go together.
            keep = (x2 > x1) & (y2 > y1)
            faces.append(Faces(boxes[keep], scores[keep]))
        return faces


class Recogniser:
    """Turns cut-out faces into unit vectors that lie near each other for one person."""

    def __init__(self, info: Info, choice: Choice) -> None:
        self.info = info
        self.buckets = choice.buckets
        self._choice = choice

    def crops(self, image: Image.Image, boxes: NDArray[np.float32]) -> list[NDArray[np.uint8]]:
        """Return each box (N, 4) of an RGB image as an item (160, 160, 3) of a batch.

        Boxes are cut to whole pixels and to the image and scaled by Pillow's bilinear filter: extract_face of
        facenet-pytorch for a Pillow image and margin 0. The detector's boxes all hold a pixel; raises ValueError for
        one that holds none.
        """
        crops = []
        for x1, y1, x2, y2 in _whole_pixels(boxes, image.width, image.height).tolist():
            if x2 <= x1 or y2 <= y1:
                raise ValueError(f"the box ({x1}, {y1}, {x2}, {y2}) holds no whole pixel: drop it before cutting")
            crop = image.crop((x1, y1, x2, y2)).resize((CROP_SIZE, CROP_SIZE), Image.Resampling.BILINEAR)
            crops.append(np.array(crop))
        return crops

    def collate(self, items: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """Return crops (160, 160, 3) as one batch (B, 160, 160, 3)."""
        return np.stack(items)

    def run(self, batch: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Return the embeddings, (512,) float32 of length 1, of a batch (B, 160, 160, 3)."""
        return list(run_padded(self._choice, torch.from_numpy(batch)).cpu().numpy())


class Embedder(nn.Module):
    """InceptionResnetV1 with its preprocessing: crops (B, 160, 160, 3) uint8 in, unit vectors (B, 512) float32 out."""

    def __init__(self, network: InceptionResnetV1) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)

    def forward(self, crops: Tensor) -> Tensor:
        # facenet-pytorch's fixed_image_standardization; its network ends with the normalisation.
        embeddings: Tensor = self.network((crops.permute(0, 3, 1, 2).float() - 127.5) / 128)
        return embeddings


def load_detector(config: Config) -> Detector:
    """Return the detector on the device that `config` names, with the weights that facenet-pytorch ships."""
    return Detector(mtcnn.load_nets(pick_device(config.device_ids)), config.min_face)


def load_recogniser(entry: Face, config: Config) -> Recogniser:
    """Return the recogniser `entry`, untrained for the demo and wherever `config` says so.

    Raises WeightsMissing, WeightsBroken.
    """
    untrained = entry.name == DEMO or config.untrained
    if untrained:
        log.warning("%s is untrained: its embeddings show that all works, but do not tell people apart", entry.name)
        state = untrained_state() | untrained_statistics()
    else:
        state = weights.face_state(entry, config.cache_folder)
    try:
        network = build(state)
    except RuntimeError as error:
        raise WeightsBroken(
            f"The weights of {entry.name} do not fit InceptionResnetV1: remove their file from {config.cache_folder} "
            f"to have it fetched anew. {shorten(str(error), 300)}"
        ) from error
    device = pick_device(config.device_ids)
    choice = choose(Embedder(network), device)
    info = Info(
        name=entry.name,
        kind="recognition",
        device=str(device),
        backend=choice.engine.backend,
        precision=choice.engine.precision,
        reason=choice.reason,
        untrained=untrained,
        bytes=_bytes(network),
    )
    return Recogniser(info, choice)


def build(state: Mapping[str, Tensor]) -> InceptionResnetV1:
    """Return InceptionResnetV1 with `state`, without the classifier; raises RuntimeError if keys or shapes differ."""
    network = _empty().to_empty(device="cpu")
    network.load_state_dict(dict(state))
    return network.eval()


def untrained_state() -> dict[str, Tensor]:
    """Return seeded weights, with neutral batch-norm statistics: the network is degenerate without others.

    Drawn by NumPy's RandomState, whose stream is frozen: the shipped statistics fit these weights and no others,
    whatever the version of torch. Weights are uniform with variance 2 / fan-in, after He et al., Delving Deep into
    Rectifiers (2015).
    """
    rng = np.random.RandomState(UNTRAINED_SEED)
    state = {}
    for key, tensor in _empty().state_dict().items():
        shape = tuple(tensor.shape)
        if tensor.ndim > 1:
            bound = (6 / tensor[0].numel()) ** 0.5
            state[key] = torch.from_numpy(rng.uniform(-bound, bound, shape).astype(np.float32))
        else:
            state[key] = torch.full(shape, key.endswith(("bn.weight", "running_var")), dtype=tensor.dtype)
    return state


def untrained_statistics() -> dict[str, Tensor]:
    """Return the batch-norm statistics for `untrained_state`, with which different faces spread.

    Made by scripts/calibrate_facenet.py and shipped, since pictures of faces are no part of a running server.
    """
    return safetensors.torch.load(resources.files("engines").joinpath(STATISTICS).read_bytes())


def _empty() -> InceptionResnetV1:
    # On the meta device nothing is drawn, so neither time nor torch's random state is spent on weights not wanted.
    with torch.device("meta"):
        return InceptionResnetV1()


def _whole_pixels(boxes: NDArray[np.float32], width: int, height: int) -> NDArray[np.int64]:
    """Return `boxes` (N, 4) cut to the picture and to whole pixels, the right and lower ends exclusive."""
    whole = np.concatenate([np.maximum(boxes[:, :2], 0), np.minimum(boxes[:, 2:], (width, height))], axis=1)
    return whole.astype(np.int64)  # toward zero


def _bytes(network: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in network.state_dict().values())
