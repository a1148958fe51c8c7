"""Faces: detect them, cut them out, recognise them.

Knows Pillow's way to cut a face out, which is the one of facenet-pytorch's README, the recogniser's network and the
untrained stand-in for it. Deliberately knows neither how the detector works (mtcnn.py) nor where weights come from
(weights.py), nor anything of requests.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
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
from torch.nn import functional

from engines import calibration, memory, mtcnn, samples, sources, weights
from engines.catalog import DEMO, Face
from engines.choice import choose
from engines.engine import Choice, Network, host_of
from engines.errors import OutOfMemory, WeightsBroken
from engines.fitting import Fitting, is_out_of_memory
from engines.model import Config, Info
from engines.subject import PICTURES_AT_ONCE, Stages, Vectors, detector_nets, info_of
from engines.transfer import Transfer, Upload

log = logging.getLogger(__name__)

CROP_SIZE = 160  # side of the recogniser's input in pixels
UNTRAINED_SEED = 20160411
UNTRAINED_BIAS = 0.5
STATISTICS = "data/demo/facenet_batchnorm.safetensors"
_EMBEDDING = 512


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

    def __init__(self, nets: mtcnn.Nets, info: Info, min_face: int) -> None:
        self.info = info
        self.buckets = tuple(range(1, PICTURES_AT_ONCE + 1))  # they stay apart, so that each number is fine
        self._nets = nets
        self.min_face = min_face

    def prepare(self, picture: NDArray[np.uint8], min_score: float) -> Picture:
        """Return a picture (H, W, 3) RGB as the item of a batch; `min_score` is between 0 and 1."""
        return Picture(picture, min_score)

    def collate(self, items: Sequence[Picture]) -> tuple[Picture, ...]:
        """Return the pictures side by side: their sizes differ, so there is nothing to stack."""
        return tuple(items)

    def run(self, batch: Sequence[Picture]) -> list[Faces]:
        """Return the faces of each picture; raises OutOfMemory if the device has no memory for all of them at once."""
        found = self._attempt(batch)
        if found is None:
            memory.release()
            largest = max(batch, key=lambda picture: picture.weight)
            height, width = largest.pixels.shape[:2]
            raise OutOfMemory(
                f"There is no memory left on {self._nets.device} to look for faces in {len(batch)} "
                f"picture{'s' if len(batch) > 1 else ''} of up to {width}x{height} pixels: load fewer models, end "
                "other programs that use the device, send smaller pictures, or look for larger faces only."
            )
        faces = []
        for picture, (boxes, scores) in zip(batch, found, strict=True):
            height, width = picture.pixels.shape[:2]
            x1, y1, x2, y2 = _whole_pixels(boxes, width, height).T
            # O-Net may move a box at the border until nothing of it can be cut out; box and score go together.
            keep = (x2 > x1) & (y2 > y1)
            faces.append(Faces(boxes[keep], scores[keep]))
        return faces

    def _attempt(self, batch: Sequence[Picture]) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]] | None:
        """Return None if there is no memory for it; with this frame goes the traceback that holds tables and levels."""
        # Compiled engines ask for the current device's stream, and each thread begins with the first GPU as current.
        on_gpu = torch.cuda.device(self._nets.device) if self._nets.device.type == "cuda" else nullcontext()
        try:
            with on_gpu:
                return mtcnn.detect(self._nets, [p.pixels for p in batch], [p.min_score for p in batch], self.min_face)
        except (OutOfMemory, MemoryError):  # of one of the networks, or of the tables on a processor
            return None
        except RuntimeError as error:  # of all around them: tables, levels, crops
            if not is_out_of_memory(error):
                raise
            return None


class Recogniser:
    """Turns cut-out faces into unit vectors that lie near each other for one person."""

    def __init__(self, choice: Choice, info: Info) -> None:
        self.info = info
        self.buckets = choice.buckets
        self._engine = Fitting(choice.engine, choice.buckets)
        self._transfer = Transfer(host_of(choice.engine.device), choice.buckets)

    def crops(self, picture: NDArray[np.uint8], boxes: NDArray[np.float32]) -> list[NDArray[np.uint8]]:
        """Return each box (N, 4) of a picture (H, W, 3) RGB as an item (160, 160, 3) of a batch.

        Boxes are cut to whole pixels and to the picture and scaled by Pillow's bilinear filter: extract_face of
        facenet-pytorch for a Pillow image and margin 0. The detector's boxes all hold a pixel; raises ValueError for
        one that holds none.
        """
        crops = []
        height, width = picture.shape[:2]
        for x1, y1, x2, y2 in _whole_pixels(boxes, width, height).tolist():
            if x2 <= x1 or y2 <= y1:
                raise ValueError(f"the box ({x1}, {y1}, {x2}, {y2}) holds no whole pixel: drop it before cutting")
            crop = Image.fromarray(picture[y1:y2, x1:x2]).resize((CROP_SIZE, CROP_SIZE), Image.Resampling.BILINEAR)
            crops.append(np.array(crop))
        return crops

    def collate(self, items: Sequence[NDArray[np.uint8]]) -> Upload:
        """Send crops (160, 160, 3) to the device as one batch (B, 160, 160, 3)."""
        return self._transfer.upload(items)

    def run(self, batch: Upload) -> list[NDArray[np.float32]]:
        """Return the embeddings, (512,) float32 of length 1, of a batch."""
        return list(self._transfer.run(self._engine, batch))


class Embedder(nn.Module):
    """InceptionResnetV1 with its preprocessing: crops (B, 160, 160, 3) uint8 in, unit vectors (B, 512) float32 out.

    `body` is what lower precisions cast; the rest stays float32.
    """

    def __init__(self, network: InceptionResnetV1) -> None:
        super().__init__()
        self.body = network.to(memory_format=torch.channels_last)

    def forward(self, crops: Tensor) -> Tensor:
        # facenet-pytorch's fixed_image_standardization.
        pixels = (crops.permute(0, 3, 1, 2).float() - 127.5) / 128
        embeddings: Tensor = self.body(pixels.to(next(self.body.parameters()).dtype))
        return functional.normalize(embeddings.float(), dim=1)  # the network's own norm is as coarse as its weights


def load_detector(config: Config, device: torch.device) -> Detector:
    """Return the detector for `device`, with the weights that facenet-pytorch ships."""
    subject = detector_subject(device)
    choice = choose(subject, config)
    return Detector(detector_nets(choice.engines), info_of(subject, choice), config.min_face)


def load_recogniser(entry: Face, config: Config, device: torch.device) -> Recogniser:
    """Return the recogniser `entry` for `device`; raises WeightsMissing, WeightsBroken."""
    subject = recogniser_subject(entry, config, device)
    choice = choose(subject, config)
    return Recogniser(choice, info_of(subject, choice))


def detector_subject(device: torch.device) -> Stages:
    """Return the detector's networks as they are compiled and examined."""
    return Stages(mtcnn.load_stages(), device)


def recogniser_subject(entry: Face, config: Config, device: torch.device) -> Vectors:
    """Return the recogniser's network as it is compiled and examined, untrained for the demo or if `config` says so.

    Raises WeightsMissing, WeightsBroken.
    """
    untrained = entry.name == DEMO or config.untrained
    if untrained:
        log.warning("%s is untrained: its embeddings show that all works, but do not tell people apart", entry.name)
        made_from = f"untrained, from seed {UNTRAINED_SEED} and {hashlib.sha256(_statistics_file()).hexdigest()}"
    else:
        made_from = weights.digest(sources.face(entry, config.cache_folder))

    def network() -> Embedder:
        if untrained:
            return Embedder(build(untrained_state() | untrained_statistics()))
        try:
            return Embedder(build(weights.face_state(entry, config.cache_folder)))
        except RuntimeError as error:
            raise WeightsBroken(
                f"The weights of {entry.name} do not fit InceptionResnetV1: remove their file from "
                f"{config.cache_folder} to have it fetched anew. {shorten(str(error), 300)}"
            ) from error

    inputs = torch.from_numpy(samples.faces(CROP_SIZE))
    return Vectors(
        model=entry.name,
        kind="recognition",
        network=Network("recognition", network, tuple(inputs.shape[1:]), torch.uint8, example=inputs[:2]),
        inputs=inputs,
        cuts=(),
        preparation="(pixels - 127.5) / 128",
        untrained=untrained,
        weights=made_from,
        device=device,
        calibrate=lambda: [torch.from_numpy(crop) for crop in calibration.faces()],
    )


def build(state: Mapping[str, Tensor]) -> InceptionResnetV1:
    """Return InceptionResnetV1 with `state`, without the classifier; raises RuntimeError if keys or shapes differ."""
    network = _empty().to_empty(device="cpu")
    network.load_state_dict(dict(state))
    return network.eval()


def untrained_state() -> dict[str, Tensor]:
    """Return seeded weights, with neutral batch-norm statistics: the network is degenerate without others.

    Drawn by NumPy's RandomState, whose stream is frozen: the shipped statistics fit these weights and no others,
    whatever the version of torch. Weights are uniform with variance 2 / fan-in, after He et al., Delving Deep into
    Rectifiers (2015). The norms inside have a bias, so that most rectifiers let most of what they get pass and
    different faces stay different; the last one has none, or its answers would all have that in common.
    """
    rng = np.random.RandomState(UNTRAINED_SEED)
    state = {}
    for key, tensor in _empty().state_dict().items():
        shape = tuple(tensor.shape)
        if tensor.ndim > 1:
            bound = (6 / tensor[0].numel()) ** 0.5
            state[key] = torch.from_numpy(rng.uniform(-bound, bound, shape).astype(np.float32))
        else:
            value = UNTRAINED_BIAS if key.endswith(".bn.bias") else key.endswith(("bn.weight", "running_var"))
            state[key] = torch.full(shape, value, dtype=tensor.dtype)
    return state


def untrained_statistics() -> dict[str, Tensor]:
    """Return the batch-norm statistics and the last layer for `untrained_state`, with which different faces spread.

    Made by scripts/calibrate_facenet.py and shipped, since pictures of faces are no part of a running server.
    """
    return with_last_layer(safetensors.torch.load(_statistics_file()))


def _statistics_file() -> bytes:
    return resources.files("engines").joinpath(STATISTICS).read_bytes()


def with_last_layer(statistics: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `statistics` with the weights of the last layer in place of "directions" (K, 1792).

    They are seeded mixtures of those directions of its input in which faces differ most. A layer that looks along all
    directions alike, as drawn weights do, gathers the rounding errors of 1,792 channels; a trained one does not.
    """
    directions = statistics["directions"]
    rng = np.random.RandomState(UNTRAINED_SEED)
    mixture = torch.from_numpy(rng.uniform(-1, 1, (_EMBEDDING, len(directions))).astype(np.float32))
    others = {key: tensor for key, tensor in statistics.items() if key != "directions"}
    return {**others, "last_linear.weight": mixture @ directions}


def _empty() -> InceptionResnetV1:
    # On the meta device nothing is drawn, so neither time nor torch's random state is spent on weights not wanted.
    with torch.device("meta"):
        return InceptionResnetV1()


def _whole_pixels(boxes: NDArray[np.float32], width: int, height: int) -> NDArray[np.int64]:
    """Return `boxes` (N, 4) cut to the picture and to whole pixels, the right and lower ends exclusive."""
    whole = np.concatenate([np.maximum(boxes[:, :2], 0), np.minimum(boxes[:, 2:], (width, height))], axis=1)
    return whole.astype(np.int64)  # toward zero
