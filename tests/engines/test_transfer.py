"""Batches reach the engine whole and padded, results come back in order; on a slow bus as well."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.overrides import TorchFunctionMode

from engines.transfer import Transfer

BUCKETS = (1, 2, 4, 8)
GPU = torch.device("cuda", 1)


def pictures(count: int, seed: int = 0) -> list[NDArray[np.uint8]]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, 5, 4, 3), dtype=np.uint8))


def sums(batch: Tensor) -> Tensor:
    return batch.flatten(1).sum(1, keepdim=True).float()


def expected(items: Sequence[NDArray[Any]]) -> list[float]:
    return [float(item.sum(dtype=np.int64)) for item in items]


class Stream:
    """A queue of work that is done only when somebody waits for it."""

    def __init__(self, device: object) -> None:
        self.device = device
        self.queued: list[Callable[[], object]] = []

    def wait_event(self, event: "Event") -> None:
        event.reach()


class Event:
    """A mark in a stream; `waits` counts how often the processor itself waited for one."""

    waits = 0
    current: Stream

    def __init__(self, blocking: bool = False) -> None:
        self.blocking = blocking

    def record(self) -> None:
        self.stream = Event.current
        self.before = len(self.stream.queued)

    def reach(self) -> None:
        for work in self.stream.queued[: self.before]:
            work()

    def synchronize(self) -> None:
        Event.waits += 1
        self.reach()


class SlowBus(TorchFunctionMode):
    """A pretended GPU: its tensors lie on the host and hold 99 until what was queued to fill them is done."""

    def __init__(self) -> None:
        super().__init__()
        self.pinned = 0
        self.full = False
        self.kept: list[tuple[Tensor, Stream]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Do `func`, but put copies between host and device off."""
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            self.pinned += bool(kwargs.pop("pin_memory", False))
            return func(*args, **kwargs).fill_(99)
        if func is Tensor.to:
            if self.full:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
            assert args[1] == GPU
            target = torch.full_like(args[0], 99)
            Event.current.queued.append(lambda: target.copy_(args[0]))
            assert kwargs.pop("non_blocking")
            return target
        if func is Tensor.copy_ and kwargs.pop("non_blocking", False):
            Event.current.queued.append(lambda: args[0].copy_(args[1]))
            return args[0]
        return func(*args, **kwargs)


@pytest.fixture
def bus(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowBus]:
    computing = Stream(GPU)

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        before, Event.current = Event.current, stream
        yield
        Event.current = before

    @contextmanager
    def on_device(device: object) -> Iterator[None]:
        assert device == GPU
        with on(computing):
            yield

    Event.waits = 0
    Event.current = Stream("another GPU")
    for name, fake in {"Stream": Stream, "Event": Event, "stream": on, "device": on_device}.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Event.current)
    with SlowBus() as slow:
        # Not a case of __torch_function__: this method looks at the stream first, and wants a real one.
        monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: slow.kept.append((tensor, stream)))
        yield slow


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_a_batch_is_padded_to_its_bucket_and_its_real_rows_come_back(count: int) -> None:
    transfer = Transfer(torch.device("cpu"), BUCKETS)
    items = pictures(count)
    upload = transfer.upload(items)
    assert upload.batch.dtype == torch.uint8
    assert len(upload.batch) in BUCKETS
    assert np.array_equal(upload.batch[count - 1 :].numpy()[-1], items[-1]), "the padding is a copy of the last row"
    output = transfer.run(sums, upload)
    assert output.dtype == np.float32
    assert output[:, 0].tolist() == expected(items)


def test_ids_keep_their_dtype() -> None:
    ids = [np.array([7, 2**40], dtype=np.int64)] * 3
    upload = Transfer(torch.device("cpu"), BUCKETS).upload(ids)
    assert upload.batch.dtype == torch.int64
    assert upload.batch.tolist() == [[7, 2**40]] * 4


def test_items_may_be_read_only_and_are_free_again_at_once() -> None:
    items = pictures(2)
    items[0].setflags(write=False)
    wanted = expected(items)
    transfer = Transfer(torch.device("cpu"), BUCKETS)
    upload = transfer.upload(items)
    items[1][:] = 0
    assert transfer.run(sums, upload)[:, 0].tolist() == wanted


def test_results_stay_what_they_were_if_the_engine_reuses_its_buffer() -> None:
    buffer = torch.zeros(1, 1)

    def reusing(batch: Tensor) -> Tensor:
        return buffer.copy_(sums(batch))

    transfer = Transfer(torch.device("cpu"), BUCKETS)
    items = pictures(2)
    results = [transfer.run(reusing, transfer.upload([item])) for item in items]
    assert [float(result[0, 0]) for result in results] == expected(items)


@pytest.mark.parametrize(
    ("items", "reason"),
    [(pictures(9), "more than the largest bucket"), ([*pictures(1), np.zeros((2, 2, 3), np.uint8)], "shape")],
)
def test_what_makes_no_batch_is_refused(items: list[NDArray[np.uint8]], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Transfer(torch.device("cpu"), BUCKETS).upload(items)


def test_on_a_slow_bus_nothing_is_read_before_it_arrived(bus: SlowBus) -> None:
    transfer = Transfer(GPU, BUCKETS)
    first, second = pictures(3, 1), pictures(8, 2)
    running, ahead = transfer.upload(first), transfer.upload(second)
    assert bool((running.batch == 99).all()), "the copy is under way and nobody waited for it"
    assert transfer.run(sums, running)[:, 0].tolist() == expected(first)
    assert transfer.run(sums, ahead)[:, 0].tolist() == expected(second)


def test_a_batch_costs_one_synchronisation_and_two_pinned_blocks(bus: SlowBus) -> None:
    transfer = Transfer(GPU, BUCKETS)
    uploads = [transfer.upload(pictures(count)) for count in (1, 2, 3)]
    assert Event.waits == 0, "sending waits for nothing"
    for number, upload in enumerate(uploads, start=1):
        transfer.run(sums, upload)
        assert Event.waits == number
    assert bus.pinned == 2 * len(uploads)


def test_a_batch_is_computed_on_its_own_device_and_its_memory_kept_until_then(bus: SlowBus) -> None:
    transfer = Transfer(GPU, BUCKETS)
    streams = []

    def engine(batch: Tensor) -> Tensor:
        streams.append(Event.current)
        return sums(batch)

    upload = transfer.upload(pictures(2))
    transfer.run(engine, upload)
    assert streams[0].device == GPU
    (kept,) = bus.kept
    assert kept[0] is upload.batch
    assert kept[1] is streams[0]


def test_a_batch_for_which_the_device_has_no_room_is_left_on_the_host(bus: SlowBus) -> None:
    transfer = Transfer(GPU, BUCKETS)
    items = pictures(4)
    bus.full = True
    upload = transfer.upload(items)
    bus.full = False
    assert upload.arrived is None
    assert transfer.run(sums, upload)[:, 0].tolist() == expected(items)


def test_a_batch_that_fails_leaves_the_next_one_alone(bus: SlowBus) -> None:
    transfer = Transfer(GPU, BUCKETS)
    items = pictures(4)

    def broken(batch: Tensor) -> Tensor:
        raise ZeroDivisionError

    failing, following = transfer.upload(items), transfer.upload(items)
    with pytest.raises(ZeroDivisionError):
        transfer.run(broken, failing)
    assert transfer.run(sums, following)[:, 0].tolist() == expected(items)


def test_batches_sent_by_one_thread_while_another_one_runs_keep_their_rows() -> None:
    transfer = Transfer(torch.device("cpu"), BUCKETS)
    wrong: list[int] = []

    def send_and_run(seed: int) -> None:
        for turn in range(50):
            items = pictures(1 + (seed + turn) % 8, seed * 100 + turn)
            if transfer.run(sums, transfer.upload(items))[:, 0].tolist() != expected(items):
                wrong.append(turn)

    threads = [Thread(target=send_and_run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
