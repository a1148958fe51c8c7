"""One request's way through the house: names, picture or text, queues, answer.

Knows the order of things and of checks. Does not know HTTP (wire.py reads and writes it), nor queueing, nor networks.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from engines import catalog, images
from engines.errors import ArtefactBroken, BuildFailed, EngineMissing, WeightsBroken, WeightsMissing
from engines.images import Header, Pixels, Size
from engines.model import Kind
from server.budget import Budget
from server.errors import BadInput, NoInput, NotServed, TooLarge
from server.shelf import Loaded, Part, Shelf
from server.stopwatch import Phase, Stopwatch
from server.wire import Answer, Ask, Face

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings that a request meets on its way."""

    face_alias: str
    max_pixels: int
    exif: bool
    ocr: bool
    max_faces: int = 500  # in one picture


@dataclass(frozen=True, slots=True)
class _Caller:
    """Whose request it is, for turns in the queues, and where its time goes."""

    flow: Hashable
    watch: Stopwatch


class Predictor:
    """Answers requests with the models of a shelf. `pixels` bounds what is held decoded at one time.

    A picture that is being decoded for a client who hung up counts no longer: one at most for each thread.
    """

    def __init__(self, shelf: Shelf, rules: Rules, pixels: Budget, picture_threads: int) -> None:
        self._shelf = shelf
        self._rules = rules
        self._pixels = pixels
        self._picture_pool = ThreadPoolExecutor(picture_threads, thread_name_prefix="picture")
        self._picture_turns = Budget(picture_threads)  # the pool itself knows no flows
        # A thread of their own: a search must not wait behind pictures that are decoded.
        self._text_pool = ThreadPoolExecutor(1, thread_name_prefix="text")
        self._alias_told = False

    def close(self) -> None:
        """Start nothing more; what runs in the threads ends by itself."""
        for pool in (self._picture_pool, self._text_pool):
            pool.shutdown(wait=False, cancel_futures=True)

    async def answer(self, ask: Ask, flow: Hashable, watch: Stopwatch | None = None) -> Answer:
        """Compute what `ask` asks for, and note the time in `watch`.

        Raises the errors of server.errors, engines.errors and the queues.
        """
        caller = _Caller(flow, watch or Stopwatch())
        if ask.ocr and not self._rules.ocr:
            raise NotServed("This server has no OCR: turn it off in the client, or set MACHINE_LEARNING_OCR=empty.")
        parts = self._parts(ask)
        if ask.image is not None:
            return await self._answer_image(ask, ask.image, parts, caller)
        if ask.text is not None:
            return await self._answer_text(ask, ask.text, parts, caller)
        raise NoInput("Either image or text must be provided: send one of these fields with the form.")

    def _parts(self, ask: Ask) -> dict[Kind, Part]:
        asked: dict[Kind, str | None] = {
            "visual": ask.visual,
            "textual": ask.textual,
            "detection": ask.detection,
            "recognition": ask.recognition,
        }
        parts = {
            kind: Part(kind, catalog.look_up(kind, name, self._rules.face_alias))
            for kind, name in asked.items()
            if name is not None
        }
        if not self._alias_told and catalog.normalise(ask.recognition or "") in catalog.FACE_ALIASES:
            self._alias_told = True
            log.warning(
                "%s answers for InsightFace's models, and its vectors cannot be compared with theirs: "
                "run face detection on all photos again after changing servers; see the README",
                self._rules.face_alias,
            )
        return parts

    async def _answer_text(self, ask: Ask, text: str, parts: dict[Kind, Part], caller: _Caller) -> Answer:
        if "textual" not in parts or ("visual" in parts and not ask.either):
            raise BadInput(
                "A text was sent, but the task needs an image: send the field image with the picture's bytes."
            )
        if "detection" in parts or "recognition" in parts:
            raise BadInput("A text was sent, but faces need an image: ask for them in a request with a picture.")
        async with AsyncExitStack() as stack:
            with caller.watch.phase("wait"):
                textual = await stack.enter_async_context(self._shelf.use(parts["textual"]))
            textual.scheduler.check_room(textual.queue, ahead=0, flow=caller.flow)
            work = _timed(caller.watch, "prepare", textual.model.prepare, text, ask.language)
            item = await asyncio.get_running_loop().run_in_executor(self._text_pool, work)
            return Answer(embedding=await _submit(textual, item, caller))

    async def _answer_image(self, ask: Ask, image: bytes, parts: dict[Kind, Part], caller: _Caller) -> Answer:
        if "textual" in parts and not ask.either:
            raise BadInput("An image was sent, but the task clip.textual needs a text: send the field text alone.")
        if "recognition" in parts and "detection" not in parts:
            raise BadInput("facial-recognition.recognition needs facial-recognition.detection in the same request.")
        header = await self._picture_work(caller, "decode", images.probe, image, self._rules.max_pixels)
        async with AsyncExitStack() as stack:
            models = await self._models(stack, image, header, parts, caller)
            for loaded in models.values():
                ahead = self._pixels.waiting_of(caller.flow)
                loaded.scheduler.check_room(loaded.queue, ahead, caller.flow)
            if models.keys() == {"visual"}:
                vector = await self._undecoded(models["visual"], image, header, caller)
                if vector is not None:
                    return Answer((header.width, header.height), vector)
            async with self._room(header, caller):
                picture, size, items = await self._picture_work(
                    caller, None, self._prepare, image, models, ask.min_score, caller.watch
                )
                embedding: asyncio.Future[Any] | None = None
                try:
                    if "visual" in models:
                        embedding = _submit(models["visual"], items["visual"], caller)
                    faces = None
                    if "detection" in models:
                        faces = await self._faces(models, picture, items["detection"], caller)
                    del picture, items  # a picture need not stay in memory while its vector waits in a queue
                except BaseException:
                    if embedding is not None:
                        embedding.cancel()
                    raise
            return Answer(size, None if embedding is None else await embedding, faces)

    async def _models(
        self, stack: AsyncExitStack, image: bytes, header: Header, parts: dict[Kind, Part], caller: _Caller
    ) -> dict[Kind, Loaded]:
        try:
            with caller.watch.phase("wait"):
                return {
                    kind: await stack.enter_async_context(self._shelf.use(part))
                    for kind, part in parts.items()
                    if kind != "textual"
                }
        except (WeightsMissing, WeightsBroken, EngineMissing, BuildFailed, ArtefactBroken):
            # A picture that cannot be decoded is the client's error whether there is a model or not.
            async with self._room(header, caller):
                await self._picture_work(caller, "decode", images.decode, image, self._rules.max_pixels)
            raise

    @asynccontextmanager
    async def _room(self, header: Header, caller: _Caller) -> AsyncIterator[None]:
        """Wait for room for a decoded picture, and hold it for the time of the block."""
        async with AsyncExitStack() as stack:
            with caller.watch.phase("wait"):
                await stack.enter_async_context(self._pixels.hold(header.width * header.height, caller.flow))
            yield

    async def _undecoded(self, visual: Loaded, image: bytes, header: Header, caller: _Caller) -> Any:
        """Return the vector of a picture that the model takes as it came, None if it does not or cannot read it."""
        if self._rules.exif or not visual.model.takes_jpeg(header, image):
            return None
        weight = header.width * header.height  # bounds what is decoded for one batch
        return await _submit(visual, np.frombuffer(image, np.uint8), caller, weight=weight)

    def _prepare(
        self, image: bytes, models: dict[Kind, Loaded], min_score: float, watch: Stopwatch
    ) -> tuple[Pixels, Size, dict[Kind, Any]]:
        """Decode once and prepare for all models; runs in a worker thread."""
        # Boxes of faces are in pixels of the picture as sent, so that it is decoded in full for them.
        enough = 0 if "detection" in models else max(loaded.model.enough_pixels for loaded in models.values())
        with watch.phase("decode"):
            picture, size = images.reduced(image, self._rules.max_pixels, enough, self._rules.exif)
        watch.pixels += picture.shape[0] * picture.shape[1]
        items: dict[Kind, Any] = {}
        with watch.phase("prepare"):
            if "visual" in models:
                items["visual"] = models["visual"].model.prepare(picture)
            if "detection" in models:
                items["detection"] = models["detection"].model.prepare(picture, min_score)
        return picture, size, items

    async def _faces(self, models: dict[Kind, Loaded], picture: Pixels, item: Any, caller: _Caller) -> list[Face]:
        found = await _submit(models["detection"], item, caller, weight=item.weight)
        if len(found.boxes) > self._rules.max_faces:
            raise TooLarge(
                f"The picture has {len(found.boxes)} faces, more than {self._rules.max_faces}: raise minScore or "
                "MACHINE_LEARNING_MAX_FACES."
            )
        if "recognition" not in models:
            return [Face(box, score, None) for box, score in zip(found.boxes, found.scores, strict=True)]
        if not len(found.boxes):
            return []
        recogniser = models["recognition"]
        crops = await self._picture_work(caller, "prepare", recogniser.model.crops, picture, found.boxes)
        embeddings = await asyncio.gather(*(_submit(recogniser, crop, caller, accepted=True) for crop in crops))
        return [
            Face(box, score, embedding)
            for box, score, embedding in zip(found.boxes, found.scores, embeddings, strict=True)
        ]

    async def _picture_work(self, caller: _Caller, phase: Phase | None, function: Callable[..., T], *args: Any) -> T:
        """Run `function` in a picture thread when it is this caller's turn; None if it notes its phases itself."""
        with caller.watch.phase("wait"):
            await self._picture_turns.acquire(1, caller.flow)
        timed = _timed(caller.watch, phase, function, *args)
        work = asyncio.get_running_loop().run_in_executor(self._picture_pool, timed)
        # Given back by the work and not by this coroutine: who hangs up leaves a thread that is busy for a while.
        work.add_done_callback(self._picture_work_ended)
        return await asyncio.shield(work)

    def _picture_work_ended(self, work: "asyncio.Future[Any]") -> None:
        self._picture_turns.release(1)
        if not work.cancelled():
            work.exception()  # looked at, since whoever hung up does not: asyncio would log that nobody did


def _submit(
    loaded: Loaded, item: Any, caller: _Caller, *, weight: int = 1, accepted: bool = False
) -> "asyncio.Future[Any]":
    return loaded.scheduler.submit(
        loaded.queue, item, flow=caller.flow, weight=weight, accepted=accepted, rider=caller.watch.ride()
    )


def _timed(watch: Stopwatch, phase: Phase | None, function: Callable[..., T], *args: Any) -> Callable[[], T]:
    """Return what to run in a thread: it notes how long it waited for the thread, and its own time as `phase`."""
    waiting = watch.begin("wait")

    def work() -> T:
        watch.end(waiting)
        if phase is None:
            return function(*args)
        with watch.phase(phase):
            return function(*args)

    return work
