"""What passes the gate is published with its report and timings; what does not is refused, and the reason kept."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engines import builder, catalog, clip, engine, faces, samples
from engines.engine import BackendName, Subject
from engines.errors import ArtefactBroken, BuildFailed
from engines.model import Config
from engines.store import Store
from tests.engines import broken_backends
from tests.engines.broken_backends import Broken, Fault, faithful

CPU = torch.device("cpu")
QUICK = builder.Effort(rounds=1, seconds=0.0, most=8, patience=60.0)


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return clip.visual_subject(catalog.clip("demo"), Config(tmp_path_factory.mktemp("cache")), CPU)


@pytest.fixture(scope="module")
def detector() -> Subject:
    """Examined on three small pictures, so that a test takes seconds."""
    portrait, _, tall, *_, white = samples.crowds()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "crowds", lambda: (portrait[:240, 100:360], tall[:400], white))
        return faces.detector_subject(CPU)


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Broken], Broken]:
    """Put a backend in the place of torchscript."""

    def put(backend: Broken) -> Broken:
        def named(name: BackendName) -> engine.Backend:
            return engine.backend_named(name) if name == "eager" else backend

        monkeypatch.setattr(builder, "backend_named", named)
        return backend

    return put


def test_what_passes_is_published_with_all_that_was_measured(
    tower: Subject, tmp_path: Path, use: Callable[[Broken], Broken]
) -> None:
    use(Broken(faithful))
    store = Store(tmp_path / "engines")
    stages: list[str] = []
    stored = builder.build(tower, "torchscript", "float32", store, QUICK, tell=stages.append)
    assert [found.folder for found in store.all()] == [stored.folder]
    manifest = stored.manifest
    assert manifest.report.passed
    assert manifest.report.lowest_cosine > 0.99999
    assert list(manifest.timings) == list(manifest.reference_timings) == [1, 2, 4, 8]
    assert all(rate > 0 for rate in (*manifest.timings.values(), *manifest.reference_timings.values()))
    assert (stored.folder / "visual.bin").read_bytes() == b"compiled visual"
    assert [stage for stage in stages if "examined" in stage or "timed" in stage] == ["is examined", "is timed"]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (broken_backends.one_wrong_row, "a row in a batch of 3"),
        (broken_backends.swapped_rows, "a row in a batch of 2"),
        (broken_backends.drift_with_the_batch_size, "a row in a batch of 8"),
        (broken_backends.nan_in_large_batches, "finite"),
    ],
)
def test_every_sort_of_broken_backend_is_refused(
    tower: Subject, tmp_path: Path, use: Callable[[Broken], Broken], fault: Fault, reason: str
) -> None:
    backend = use(Broken(fault))
    store = Store(tmp_path / "engines")
    with pytest.raises(BuildFailed, match=reason):
        builder.build(tower, "torchscript", "float32", store, QUICK)
    assert store.all() == []
    with pytest.raises(BuildFailed, match=reason):  # it is not compiled a second time
        builder.build(tower, "torchscript", "float32", store, QUICK)
    assert backend.builds == 1
    use(Broken(faithful))
    assert builder.build(tower, "torchscript", "float32", store, QUICK, again=True).manifest.report.passed


@pytest.mark.parametrize(
    "fault",
    [
        lambda output: output + 0.3 if len(output) > 4 else output,  # crops of large batches are misjudged
        lambda output: output * float("nan"),
        lambda output: output.flip(0),
        lambda output: output * 0 if len(output) == 3 else output,  # no picture of the gate has so few crops
        lambda output: output * torch.tensor([1, 1, 1, 1, 0.99])[None, :, *[None] * (output.ndim - 2)],
    ],
)
def test_a_detector_that_finds_other_faces_is_refused(
    detector: Subject, tmp_path: Path, use: Callable[[Broken], Broken], fault: Fault
) -> None:
    use(Broken(fault))
    with pytest.raises(BuildFailed, match=r"faces|overlaps|score|row|spread"):
        builder.build(detector, "torchscript", "float32", Store(tmp_path / "engines"), QUICK)


def test_a_detector_that_finds_the_same_faces_passes(
    detector: Subject, tmp_path: Path, use: Callable[[Broken], Broken]
) -> None:
    use(Broken(faithful))
    stored = builder.build(detector, "torchscript", "float32", Store(tmp_path / "engines"), QUICK)
    assert sorted(stored.manifest.files) == ["output.bin", "proposal.bin", "refine.bin"]
    assert sum(len(boxes) for boxes, _ in detector.expected) >= 3
    assert stored.manifest.report.lowest_cosine > 0.999


def test_what_is_there_is_not_built_again_and_what_was_damaged_is(
    tower: Subject, tmp_path: Path, use: Callable[[Broken], Broken]
) -> None:
    backend = use(Broken(faithful))
    store = Store(tmp_path / "engines")
    stored = builder.build(tower, "torchscript", "float32", store, QUICK)
    assert builder.build(tower, "torchscript", "float32", store, QUICK) == stored
    assert backend.builds == 1
    (stored.folder / "visual.bin").write_bytes(b"")
    with pytest.raises(ArtefactBroken):
        store.verify(stored)
    store.verify(builder.build(tower, "torchscript", "float32", store, QUICK))
    assert backend.builds == 2


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        (Broken(faithful, fails=True), "does not know an operation"),
        (Broken(broken_backends.fails_in_large_batches), "does not run: RuntimeError: the shape was baked in"),
    ],
)
def test_what_cannot_be_compiled_or_run_is_told_and_may_be_tried_again(
    tower: Subject, tmp_path: Path, use: Callable[[Broken], Broken], backend: Broken, reason: str
) -> None:
    use(backend)
    store = Store(tmp_path / "engines")
    for _ in range(2):  # memory may have been short
        with pytest.raises(BuildFailed, match=reason):
            builder.build(tower, "torchscript", "float32", store, QUICK)
    assert backend.builds == 2
    assert store.all() == []


def test_an_absent_backend_says_why(tower: Subject, tmp_path: Path, use: Callable[[Broken], Broken]) -> None:
    use(Broken(faithful, reason="It is not installed."))
    with pytest.raises(BuildFailed, match="not installed"):
        builder.build(tower, "torchscript", "float32", Store(tmp_path / "engines"), QUICK)


def test_a_start_is_not_held_up_by_a_slow_network(tmp_path: Path, use: Callable[[Broken], Broken]) -> None:
    backend = use(Broken(faithful))
    fresh = clip.visual_subject(catalog.clip("demo"), Config(tmp_path), CPU)
    impatient = builder.Effort(rounds=1, seconds=0.0, most=8, patience=0.0)
    store = Store(tmp_path / "engines")
    with pytest.raises(BuildFailed, match="hold the start up"):
        builder.build(fresh, "torchscript", "float32", store, impatient)
    assert backend.builds == 0
    assert "expected" not in vars(fresh)  # not even its answers were waited for
    # That was no fault of the engine: with more time it is built.
    assert builder.build(fresh, "torchscript", "float32", store, QUICK).manifest.report.passed


def test_only_the_buckets_that_were_asked_for_are_built(
    tower: Subject, tmp_path: Path, use: Callable[[Broken], Broken]
) -> None:
    use(Broken(faithful))
    seen: list[int] = []

    def note(output: Tensor) -> Tensor:
        seen.append(len(output))
        return output

    use(Broken(note))
    stored = builder.build(tower, "torchscript", "float32", Store(tmp_path / "engines"), QUICK, buckets=(1, 4))
    assert list(stored.manifest.timings) == [1, 4]
    assert set(seen) == {1, 4}
