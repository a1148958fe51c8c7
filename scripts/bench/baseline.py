"""The server that stands for what people run today: python -m scripts.bench.baseline FOLDER --port N.

A bare aiohttp handler over Pillow, ONNX Runtime in float32 and the tokenizers library: one request at a time in a
thread pool of one, texts always at their full length. Answers `/ping`, `/health/ready` and the form of `/predict` for
one CLIP model, whose files export.py left in FOLDER. Imports nothing of Facet.
"""

import argparse
import asyncio
import functools
import io
import json
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import orjson
from aiohttp import web
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

MAX_BODY = 100_000_000
KINDS = ("visual", "textual")


class Rival:
    """One CLIP model on ONNX Runtime; its sides are loaded when they are first used."""

    def __init__(self, folder: Path) -> None:
        about = json.loads((folder / "model.json").read_text())
        self._folder = folder
        self._size = int(about["size"])
        self._squash = bool(about["squash"])
        self._mean = np.asarray(about["mean"], np.float32)
        self._std = np.asarray(about["std"], np.float32)

    @functools.cached_property
    def visual(self) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
        """The picture side: (B, 3, S, S) float32 to (B, dim)."""
        return self._session("visual")

    @functools.cached_property
    def textual(self) -> Callable[[NDArray[np.int64]], NDArray[np.float32]]:
        """The text side: (B, L) int64 to (B, dim)."""
        return self._session("textual")

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the text side."""
        return Tokenizer.from_file(str(self._folder / "tokenizer.json"))

    def _session(self, kind: str) -> Callable[..., NDArray[np.float32]]:
        session = onnxruntime.InferenceSession(self._folder / f"{kind}.onnx", providers=["CPUExecutionProvider"])

        def run(batch: NDArray[np.generic]) -> NDArray[np.float32]:
            (vectors,) = session.run(None, {"input": batch})
            found: NDArray[np.float32] = vectors
            return found

        return run

    def warm(self, kinds: Sequence[str]) -> None:
        """Load the sides called `kinds`, and run each once."""
        if "visual" in kinds:
            self.visual(np.zeros((1, 3, self._size, self._size), np.float32))
        if "textual" in kinds:
            self.text("warm")

    def decode(self, data: bytes) -> Image.Image:
        """Return the picture of a file in RGB."""
        return Image.open(io.BytesIO(data)).convert("RGB")

    def resize(self, image: Image.Image) -> Image.Image:
        """Return the square of a picture that the network sees: open_clip's Resize and CenterCrop."""
        size, bicubic = self._size, Image.Resampling.BICUBIC
        if self._squash:
            return image.resize((size, size), bicubic)
        scale = size / min(image.size)
        width, height = (size if side == min(image.size) else int(scale * side) for side in image.size)
        left, top = round((width - size) / 2), round((height - size) / 2)
        return image.resize((width, height), bicubic).crop((left, top, left + size, top + size))

    def normalise(self, image: Image.Image) -> NDArray[np.float32]:
        """Return a square as the network takes it, (1, 3, S, S)."""
        pixels = (np.asarray(image, np.float32) / 255 - self._mean) / self._std
        return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], dtype=np.float32)

    def picture(self, data: bytes) -> tuple[tuple[int, int], NDArray[np.float32]]:
        """Return the size of the picture in a file, and its vector."""
        image = self.decode(data)
        return image.size, self.visual(self.normalise(self.resize(image)))[0]

    def text(self, text: str) -> NDArray[np.float32]:
        """Return the vector of a text."""
        (vector,) = self.textual(np.asarray([self.tokenizer.encode(text).ids], np.int64))
        found: NDArray[np.float32] = vector
        return found


def create_app(rival: Rival, preload: Sequence[str]) -> web.Application:
    """Return the application; the sides called `preload` are loaded behind it at its start."""
    pool = ThreadPoolExecutor(1)
    loaded = asyncio.Event()

    async def ping(request: web.Request) -> web.Response:
        return web.Response(text="pong")

    async def ready(request: web.Request) -> web.Response:
        return web.Response(status=200 if loaded.is_set() else 503)

    async def predict(request: web.Request) -> web.Response:
        form = await request.post()
        loop = asyncio.get_running_loop()
        image = form.get("image")
        if isinstance(image, web.FileField):
            size, vector = await loop.run_in_executor(pool, rival.picture, image.file.read())
            body = {"clip": _string(vector), "imageWidth": size[0], "imageHeight": size[1]}
        else:
            body = {"clip": _string(await loop.run_in_executor(pool, rival.text, str(form["text"])))}
        return web.Response(body=orjson.dumps(body), content_type="application/json")

    async def warm(app: web.Application) -> AsyncIterator[None]:
        async def load() -> None:
            await asyncio.get_running_loop().run_in_executor(pool, rival.warm, preload)
            loaded.set()

        loading = asyncio.create_task(load())
        yield
        await loading

    app = web.Application(client_max_size=MAX_BODY)
    app.cleanup_ctx.append(warm)
    app.add_routes([web.get("/ping", ping), web.get("/health/ready", ready), web.post("/predict", predict)])
    return app


def _string(vector: NDArray[np.float32]) -> str:
    return orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY).decode()


def main() -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.baseline", description="The baseline of the bench.")
    parser.add_argument("folder", type=Path, help="files of one model, as scripts.bench makes them")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--preload", nargs="*", choices=KINDS, default=[])
    options = parser.parse_args()
    # Requests of clients who are gone are dropped, so that a round does not reach into the next.
    web.run_app(
        create_app(Rival(options.folder), options.preload),
        host="127.0.0.1",
        port=options.port,
        print=None,
        access_log=None,
        handler_cancellation=True,
    )


if __name__ == "__main__":
    main()
