"""What eager float32 answers to the very pictures and texts of the bench: what all answers are held against.

Pictures go through Pillow and open_clip's own transform, so that decoding and preparing are held as well.
"""

import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.transform import AugmentationCfg, image_transform
from PIL import Image
from torchvision.transforms import Compose

from engines import catalog, clip, tokenizer
from engines.catalog import Clip
from engines.engine import Network
from engines.model import Config
from scripts.bench.show import tell

AT_ONCE = 8
CPU = torch.device("cpu")


def visual(name: str, cache: Path) -> Network:
    """Return the untrained picture tower of `name` in eager float32."""
    return clip.visual_subject(catalog.clip(name), Config(cache_folder=cache, untrained=True), CPU).networks[0]


def textual(name: str, cache: Path) -> Network:
    """Return the untrained text tower of `name` in eager float32."""
    entry, config = catalog.clip(name), Config(cache_folder=cache, untrained=True)
    return clip.textual_subject(entry, config, CPU, tokenizer.load(entry, config)[0]).networks[0]


def squares(entry: Clip) -> Callable[[Image.Image], NDArray[np.uint8]]:
    """Return open_clip's transform of `entry` up to the square of bytes, (S, S, 3), that it makes of an RGB picture."""
    size, mode = entry.image_size, entry.resize
    transform: Any = image_transform(
        size, is_train=False, interpolation="bicubic", resize_mode=mode, aug_cfg=AugmentationCfg()
    )
    # Behind these steps come _convert_to_rgb, ToTensor and Normalize, which are inside our networks.
    spatial = Compose([step for step in transform.transforms if hasattr(step, "size")])
    return lambda image: np.array(spatial(image))


def of_pictures(name: str, photos: Sequence[bytes], cache: Path) -> Path:
    """Return a file with the vectors (N, dim) float32 of `photos`, computed if it is not there."""
    square = squares(catalog.clip(name))

    def inputs() -> NDArray[np.uint8]:
        return np.stack([square(Image.open(io.BytesIO(photo)).convert("RGB")) for photo in photos])

    return _kept(name, photos, cache, lambda: _run(visual(name, cache), inputs()))


def of_texts(name: str, texts: Sequence[str], cache: Path) -> Path:
    """Return a file with the vectors (N, dim) float32 of `texts` at full length, computed if it is not there."""
    tokenize, _ = tokenizer.load(catalog.clip(name), Config(cache_folder=cache, untrained=True))

    def inputs() -> NDArray[np.int64]:
        return np.stack([tokenize(text, None) for text in texts])

    return _kept(name, [text.encode() for text in texts], cache, lambda: _run(textual(name, cache), inputs()))


def _kept(name: str, inputs: Sequence[bytes], cache: Path, compute: Callable[[], NDArray[np.float32]]) -> Path:
    digest = hashlib.sha256(f"{name} {torch.__version__}".encode())
    for one in inputs:
        digest.update(hashlib.sha256(one).digest())
    path = cache / "reference" / f"{digest.hexdigest()[:20]}.npy"
    if not path.exists():
        tell(f"{name}: eager float32 answers to {len(inputs)} inputs")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, compute())
    return path


def _run(network: Network, inputs: NDArray[Any]) -> NDArray[np.float32]:
    with torch.inference_mode():
        parts = [network.module(part) for part in torch.split(torch.from_numpy(inputs), AT_ONCE)]
        vectors: NDArray[np.float32] = torch.cat(parts).numpy()
    return vectors
