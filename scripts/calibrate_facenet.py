"""Makes the batch-norm statistics of the untrained recogniser: python -m scripts.calibrate_facenet.

Straight from its initialiser InceptionResnetV1 gives nearly the same vector for every picture, and every comparison
on it would be empty. One pass over drawn faces and real ones, in which each layer takes the mean and variance of what
it sees, pulls them apart, and the last layer is told the directions in which they differ most. The real ones come from
scikit-image's pictures: half of the small portraits, and the heads in two photos. The other half is left to the tests.
"""

from pathlib import Path

import numpy as np
import safetensors.torch
import skimage
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from engines import drawings, faces

SAMPLES = Path(skimage.__file__).parent / "data"
HEADS = {"astronaut.png": (180, 65, 270, 185), "camera.png": (205, 100, 275, 190)}  # left, upper, right, lower
SEED = 1
DRAWN = 32
# They hold six sevenths of the variance between the faces here; twice as many let in half as much rounding error again.
DIRECTIONS = 32
SIDE = faces.CROP_SIZE


def main() -> None:
    """Write the statistics into the package and print how far apart different faces then lie."""
    rng = np.random.default_rng(SEED)
    calibration = np.stack([*(drawings.face(rng) for _ in range(DRAWN)), *real_faces(rng)])
    statistics = calibrate(faces.untrained_state(), torch.from_numpy(calibration))
    target = Path(faces.__file__).parent / faces.STATISTICS
    target.write_bytes(safetensors.torch.save(statistics))
    print(f"{target}: {len(statistics)} tensors, {target.stat().st_size} bytes")

    network = faces.Embedder(faces.build(faces.untrained_state() | faces.with_last_layer(statistics)))
    fresh = np.stack([drawings.face(rng) for _ in range(DRAWN)])
    for name, crops in (("these faces", calibration), ("faces drawn anew", fresh)):
        with torch.inference_mode():
            print(f"mean cosine between {name}: {mean_cosine(network(torch.from_numpy(crops))):.3f}")


def calibrate(state: dict[str, Tensor], crops: Tensor) -> dict[str, Tensor]:
    """Return mean and variance at each batch norm for weights `state` and crops (B, 160, 160, 3) uint8.

    And "directions" (K, 1792), of length 1: the principal components of what the last layer sees.
    """
    network = faces.build(state)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.train()
            module.momentum = 1.0  # take this batch as it is, nothing of what was before
    seen: list[Tensor] = []
    network.last_linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        faces.Embedder(network)(crops)
        (features,) = seen  # (B, 1792)
        directions = torch.linalg.svd(features - features.mean(dim=0), full_matrices=False).Vh[:DIRECTIONS]
        network.last_linear.weight = nn.Parameter(
            faces.with_last_layer({"directions": directions})["last_linear.weight"]
        )
        network.last_bn(network.last_linear(features))
    statistics = {
        key: value.clone()
        for key, value in network.state_dict().items()
        if key.endswith(("running_mean", "running_var"))
    }
    return {**statistics, "directions": directions.contiguous()}


def mean_cosine(embeddings: Tensor) -> float:
    """Return the mean cosine between different rows of `embeddings` (N, D), each of length 1."""
    n = len(embeddings)
    return float(((embeddings @ embeddings.T).sum() - n) / (n * (n - 1)))


def real_faces(rng: Generator) -> list[NDArray[np.uint8]]:
    """Return crops (160, 160, 3) of real faces: every other portrait, and two heads thrice, shifted."""
    portraits: NDArray[np.float64] = np.load(SAMPLES / "lfw_subset.npy")[:100:2]  # (50, 25, 25), 0 to 1
    images = [Image.fromarray(np.uint8(portrait * 255)).convert("RGB") for portrait in portraits]
    for name, (left, upper, right, lower) in HEADS.items():
        with Image.open(SAMPLES / name) as photo:
            for _ in range(3):
                dx, dy = rng.integers(-8, 9, 2).tolist()
                images.append(photo.convert("RGB").crop((left + dx, upper + dy, right + dx, lower + dy)))
    return [np.array(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)) for image in images]


if __name__ == "__main__":
    main()
