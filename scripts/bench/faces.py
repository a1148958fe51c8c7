"""Faces from JPEG bytes to embeddings: the whole way of the server but HTTP, 8 callers, in turn with facenet-pytorch.

facenet-pytorch is used as its README does, photo by photo: MTCNN with keep_all, then InceptionResnetV1, with the same
untrained weights as ours. Faces are held to be the same before anything is timed.
"""

import asyncio
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from facenet_pytorch import MTCNN
from numpy.typing import NDArray
from PIL import Image

from engines import catalog
from engines import faces as recognisers
from engines.engine import host_of
from engines.machine import pick_devices
from scripts.bench import pictures, served
from scripts.bench.ceiling import Ceiling
from scripts.bench.options import Options
from scripts.bench.record import Row, row
from scripts.bench.turns import Ended, closed_loop, in_turn, pace
from scripts.bulk.inside import inside
from server.loading import engine_config
from server.predict import Predictor
from server.shelf import Part
from server.wire import Ask, Face

MODEL = "facenet-vggface2"
CALLERS = 8
SMALLEST = (20, 40)  # faces to look for
COUNTS = (0, 1, 5, 12, 30)
SIZES = ((720, 540), (2880, 2160), (4000, 3000))
SIZED = 5  # faces in pictures of other sizes
# In pixels: all faces are well above the smallest that are looked for, where detectors may differ by chance.
FACE = 48
RATIO, OVERLAP, COSINE = 4.0, 0.98, 0.999

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Rival:
    """facenet-pytorch as its README uses it, on one device."""

    detector: MTCNN
    recogniser: torch.nn.Module
    device: torch.device

    def __call__(self, data: bytes) -> Vector:
        """Return the embeddings (N, 512) of the faces in a JPEG."""
        crops = self.detector(Image.open(io.BytesIO(data)).convert("RGB"))
        if crops is None:
            return np.empty((0, 512), np.float32)
        with torch.inference_mode():
            embeddings: Vector = self.recogniser(crops.to(self.device)).cpu().numpy()
        return embeddings

    def boxes(self, data: bytes) -> Vector:
        """Return the boxes (N, 4) of them, in the same order."""
        boxes, _ = self.detector.detect(Image.open(io.BytesIO(data)).convert("RGB"))
        return np.empty((0, 4), np.float32) if boxes is None else np.asarray(boxes, np.float32)


@dataclass(frozen=True, slots=True)
class Photo:
    """A photo of so many faces and of `size` pixels, and the smallest face that is looked for in it."""

    faces: int
    size: tuple[int, int]
    smallest: int

    @property
    def name(self) -> str:
        """All of it in words."""
        return f"{self.faces} faces in {self.size[0]}x{self.size[1]}, from {self.smallest} pixels"


def measure(options: Options, ceiling: Ceiling) -> list[Row]:
    """Measure photos by number of faces and by size, at each smallest face; raises Ended unless what was built runs."""
    wanted = served.build(options, MODEL)
    return [one for smallest in SMALLEST for one in asyncio.run(_at(options, smallest, wanted))]


async def _at(options: Options, smallest: int, wanted: Mapping[str, str]) -> list[Row]:
    settings = options.settings().model_copy(update={"min_face": smallest})
    config = engine_config(settings)
    device = host_of(pick_devices(config)[0])
    network = recognisers.recogniser_subject(catalog.face(MODEL), config, torch.device("cpu")).networks[0].module
    assert isinstance(network, recognisers.Embedder)  # noqa: S101 - see recogniser_subject
    rival = Rival(MTCNN(keep_all=True, min_face_size=smallest, device=device), network.body.to(device), device)
    entry = catalog.face(MODEL)
    rows = []
    async with inside(settings, [Part("detection", entry), Part("recognition", entry)]) as ready:
        infos = [one.model.info for one in ready.loaded]
        running = {info.kind: served.Running(f"{info.backend} {info.precision}", info.reason) for info in infos}
        if wrong := served.others(wanted, running, options):
            raise Ended(f"what was built does not run, so nothing is measured: {wrong}")
        engine = ", ".join(dict.fromkeys(one.engine for one in running.values()))
        for faces, size in [*((count, pictures.PREVIEW) for count in COUNTS), *((SIZED, size) for size in SIZES)]:
            rows += await _of(Photo(faces, size, smallest), options, ready.predictor, rival, engine)
    return rows


async def _of(photo: Photo, options: Options, predictor: Predictor, rival: Rival, engine: str) -> list[Row]:
    data = pictures.group(options.cache, photo.faces, photo.size, FACE)

    async def ask(number: int) -> list[Face]:
        found = await predictor.answer(Ask(detection=MODEL, recognition=MODEL, image=data), flow=number)
        return list(found.faces or ())

    loop = asyncio.get_running_loop()
    overlap, cosine = compare(await ask(0), rival.boxes(data), rival(data))

    def ours() -> float:
        return asyncio.run_coroutine_threadsafe(closed_loop(ask, CALLERS, options.seconds), loop).result()

    sides: dict[str, Callable[[], float]] = {
        "ours": ours,
        "facenet-pytorch": lambda: 1 / pace(lambda: rival(data), options.seconds),
    }
    found = await asyncio.to_thread(in_turn, f"faces, {photo.name}", sides, options.rounds)
    at = photo.faces if photo.size == pictures.PREVIEW else photo.size[0] * photo.size[1]
    tell_of = partial(row, "faces", model=MODEL, engine=engine, at=at)
    rows = [tell_of(photo.name, "photos/s", *found.values(), goal=f"ratio >= {RATIO:g}")]
    if photo.faces:
        rows.append(tell_of(f"{photo.name}: lowest overlap of boxes", "", [overlap], goal=f"ours >= {OVERLAP}"))
        rows.append(tell_of(f"{photo.name}: lowest cosine of embeddings", "", [cosine], goal=f"ours >= {COSINE}"))
    return rows


def compare(ours: list[Face], boxes: Vector, embeddings: Vector) -> tuple[float, float]:
    """Return the lowest overlap of a face of ours with its fellow, and the lowest cosine; 0 for both if one has none.

    An overlap is intersection over union.
    """
    if len(ours) != len(boxes):
        return 0.0, 0.0
    overlaps, cosines = [1.0], [1.0]
    for face in ours:
        each = np.array([intersection_over_union(face.box, box) for box in boxes])
        fellow = int(each.argmax())
        overlaps.append(float(each[fellow]))
        assert face.embedding is not None  # noqa: S101 - it was asked for
        cosines.append(float(face.embedding @ embeddings[fellow] / np.linalg.norm(embeddings[fellow])))
    return min(overlaps), min(cosines)


def intersection_over_union(a: Vector, b: Vector) -> float:
    """Return what two boxes (x1, y1, x2, y2) share of what they cover."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = float(np.prod(np.maximum(sides, 0)))
    return shared / float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared)
