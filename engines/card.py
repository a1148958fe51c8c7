"""JPEGs decoded and shrunk on the GPU, in batches, for requests that want a CLIP model's picture vector alone.

The item of such a request is the JPEG itself: the processor, which is the limit of a server with a fast GPU, decodes
nothing and holds nothing decoded. torchvision decodes a list of JPEGs by nvJPEG; the resize is that of preprocess.plan,
in float32.

The pictures are not quite those of the processor. nvJPEG repeats the colours of 4:2:0 and 4:2:2 where libjpeg-turbo
interpolates, and both round as they like: at edges of colour pixels differ by many levels before they are shrunk, and
by a few after that. So what is asked for is the vector: cosine 0.9999 at least, on photos in all the kinds of JPEG that
are let in here. All other kinds, and what the GPU will not read, are decoded by the processor.

Knows neither networks nor requests.
"""

import io
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torchvision.io import ImageReadMode, decode_jpeg

from engines import images, preprocess, samples
from engines.catalog import ResizeMode
from engines.engine import bucket_for
from engines.images import Header, Pixels
from engines.preprocess import Crop
from engines.transfer import Upload

log = logging.getLogger(__name__)

LOWEST_COSINE = 0.9999  # between the vectors of one JPEG decoded here and there
MOST_PIXELS = 64_000_000  # of one picture: 0.2 GB decoded and 0.8 GB in float32, while it is shrunk

# Of the header of a JPEG: ITU-T T.81, annex B; the segment APP14 is Adobe's.
_BEGIN, _END = b"\xff\xd8\xff", b"\xff\xd9"
_BASELINE, _ADOBE = 0xC0, 0xEE
_OTHERS = {*range(0xC1, 0xD0)} - {0xC4} | {0xDA}  # progressive, lossless, arithmetic frames, and a scan without a frame
_YCBCR = 1  # Adobe's number for it
_LUMA = (0x11, 0x21, 0x22)  # times as many samples as of the colours, across and down: 4:4:4, 4:2:2, 4:2:0
_SAMPLINGS = ("4:4:4", "4:2:2", "4:2:0")  # the same to Pillow


class Card:
    """Turns JPEGs into batches of one model on `device`: squares of `size` pixels, in `buckets` of rows."""

    def __init__(
        self, device: torch.device, buckets: Sequence[int], size: int, mode: ResizeMode, floor_offset: bool
    ) -> None:
        self._device = device
        self._buckets = tuple(buckets)
        self._size = size
        self._mode = mode
        self._floor_offset = floor_offset
        self._turn = threading.Lock()
        cuda: Any = torch.cuda  # most of it has no types
        self._stream = cuda.Stream(device) if device.type == "cuda" else None

    def takes(self, header: Header, data: bytes) -> bool:
        """Whether the picture of `header` and `data` is of a kind that is decoded here, as far as its header tells."""
        if header.format != "JPEG" or header.width * header.height > MOST_PIXELS or not is_plain(data):
            return False
        # Enlarged pictures would show single pixels; strips are cut before they are resized, by preprocess.
        crop = preprocess.plan(header.width, header.height, self._size, self._mode)
        return min(header.width, header.height) >= self._size and max(crop.resized) <= preprocess.STRIP * self._size

    def upload(self, items: Sequence[NDArray[np.uint8]]) -> Upload:
        """Return a batch of JPEGs (bytes,) and of squares (S, S, 3) as they come, at least one, padded to a bucket.

        What cannot be decoded here is in `unread` of the result. Any thread may call it; it waits for the GPU.
        """
        with self._turn, self._streaming():
            rows = len(items)
            shape = (bucket_for(rows, self._buckets), self._size, self._size, 3)
            batch = torch.empty(shape, dtype=torch.uint8, device=self._device)
            unread = self._fill(batch, items)
            batch[rows:] = batch[rows - 1].clone()
            arrived = None if self._stream is None else self._stream.record_event()
            return Upload(batch, rows, arrived, unread)

    @contextmanager
    def _streaming(self) -> Iterator[None]:
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            try:
                yield
            finally:
                # torchvision decodes on a stream of its own into memory that PyTorch gives out in the order of this
                # one: what is freed here must be out of use before the next batch is decoded.
                self._stream.synchronize()

    def _fill(self, batch: Tensor, items: Sequence[NDArray[np.uint8]]) -> frozenset[int]:
        """Write all items into their rows; return the rows of those that cannot be decoded, where zeros are."""
        places = [row for row, item in enumerate(items) if item.ndim == 1]
        # Copied: torch takes no memory that must not be written, as that of a request.
        decoded = self._decoded([torch.from_numpy(items[row].copy()) for row in places])
        pictures = dict(zip(places, decoded, strict=True))
        unread = set()
        for row, item in enumerate(items):
            square = torch.from_numpy(item) if row not in pictures else self._square(pictures.pop(row))
            if square is None:
                unread.add(row)
                batch[row].zero_()
            else:
                batch[row].copy_(square)
        return frozenset(unread)

    def _decoded(self, jpegs: list[Tensor]) -> list[Tensor | None]:
        """Return pictures (3, H, W) uint8, None for those that are refused: of a list that fails, the halves are tried.

        Damage and a lack of memory look alike.
        """
        if not jpegs:
            return []
        try:
            pictures: list[Tensor | None] = [*decode_jpeg(jpegs, ImageReadMode.RGB, self._device)]
        except RuntimeError as error:
            if len(jpegs) == 1:
                log.info("a JPEG is left to the processor: %s", str(error).partition("\n")[0])
                return [None]
        else:
            return pictures
        half = len(jpegs) // 2
        return self._decoded(jpegs[:half]) + self._decoded(jpegs[half:])

    def _square(self, picture: Tensor | None) -> Tensor | None:
        if picture is None:
            return None
        _, height, width = picture.shape
        crop = preprocess.plan(width, height, self._size, self._mode, self._floor_offset)
        try:
            return shrunk(picture, crop, self._size)
        except RuntimeError as error:  # no memory for it in float32, or a ratio that the kernel does not take
            log.info("a picture of %dx%d is left to the processor: %s", width, height, str(error).partition("\n")[0])
            return None


def unavailable(device: torch.device, device_ids: Sequence[int]) -> str | None:
    """Return None, or one sentence that says why no JPEG can be decoded on `device`, one of `device_ids`."""
    if device.type != "cuda":
        return f"models run on {device.type}, and only GPUs of NVIDIA decode JPEGs."
    if len(device_ids) > 1:
        # At each change of the GPU it makes a new one and leaks the old one.
        return "torchvision has one decoder in a process, for one GPU: name one in MACHINE_LEARNING_DEVICE_IDS."
    return None


def shrunk(picture: Tensor, crop: Crop, size: int) -> Tensor:
    """Return the square (size, size, 3) of `crop` of a picture (3, H, W), all uint8.

    As Pillow does it: across, then down, each pass rounded and cut to 0 to 255; only the weights are float32.
    """
    width, height = crop.resized
    narrow = _pass(picture[None].float(), picture.shape[1], width)[..., crop.left : crop.left + size]
    square = _pass(narrow, height, size)[0, :, crop.top : crop.top + size]
    return square.to(torch.uint8).permute(1, 2, 0)


def _pass(planes: Tensor, height: int, width: int) -> Tensor:
    return functional.interpolate(planes, (height, width), mode="bicubic", antialias=True).round_().clamp_(0, 255)


def is_plain(data: bytes) -> bool:
    """Whether `data` is a JPEG from its begin to its end, baseline, of 8 bits, grey or YCbCr in a usual sampling."""
    if not (data.startswith(_BEGIN) and data.endswith(_END)):
        return False
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        segment = data[place + 4 : place + 2 + int.from_bytes(data[place + 2 : place + 4])]
        if marker == _BASELINE:
            return _is_plain_frame(segment)
        if marker in _OTHERS:
            return False
        if marker == _ADOBE and segment[:5] == b"Adobe" and segment[11:12] != bytes([_YCBCR]):
            return False
        place += 4 + len(segment)
    return False


def refusal(
    prepare: Callable[[Pixels], Pixels], vectors: Callable[[Sequence[NDArray[np.uint8]]], Sequence[Any]]
) -> str | None:
    """Return why JPEGs may not be decoded here, None if they may.

    `prepare` is the processor's way from decoded pixels to a square, `vectors` what the model says to any number of
    JPEGs and squares: vectors of unit length, None for a JPEG that cannot be read.
    """
    jpegs = gate_jpegs()
    right = vectors([prepare(images.decode(jpeg, MOST_PIXELS)) for jpeg in jpegs.values()])
    found = vectors([np.frombuffer(jpeg, np.uint8) for jpeg in jpegs.values()])
    for name, expected, vector in zip(jpegs, right, found, strict=True):
        if vector is None:
            return f"the GPU cannot decode {name}, for the reason above"
        cosine = float(np.dot(expected, vector))
        if not cosine >= LOWEST_COSINE:  # NaN is refused as well
            return f"the vector of {name} has cosine {cosine:.6f} to the processor's, {LOWEST_COSINE} is wanted"
    return None


def gate_jpegs() -> dict[str, bytes]:
    """Return photos as JPEGs in all the kinds that is_plain lets in, by a name for each.

    At twice their size: a picture that is smaller than what the model sees does not come this way.
    """
    shown = {}
    for name in samples.PHOTOS:
        photo = samples.photo(name)
        large = photo.resize((2 * photo.width, 2 * photo.height))
        for sampling in _SAMPLINGS:
            shown[f"{name} in {sampling}"] = _encoded(large, subsampling=sampling)
    shown["camera in grey"] = _encoded(samples.photo("camera").resize((640, 640)).convert("L"))
    return shown


def _encoded(image: Any, **options: str) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90, **options)
    return file.getvalue()


def _is_plain_frame(segment: bytes) -> bool:
    """Whether a frame is of 8 bits and one component, or three in a usual sampling that are not named R, G, B."""
    if len(segment) < 6 or segment[0] != 8 or len(segment) != 6 + 3 * segment[5]:
        return False
    names, samplings = segment[6::3], segment[7::3]
    if len(names) == 1:
        return True
    return len(names) == 3 and names != b"RGB" and samplings[0] in _LUMA and samplings[1:] == b"\x11\x11"
