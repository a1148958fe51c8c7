"""What is read from the server when somebody asks for its metrics: queues, models, room, memory of the GPUs.

Knows where each of these states lives, and counts nothing itself. Everything here runs on the event loop.
"""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

from server import metrics
from server.budget import Budget
from server.door import Door
from server.metrics import Metric
from server.shelf import Shelf

GpuBytes = Callable[[], Mapping[str, Mapping[str, int]]]


class Gauges(Collector):
    """The states of one application, as metrics."""

    def __init__(
        self, shelf: Shelf, door: Door, pixels: Budget, is_ready: Callable[[], bool], gpu_bytes: GpuBytes
    ) -> None:
        """`gpu_bytes` returns, for each GPU by its name, the bytes of its memory in each state."""
        self._shelf = shelf
        self._door = door
        self._pixels = pixels
        self._is_ready = is_ready
        self._gpu_bytes = gpu_bytes

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield each gauge with what it is now."""
        yield _gauge(metrics.INSIDE, {(): self._door.inside})
        yield _gauge(metrics.READY, {(): self._is_ready()})
        yield _gauge(metrics.PIXELS_HELD, {(): self._pixels.used})
        yield _gauge(metrics.PICTURES_WAITING, {(): self._pixels.waiting})
        items: dict[tuple[str, ...], float] = {}
        weight: dict[tuple[str, ...], float] = {}
        size: dict[tuple[str, ...], float] = {}
        for one in self._shelf.loaded():
            info = one.model.info
            part = (one.part.entry.name, one.part.kind)  # as it is asked for: several may share a network
            items[(*part, one.queue.lane.value)] = one.queue.items
            weight[(*part, one.queue.lane.value)] = one.queue.weight
            size[(*part, one.scheduler.name, info.backend, info.precision)] = one.bytes
        yield _gauge(metrics.QUEUE_ITEMS, items)
        yield _gauge(metrics.QUEUE_WEIGHT, weight)
        yield _gauge(metrics.MODEL_BYTES, size)
        memory: dict[tuple[str, ...], float] = {
            (device, state): value for device, states in self._gpu_bytes().items() for state, value in states.items()
        }
        yield _gauge(metrics.GPU_MEMORY, memory)


def _gauge(metric: Metric, values: Mapping[tuple[str, ...], float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family
