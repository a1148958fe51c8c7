"""What passes the gate is published with its report and timings; what does not is refused, and the reason kept."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from engines import builder, catalog, clip, engine, faces, machine, samples
from engines.choice import choose
from engines.engine import BackendName, Engine, Precision, Spec, Subject
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


def test_int8_is_calibrated_and_other_precisions_are_not(
    tower: Subject, tmp_path: Path, use: Callable[[Broken], Broken]
) -> None:
    seen: list[int] = []

    class Noting(Broken):
        def build(self, module: nn.Module, spec: Spec, folder: Path) -> None:
            seen.append(len(spec.calibration))
            super().build(module, spec, folder)

    use(Noting(faithful))
    store = Store(tmp_path / "engines")
    precisions: tuple[Precision, ...] = ("int8", "float32")
    keys = [builder.build(tower, "torchscript", one, store, QUICK, buckets=(1, 2)).manifest.key for one in precisions]
    assert seen == [len(tower.calibration()), 0]
    assert keys[0].calibration.startswith(f"{seen[0]} inputs ")
    assert keys[1].calibration == ""


def test_the_detector_is_refused_int8_in_a_sentence(
    detector: Subject, tmp_path: Path, use: Callable[[Broken], Broken]
) -> None:
    backend = use(Broken(faithful))
    with pytest.raises(BuildFailed, match=r"^No int8: the detector is not built in it, since .*\.$"):
        builder.build(detector, "torchscript", "int8", Store(tmp_path / "engines"), QUICK)
    assert backend.builds == 0


@pytest.fixture
def _processor_with_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO computes int8 also without the instructions for it, only slower."""
    monkeypatch.setattr(machine, "native", lambda precision, device: None)


@pytest.mark.usefixtures("_processor_with_int8")
def test_int8_that_passes_on_other_inputs_is_published_and_runs(tower: Subject, tmp_path: Path) -> None:
    config = Config(tmp_path, engine="openvino", precision="int8")
    stored = builder.build(tower, "openvino", "int8", Store(tmp_path / "engines"), QUICK, buckets=(1, 4))
    report = stored.manifest.report
    assert 0.999 <= report.lowest_cosine < 0.999999
    assert report.lowest_same > 0.9999  # a row alone, in full and odd batches, and beside copies of itself
    float32 = builder.build(tower, "openvino", "float32", Store(tmp_path / "engines"), QUICK, buckets=(1, 4))
    sizes = [sum(file.bytes for file in one.manifest.files.values()) for one in (stored, float32)]
    assert sizes[0] < 0.7 * sizes[1]  # in larger networks a third: here the first block is a quarter of all
    chosen = choose(tower, config)
    assert (chosen.engine.backend, chosen.engine.precision, chosen.built) == ("openvino", "int8", True)


@pytest.mark.usefixtures("_processor_with_int8")
def test_int8_that_is_too_coarse_is_refused(tower: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grey = tuple(torch.full_like(batch, 128) for batch in tower.calibration())
    monkeypatch.setattr(tower, "calibration", lambda: grey)
    store = Store(tmp_path / "engines")
    with pytest.raises(BuildFailed, match="its lowest cosine to eager float32 is"):
        builder.build(tower, "openvino", "int8", store, QUICK, buckets=(1, 4))
    assert store.all() == []
    # Ranges of better inputs are another engine, which is not refused for that.
    monkeypatch.undo()
    monkeypatch.setattr(machine, "native", lambda precision, device: None)
    assert builder.build(tower, "openvino", "int8", store, QUICK, buckets=(1, 4)).manifest.report.passed


def test_batches_of_a_subject_that_does_not_split_run_in_one_stream(
    tower: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: Callable[[Broken], Broken]
) -> None:
    tried: set[int] = set()

    class Noting(Broken):
        def load(self, module: nn.Module | None, spec: Spec, folder: Path) -> Engine:
            tried.add(spec.layout.streams)
            return super().load(module, spec, folder)

    monkeypatch.setattr(machine, "cores", lambda: 4)
    monkeypatch.setattr(builder, "LAYOUT_S", 0.0)
    for splits, expected in ((True, {1, 2, 4}), (False, {1})):
        tried.clear()
        use(Noting(faithful))
        monkeypatch.setattr(tower, "splits", splits)
        builder.build(tower, "openvino", "float32", Store(tmp_path / str(splits)), QUICK, buckets=(1, 2))
        assert tried == expected
