"""What is counted: every metric once, and where the server tells of it.

Knows Prometheus' client and its conventions: seconds, bytes, `_total`. One registry for each application, so that two
in one process count for themselves. What is no event but a state is read when somebody asks: see gauges.py.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder

from server.observer import CUTS, DROPS, REFUSALS, Cut, Dropped, Observer, Refused
from server.stopwatch import PHASES, Phase

# The client writes beside each counter when it was made, which doubles what is stored and tells nothing here.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # it takes and returns nothing


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: its name as Prometheus shows it, what it says, and its labels."""

    name: str
    type: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()


_PART = ("model", "kind")
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
ITEMS = (1, 2, 4, 8, 16, 32, 64)

REQUESTS = Metric("facet_requests_total", "counter", "Requests answered.", ("route", "status"))
REQUEST_SECONDS = Metric("facet_request_seconds", "histogram", "Seconds from a request to its answer.", ("route",))
CANCELLED = Metric("facet_requests_cancelled_total", "counter", "Requests whose client hung up.", ("route",))
INSIDE = Metric("facet_requests_inside", "gauge", "Predictions that are being answered now.")
PHASE_SECONDS = Metric(
    "facet_phase_seconds",
    "histogram",
    "Seconds that a request spent in a phase: reading, decoding, preparing, waiting, running on the device, writing.",
    ("phase",),
)
QUEUE_ITEMS = Metric("facet_queue_items", "gauge", "Inputs that wait for a model now.", (*_PART, "lane"))
QUEUE_WEIGHT = Metric(
    "facet_queue_weight",
    "gauge",
    "Weight of what waits for a model now: pixels for detection and for JPEGs that the GPU decodes, else 1 each.",
    (*_PART, "lane"),
)
BATCH_ITEMS = Metric("facet_batch_items", "histogram", "Inputs in a batch.", _PART)
BATCH_SECONDS = Metric("facet_batch_seconds", "histogram", "Seconds of a batch on the device.", _PART)
BATCHES = Metric(
    "facet_batches_total",
    "counter",
    "Batches by why they were cut: `full` is the largest there is, `weight` that the next input was too heavy, "
    "`bucket` a smaller size that is well filled, `all` that nothing was left.",
    (*_PART, "reason"),
)
DROPPED = Metric(
    "facet_items_dropped_total",
    "counter",
    "Inputs that were not computed: their request was `given_up` (its client hung up, its time was over, or something "
    "else of it failed), their model `unloaded`, or its device `closed`.",
    (*_PART, "reason"),
)
REFUSED = Metric(
    "facet_items_refused_total",
    "counter",
    "Inputs turned away from a full queue: too many `items`, too much `weight`, too many `seconds` of work.",
    (*_PART, "reason"),
)
FAILED = Metric(
    "facet_items_failed_total", "counter", "Inputs on which a model failed, by the error.", (*_PART, "reason")
)
MODEL_BYTES = Metric(
    "facet_model_bytes",
    "gauge",
    "Bytes of the weights of a model in memory, on all its devices.",
    (*_PART, "device", "engine", "precision"),
)
LOADS = Metric(
    "facet_model_loads_total", "counter", "Models that were `loaded`, or `failed` to be.", (*_PART, "outcome")
)
SWAPS = Metric(
    "facet_engine_swaps_total", "counter", "Engines that took the place of another while the model was in use.", _PART
)
DOWNLOADS = Metric(
    "facet_downloads_total", "counter", "Files of weights that were `fetched`, or `failed`.", ("outcome",)
)
DOWNLOAD_BYTES = Metric("facet_download_bytes_total", "counter", "Bytes of weights that came.")
PIXELS = Metric("facet_decoded_pixels_total", "counter", "Pixels decoded by the processor.")
PIXELS_HELD = Metric("facet_decoded_pixels_held", "gauge", "Pixels held decoded now.")
PICTURES_WAITING = Metric("facet_pictures_waiting", "gauge", "Pictures that wait for room to be decoded.")
READY = Metric("facet_ready", "gauge", "Whether /health/ready says yes.")
PROOFS = Metric(
    "facet_proofs_total",
    "counter",
    "Small inputs by which a model proved itself (`passed`), or did not (`failed`).",
    ("outcome",),
)
GPU_MEMORY = Metric(
    "facet_gpu_memory_bytes",
    "gauge",
    "Memory of a GPU: `total`, `used` by all processes, `reserved` by this one, `allocated` to its tensors.",
    ("device", "state"),
)
METRICS = (
    REQUESTS,
    REQUEST_SECONDS,
    CANCELLED,
    INSIDE,
    PHASE_SECONDS,
    QUEUE_ITEMS,
    QUEUE_WEIGHT,
    BATCH_ITEMS,
    BATCH_SECONDS,
    BATCHES,
    DROPPED,
    REFUSED,
    FAILED,
    MODEL_BYTES,
    LOADS,
    SWAPS,
    DOWNLOADS,
    DOWNLOAD_BYTES,
    PIXELS,
    PIXELS_HELD,
    PICTURES_WAITING,
    READY,
    PROOFS,
    GPU_MEMORY,
)


class Metrics:
    """The counters of one application. Any thread may call them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self.registry)
        self._requests = self._counter(REQUESTS)
        self._request_seconds = self._histogram(REQUEST_SECONDS, SECONDS)
        self._cancelled = self._counter(CANCELLED)
        phases = self._histogram(PHASE_SECONDS, SECONDS)
        self._phases = {phase: phases.labels(phase) for phase in PHASES}
        self.batch_items = self._histogram(BATCH_ITEMS, ITEMS)
        self.batch_seconds = self._histogram(BATCH_SECONDS, SECONDS)
        self.batches = self._counter(BATCHES)
        self.dropped = self._counter(DROPPED)
        self.refused = self._counter(REFUSED)
        self.failed = self._counter(FAILED)
        self.swaps = self._counter(SWAPS)
        self._loads = self._counter(LOADS)
        downloads = self._counter(DOWNLOADS)
        self._downloads = {ok: downloads.labels("fetched" if ok else "failed") for ok in (True, False)}
        self._download_bytes = self._counter(DOWNLOAD_BYTES)
        self._pixels = self._counter(PIXELS)
        proofs = self._counter(PROOFS)
        self._proofs = {ok: proofs.labels("passed" if ok else "failed") for ok in (True, False)}

    def _counter(self, metric: Metric) -> Counter:
        return Counter(metric.name, metric.help, metric.labels, registry=self.registry)

    def _histogram(self, metric: Metric, buckets: Sequence[float]) -> Histogram:
        return Histogram(metric.name, metric.help, metric.labels, registry=self.registry, buckets=buckets)

    def answered(self, route: str, status: int, seconds: float, phases: dict[Phase, float], pixels: int) -> None:
        """One request was answered."""
        self._requests.labels(route, status).inc()
        self._request_seconds.labels(route).observe(seconds)
        self._spent(phases, pixels)

    def unread(self, status: int) -> None:
        """What came on a connection was answered with an error before it was a request."""
        self._requests.labels("other", status).inc()

    def cancelled(self, route: str, phases: dict[Phase, float], pixels: int) -> None:
        """The client of one request hung up."""
        self._cancelled.labels(route).inc()
        self._spent(phases, pixels)

    def _spent(self, phases: dict[Phase, float], pixels: int) -> None:
        for phase, seconds in phases.items():
            self._phases[phase].observe(seconds)
        if pixels:
            self._pixels.inc(pixels)

    def loaded(self, model: str, kind: str, ok: bool) -> None:
        """A model was loaded, or could not be."""
        self._loads.labels(model, kind, "loaded" if ok else "failed").inc()

    def received(self, size: int) -> None:
        """So many bytes of weights have come."""
        self._download_bytes.inc(size)

    def fetched(self, ok: bool) -> None:
        """One file of weights came, or was given up."""
        self._downloads[ok].inc()

    def proved(self, ok: bool) -> None:
        """An idle model proved itself, or did not."""
        self._proofs[ok].inc()

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """Return all metrics as text, and its content type, in the format that an Accept header asks for."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type


class QueueMetrics(Observer):
    """Counts for the queue of one model."""

    def __init__(self, metrics: Metrics, model: str, kind: str) -> None:
        def each(counter: Counter, reasons: Iterable[str]) -> dict[str, Callable[[float], None]]:
            """Return how to count each reason, with its labels looked up."""
            return {reason: counter.labels(model, kind, reason).inc for reason in reasons}

        self._cuts = each(metrics.batches, CUTS)
        self._drops = each(metrics.dropped, DROPS)
        self._refusals = each(metrics.refused, REFUSALS)
        self._items = metrics.batch_items.labels(model, kind)
        self._seconds = metrics.batch_seconds.labels(model, kind)
        self._swaps = metrics.swaps.labels(model, kind)
        self._failed = metrics.failed
        self._part = (model, kind)

    def refused(self, reason: Refused) -> None:
        """Count an item that was turned away."""
        self._refusals[reason](1)

    def dropped(self, items: int, reason: Dropped) -> None:
        """Count items that are not computed."""
        self._drops[reason](items)

    def cut(self, items: int, reason: Cut) -> None:
        """Count a batch."""
        self._cuts[reason](1)
        self._items.observe(items)

    def ran(self, seconds: float, errors: Sequence[Exception]) -> None:
        """Count its seconds and its failures."""
        self._seconds.observe(seconds)
        for error in errors:
            self._failed.labels(*self._part, type(error).__name__).inc()

    def swapped(self) -> None:
        """Count a change of engines."""
        self._swaps.inc()
