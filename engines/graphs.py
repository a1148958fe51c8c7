"""The launches of a batch, recorded once per shape as a CUDA graph and then replayed as one.

A network is hundreds of kernels, and small batches wait for the processor that launches them more than for arithmetic.
A replay runs the very kernels that were recorded, in their order: an engine is wrapped as soon as it is loaded, so that
what is examined, timed and served is the same.

Recorded are the buckets of engines with at most one free size: texts come in few lengths, pictures of a detector in all
sizes. TensorRT is left out: its plans launch little, and a graph holds only as long as the execution context keeps its
shape, of which the runtime of torch-tensorrt has one per plan. Knows neither networks nor queues.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engines.engine import BackendName, Engine, Spec

log = logging.getLogger(__name__)

BACKENDS: tuple[BackendName, ...] = ("eager", "torchscript", "inductor")
MOST_RECORDINGS = 48  # the buckets 1 to 32 at eight lengths: what comes in more shapes is not recorded
# The first run makes handles and workspaces and chooses kernels, none of which can be done while recording.
WARM_UPS = 2
# CUDA refuses to wait for a GPU while something is recorded on it, and each recording begins with such a wait.
_ONE_AT_A_TIME = threading.Lock()
# Up to torch 2.12 the allocators keep a pointer to a recording that failed and look at it at every allocation, so such
# ones must never be freed. Each engine fails once at most.
_failed: list[Any] = []


class NotRecorded(Exception):
    """CUDA refused to record an operation of the network."""


class NoRoom(NotRecorded):
    """The GPU has too little memory left for the recording of one shape."""


@dataclass(frozen=True, slots=True)
class Recording:
    """The launches for one shape: `replay` reads `inputs` and writes `output`, always in the same memory."""

    inputs: Tensor
    output: Tensor
    replay: Callable[[], None]


class Graphed:
    """An engine whose batches are replayed where they can be, and run as they are where not."""

    def __init__(self, engine: Engine, spec: Spec, record: Callable[[Tensor], Recording]) -> None:
        self.backend = engine.backend
        self.precision = engine.precision
        self.device = engine.device
        self._engine = engine
        self._spec = spec
        self._record: Callable[[Tensor], Recording] | None = record
        self._recordings: dict[tuple[torch.Size, torch.dtype], Recording | None] = {}

    @torch.inference_mode()
    def __call__(self, batch: Tensor) -> Tensor:
        """Compute `batch` (rows, *item) as the engine does; raises what the engine raises."""
        recording = self._recording_for(batch)
        if recording is None:
            return self._engine(batch)
        recording.inputs.copy_(batch, non_blocking=True)
        recording.replay()
        # Whoever keeps an output, as the detector its crops', need not know that the next replay writes to that place.
        return recording.output.clone()

    def _recording_for(self, batch: Tensor) -> Recording | None:
        key = batch.shape, batch.dtype
        if key in self._recordings:
            return self._recordings[key]
        if self._record is None or len(batch) not in self._spec.buckets or len(self._recordings) >= MOST_RECORDINGS:
            return None
        try:
            self._recordings[key] = self._record(batch)
        except NotRecorded as error:
            log.warning("%s runs without a CUDA graph at %s: %s", self._spec.network, tuple(batch.shape), error)
            self._recordings[key] = None
            if not isinstance(error, NoRoom):
                self._record = None  # its operations are the same at all sizes
        return self._recordings[key]


class Recorder:
    """Records an engine on a GPU. All recordings share memory for what lies between input and output.

    Sharing is safe since they are replayed one after another, on the stream of the caller. What is recorded keeps its
    memory; `most_rows` is the fullest batch, for which there must be room beside it.
    """

    def __init__(self, engine: Engine, most_rows: int) -> None:
        cuda: Any = torch.cuda  # most of it has no types
        self._engine = engine
        self._most_rows = most_rows
        self._device = engine.device
        self._stream = cuda.Stream(engine.device)
        self._pool = cuda.graph_pool_handle()

    def __call__(self, batch: Tensor) -> Recording:
        """Record the launches for the shape of `batch`, on the host or the device.

        Raises NoRoom and NotRecorded; what the engine itself raises while it warms up, as that there is no memory for
        such a batch at all, is not caught.
        """
        with _ONE_AT_A_TIME, torch.cuda.device(self._device):
            inputs = torch.empty(batch.shape, dtype=batch.dtype, device=self._device)
            inputs.copy_(batch)
            needed = self._warm_up(inputs)
            torch.cuda.empty_cache()  # the recording takes memory of its own
            free, _ = torch.cuda.mem_get_info(self._device)
            wanted = needed + needed * self._most_rows // len(batch)
            if free < wanted:
                raise NoRoom(f"with room for a full batch beside it it needs {wanted >> 20} MiB, {free >> 20} are free")
            return self._recorded(inputs)

    def _warm_up(self, inputs: Tensor) -> int:
        """Run the engine where it will be recorded; return the most bytes that it took beside its weights."""
        before = torch.cuda.memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        self._stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UPS):
                    self._engine(inputs)
        finally:
            self._stream.synchronize()  # else `inputs`, which belong to the caller's stream, might go too early
        return torch.cuda.max_memory_allocated(self._device) - before

    def _recorded(self, inputs: Tensor) -> Recording:
        graph = torch.cuda.CUDAGraph()
        try:
            # The outer one gives the caller its stream back also where the end of a recording raises.
            # "thread_local": another thread may allocate meanwhile, for another model.
            with (
                torch.cuda.stream(self._stream),
                torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"),
            ):
                output = self._engine(inputs)
        except torch.cuda.OutOfMemoryError as error:
            raise NoRoom("another program or thread took the memory for it meanwhile") from error
        except RuntimeError as error:  # what CUDA raises, at an operation or at the end
            _failed.append(graph)
            self._leave_pool()
            raise NotRecorded(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}") from error
        return Recording(inputs, output, graph.replay)

    def _leave_pool(self) -> None:
        """Tell PyTorch's allocator that nothing is recorded any longer.

        Up to torch 2.12 it is not told if the end of a recording raises, and gives back no memory from then on.
        """
        end: Any = torch._C._cuda_endAllocateToPool
        try:
            end(torch.cuda.current_device(), self._pool)
        except RuntimeError as error:  # it was told already
            log.debug("the allocator knew: %s", error)


def recorded(engine: Engine, spec: Spec) -> Engine:
    """Return `engine` so that its batches are replayed, where its backend, device and sizes allow it, else itself."""
    if engine.device.type != "cuda" or engine.backend not in BACKENDS or len(spec.free) > 1:
        return engine
    return Graphed(engine, spec, Recorder(engine, spec.buckets[-1]))
