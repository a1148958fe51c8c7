"""OpenVINO: a network traced, converted and compiled for a processor or an Intel GPU.

One file in float32 serves all precisions but int8: OpenVINO casts when it compiles, which takes about a second at each
load. For int8 the file has the rounded weights and the ranges of the activations. OpenVINO could cache what it
compiled, but after the engine was published nothing may be added to its folder. Streams run parts of a batch at the
same time, each on its share of the cores.

OpenVINO itself is imported only when a function is called. Deliberately knows no networks, and not how many threads or
streams are the fastest.
"""

import importlib
import mmap
import queue
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engines import export, intel, machine, quantise
from engines.engine import BackendName, Precision, Spec
from engines.errors import ArtefactBroken, BuildFailed

jit: Any = torch.jit  # most of it has no types

_HINTS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
# OpenVINO keeps what it made for a shape: by default 5,000 pieces, and every photo has sizes of its own. With P-Net on
# 1,200 different sizes that took 660 MB and still grew; with this number 80 MB, and no more after the first 500. It
# holds all pieces of a tower in six batch sizes and three lengths.
_SHAPES_KEPT = 256


class OpenVino:
    """A compiled network; it takes every batch size, and calls by several threads at the same time."""

    backend: BackendName = "openvino"

    def __init__(self, compiled: Callable[[], Any], spec: Spec, weights: mmap.mmap | None = None) -> None:
        """`compiled` makes an openvino.CompiledModel with one input and one output, as often as it is called.

        `weights` is what it was made from: memory that is a file, which may be left whenever it was looked at.
        """
        self.precision = spec.precision
        self.device = spec.device
        self._compiled = compiled
        self._layout = spec.layout
        self._example = np.ascontiguousarray(spec.example[:1])
        self._requests = self._fresh()
        self._renewing = threading.Lock()
        self._weights = weights
        self._packed: set[torch.Size] = set()

    def __call__(self, batch: Tensor) -> Tensor:
        """Run parts of `batch` (rows, …) at the same time, as many as are free; the answer is on the host.

        Raises RuntimeError if a part fails, once all parts have ended.
        """
        requests, taken = self._taken(len(batch))
        try:
            answer = _answer(taken, batch)
        except RuntimeError:
            requests.failed = True
            raise
        finally:
            requests.give_back(taken)
        self._leave_weights(batch.shape[:2])  # a length of texts may be packed for as well
        return answer

    def _taken(self, rows: int) -> tuple["_Requests", list[Any]]:
        """Return requests for a batch of so many rows, and what to give them back to."""
        while True:
            requests = self._requests
            taken = requests.take(rows)
            if not requests.failed:
                return requests, taken
            # OpenVINO was seen to take the sizes of a batch that failed for those of the next.
            requests.give_back(taken)
            with self._renewing:
                if self._requests is requests:
                    self._requests = self._fresh()

    def _fresh(self) -> "_Requests":
        compiled = [self._compiled() for _ in range(self._layout.copies)]
        return _Requests(compiled, self._layout.streams, self._example)

    def _leave_weights(self, shape: torch.Size) -> None:
        """Give up the memory of the weights as they are in the file, once they were packed for `shape`.

        At the first batch of a size OpenVINO makes copies in the order and precision of its kernels, and looks at the
        others no more but for single rows of a table. They come back from the file by themselves if it does.
        """
        if self._weights is not None and shape not in self._packed:
            self._packed.add(shape)
            self._weights.madvise(mmap.MADV_DONTNEED)


class _Requests:
    """The requests that compiled networks can run at the same time.

    They are kept: with new ones for each batch two threads that ran P-Net kept 1.5 of 2 cores busy, with these 1.9.
    """

    def __init__(self, compiled: Sequence[Any], streams: int, example: NDArray[Any]) -> None:
        """Each of `compiled` has so many streams; `example` (1, …) is what an idle request holds instead of a batch."""
        self.compiled = compiled
        self.failed = False
        self._example = intel.openvino().Tensor(example, shared_memory=True)
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for one in compiled:
            for _ in range(streams):
                self._idle.put(one.create_infer_request())

    def take(self, most: int) -> list[Any]:
        """Return at least one request, once there is one, and at most as many as are idle then."""
        taken = [self._idle.get()]
        with suppress(queue.Empty):
            while len(taken) < most:
                taken.append(self._idle.get_nowait())
        return taken

    def give_back(self, requests: Sequence[Any]) -> None:
        """Let others have `requests`, which have ended."""
        for request in requests:
            request.set_input_tensor(self._example)
            self._idle.put(request)


def available(device: torch.device, precision: Precision) -> str | None:
    """Return None, or one sentence that says why OpenVINO cannot be used for `precision` on `device`."""
    if device.type not in ("cpu", "xpu"):
        return f"OpenVINO runs on processors and on GPUs of Intel, not on {device.type}."
    if device.type == "cpu" and precision == "float16":
        return "OpenVINO computes float16 on GPUs of Intel alone: take bfloat16 or float32."
    try:
        intel.openvino()
    except ImportError as error:
        return f"OpenVINO cannot be imported ({error}): pip install 'facet-ml[openvino]'."
    if device.type == "xpu" and str(device.index or 0) not in intel.gpus():
        return (
            f"OpenVINO sees {len(intel.gpus()) or 'no'} Intel GPU, and {device} is asked for: install Intel's compute "
            "runtime, and give /dev/dri to the container."
        )
    return machine.native(precision, device)


def build(module: nn.Module, spec: Spec, folder: Path) -> None:
    """Trace and convert `module` into `folder`, and quantise it for int8; raises BuildFailed."""
    if (reason := available(spec.device, spec.precision)) is not None:
        raise BuildFailed(reason)
    openvino = intel.openvino()
    try:
        model = _converted(module, export.trace_input(spec))
        sizes = [-1, *spec.item]  # -1 is any size: bounds instead save neither time nor memory
        for dimension, _, _ in spec.free:
            sizes[dimension + 1] = -1
        model.reshape(sizes)
        if spec.precision == "int8":
            model = quantise.quantised(model, spec.calibration)
        openvino.save_model(model, _file(spec, folder), compress_to_fp16=False)
    except BuildFailed:
        raise
    except Exception as error:  # a network's own code is run by the tracer, and may raise whatever it likes
        raise BuildFailed(f"OpenVINO cannot convert {spec.network}: {_last_line(error)}") from error


def load(module: nn.Module | None, spec: Spec, folder: Path) -> OpenVino:
    """Return the engine that `build` left in `folder`; raises ArtefactBroken. `module` is not needed."""
    if (reason := available(spec.device, spec.precision)) is not None:
        raise ArtefactBroken(reason)
    file = _file(spec, folder)
    plugin = "CPU" if spec.device.type == "cpu" else f"GPU.{spec.device.index or 0}"
    try:
        # Kept for as long as the engine lives, to compile it again: by then the folder may be gone. What it holds of
        # the weights is a mapping of their file, which stays when the file goes.
        model, weights = _read(file)
        precision = quantise.rest(model, spec.device) if spec.precision == "int8" else spec.precision
        engine = OpenVino(partial(_compiled, model, plugin, _options(spec, precision)), spec, weights)
        engine(spec.example[:1])  # packs the weights, for which no request should wait
        return engine
    except (RuntimeError, OSError) as error:  # files missing, cut off, or of another version
        raise ArtefactBroken(f"{file} cannot be loaded, build it anew: {_last_line(error)}") from error


def _read(file: Path) -> tuple[Any, mmap.mmap | None]:
    """Return the model in `file`, and its weights as memory that can be left, where the system has such."""
    core, weights = intel.openvino().Core(), file.with_suffix(".bin")
    if not hasattr(mmap, "MADV_DONTNEED") or not weights.stat().st_size:
        return core.read_model(file), None
    with weights.open("rb") as opened:
        # Writable for OpenVINO's sake, which never writes there, and private: the file would not see it.
        mapping = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
    tensor = intel.openvino().Tensor(np.frombuffer(mapping, np.uint8), shared_memory=True)
    return core.read_model(file.read_bytes(), tensor), mapping


def _compiled(model: Any, plugin: str, options: dict[str, object]) -> Any:
    return intel.openvino().Core().compile_model(model, plugin, options)


def _options(spec: Spec, precision: Precision) -> dict[str, object]:
    options: dict[str, object] = {
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "PERFORMANCE_HINT": spec.layout.hint.upper(),
        "NUM_STREAMS": spec.layout.streams,
    }
    if spec.device.type == "cpu":
        options |= {
            "INFERENCE_NUM_THREADS": max(1, (spec.layout.threads or machine.cores()) // spec.layout.copies),
            # Threads bound to cores would wait there for those that decode pictures, while other cores are idle.
            "ENABLE_CPU_PINNING": False,
            "CPU_RUNTIME_CACHE_CAPACITY": _SHAPES_KEPT,
        }
    return options


def _converted(module: nn.Module, example: Tensor) -> Any:
    """Return `module` as an openvino.Model; it shares the weights of `module`."""
    # What convert_model calls in the end, without its guesses at what `module` may be and its report to the makers.
    frontend = importlib.import_module("openvino.frontend")
    decoding = importlib.import_module("openvino.frontend.pytorch.ts_decoder")
    with torch.no_grad(), export.without_fast_path(), _quiet_tracer():
        # Its own check would trace again and compare graphs; the gate compares results, and of other sizes.
        traced = jit.trace(module, example, check_trace=False)
    # A name of its own: the converter calls it without keeping it alive.
    decoder = decoding.TorchScriptPythonDecoder(traced, example_input=(example,))
    converter = frontend.FrontEndManager().load_by_framework("pytorch")
    return converter.convert(converter.load(decoder))


@contextmanager
def _quiet_tracer() -> Iterator[None]:
    with warnings.catch_warnings():
        # The tracer warns of every size that Python code looks at. The gate runs all sizes that are in use.
        warnings.simplefilter("ignore", jit.TracerWarning)
        # From torch 2.10 on. OpenVINO's other way in, torch.export, is newer and weak in free sizes.
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated")
        # The tracer reads all attributes of a module, also those that transformers would rather have nobody read.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def _answer(requests: Sequence[Any], batch: Tensor) -> Tensor:
    """Return what `requests` say to a part of `batch` each; raise what the first that failed did, once all ended."""
    # On a GPU of Intel the batch is on the host as well: OpenVINO copies it over.
    parts = batch.cpu().contiguous().tensor_split(len(requests))
    for request, part in zip(requests, parts, strict=True):
        request.set_input_tensor(intel.openvino().Tensor(part.numpy(), shared_memory=True))
    if len(requests) == 1:
        requests[0].infer(share_outputs=True)  # on this thread: another would have to be woken, and this one wait
    else:
        _run(requests)
    # The outputs are memory of the requests, which is used again: cat copies, also a single one.
    return torch.cat([torch.from_numpy(request.get_output_tensor().data) for request in requests])


def _run(requests: Sequence[Any]) -> None:
    """Run `requests` until all have ended; raise what the first of those that failed did."""
    running = []
    try:
        for request in requests:
            request.start_async()
            running.append(request)
    finally:
        _wait(running)


def _wait(requests: Sequence[Any]) -> None:
    """Wait until all `requests` have ended; raise what the first of those that failed did."""
    errors = []
    for request in requests:
        try:
            request.wait()
        except RuntimeError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def _file(spec: Spec, folder: Path) -> Path:
    return folder / f"{spec.network}.xml"


def _last_line(error: Exception) -> str:
    """Return what went wrong: before that OpenVINO says in which lines of its source it noticed."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"
