import logging
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from facenet_pytorch import MTCNN, InceptionResnetV1, extract_face
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from engines import catalog, drawings, export, faces, memory, mtcnn, samples, weights
from engines.area import PackedTable
from engines.errors import OutOfMemory, WeightsBroken
from engines.model import Config
from scripts.calibrate_facenet import calibrate, mean_cosine
from tests.engines.faces_data import crowd, montage, photo, portraits

CPU = torch.device("cpu")

PUBLISHED = catalog.face("facenet-vggface2")
Crops = list[NDArray[np.uint8]]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return Config(tmp_path_factory.mktemp("cache"), min_face=20)


@pytest.fixture(scope="module")
def detector(config: Config) -> faces.Detector:
    return faces.load_detector(config, CPU)


@pytest.fixture(scope="module")
def recogniser(config: Config) -> faces.Recogniser:
    return faces.load_recogniser(catalog.face("demo"), config, CPU)


@pytest.fixture(scope="module")
def network() -> InceptionResnetV1:
    return faces.build(faces.untrained_state() | faces.untrained_statistics())


@pytest.fixture(scope="module")
def drawn() -> Crops:
    """Faces that the statistics were not made from."""
    rng = np.random.default_rng(987)
    return [drawings.face(rng) for _ in range(32)]


@pytest.fixture(scope="module")
def held_out() -> Crops:
    """Real faces that the statistics were not made from: the portraits that the calibration leaves out."""
    return [np.array(p.resize((160, 160), Image.Resampling.BILINEAR)) for p in portraits()[1::2]]


def embed(recogniser: faces.Recogniser, crops: Crops) -> NDArray[np.float32]:
    batches = [crops[i : i + 32] for i in range(0, len(crops), 32)]
    return np.concatenate([recogniser.run(recogniser.collate(batch)) for batch in batches])


def test_pictures_of_any_sizes_in_one_batch(detector: faces.Detector) -> None:
    images = [crowd(3, 300, 260, 6, 30, 140), Image.new("RGB", (1, 1)), photo("astronaut.png")]
    items = [detector.prepare(np.array(image), 0.7) for image in images]
    assert [item.weight for item in items] == [300 * 260, 1, 512 * 512]
    found = detector.run(detector.collate(items))
    assert len(found) == 3
    assert len(found[1].boxes) == 0
    assert len(found[2].boxes) == 1
    for one in found:
        assert one.boxes.shape == (len(one.scores), 4)
        assert one.boxes.dtype == one.scores.dtype == np.float32
        assert (np.diff(one.scores) <= 0).all()
        assert (one.scores > 0.7).all()


def test_the_threshold_travels_with_the_item(detector: faces.Detector) -> None:
    image = photo("astronaut.png")
    found = detector.run(detector.collate([detector.prepare(np.array(image), score) for score in (1.0, 0.5, 0.99)]))
    assert [len(one.boxes) for one in found] == [0, 1, 1]


def test_the_smallest_face_is_a_setting(config: Config, detector: faces.Detector) -> None:
    image = montage(300, 200, [(0, 100, 60, 45)])
    for_large = faces.load_detector(Config(config.cache_folder, min_face=100), CPU)
    assert [len(d.run([d.prepare(np.array(image), 0.7)])[0].boxes) for d in (detector, for_large)] == [1, 0]
    assert Config(config.cache_folder).min_face == 40


def test_the_detector_tells_what_it_is(detector: faces.Detector) -> None:
    assert detector.info.kind == "detection"
    assert not detector.info.untrained
    # 6,599 + 100,178 + 389,040 parameters of the three networks, four bytes each
    assert detector.info.bytes == 4 * 495_817
    assert detector.buckets == (1, 2, 3, 4, 5, 6, 7, 8)


def test_a_box_that_nothing_can_be_cut_from_goes_with_its_score(
    detector: faces.Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes = np.array([[-40, 5, 0.9, 30], [2, 2, 20, 20], [5, 40.2, 9, 60], [-3, -3, 4, 4]], np.float32)
    scores = np.array([0.99, 0.98, 0.97, 0.96], np.float32)
    monkeypatch.setattr(mtcnn, "detect", lambda *_: [(boxes, scores), (boxes, scores)])
    found = detector.run([detector.prepare(np.array(Image.new("RGB", size)), 0.7) for size in ((50, 40), (50, 41))])
    assert found[0].scores.tolist() == scores[[1, 3]].tolist()
    assert found[0].boxes.tolist() == boxes[[1, 3]].tolist()
    assert found[1].scores.tolist() == scores[[1, 2, 3]].tolist()


def fails_with(error: Exception) -> Callable[..., Any]:
    def fail(*_: object) -> Tensor:
        raise type(error)(*error.args)

    return fail


@pytest.mark.parametrize(
    ("owner", "where"),
    [(PackedTable, "__init__"), (PackedTable, "level"), (mtcnn, "nms")],
    ids=["table", "level", "nms"],
)
@pytest.mark.parametrize(
    "error",
    [torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), RuntimeError("CUDA: out of memory")],
    ids=["allocator", "library"],
)
def test_memory_that_runs_out_around_the_networks_is_told_and_not_remembered(
    detector: faces.Detector, monkeypatch: pytest.MonkeyPatch, owner: object, where: str, error: Exception
) -> None:
    items = [detector.prepare(np.array(Image.new("RGB", size)), 0.7) for size in ((40, 30), (90, 60), (10, 20))]
    with monkeypatch.context() as patch:
        patch.setattr(owner, where, fails_with(error))
        with pytest.raises(
            OutOfMemory, match="left on cpu to look for faces in 3 pictures of up to 90x60 pixels: load"
        ):
            detector.run(items)
    assert len(detector.run(items)) == 3


def test_nothing_of_a_picture_without_memory_is_alive_when_memory_is_freed(
    detector: faces.Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables: list[weakref.ref[PackedTable]] = []
    alive: list[bool] = []

    def without_memory(table: PackedTable, *_: object) -> Tensor:
        tables.append(weakref.ref(table))
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(PackedTable, "level", without_memory)
    monkeypatch.setattr(memory, "release", lambda: alive.extend(table() is not None for table in tables))
    with pytest.raises(OutOfMemory, match="in 1 picture of up to 90x60 pixels") as told:
        detector.run([detector.prepare(np.array(Image.new("RGB", (90, 60))), 0.7)])
    assert alive == [False]
    assert told.value.__context__ is None, "the chain would hold what was computed"


def test_a_network_without_memory_is_told_as_the_picture_that_asked_for_it(
    detector: faces.Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PackedTable, "level", fails_with(OutOfMemory("no memory for one input of 3x60x90")))
    with pytest.raises(OutOfMemory, match="to look for faces in 1 picture of up to 90x60") as told:
        detector.run([detector.prepare(np.array(Image.new("RGB", (90, 60))), 0.7)])
    assert told.value.__context__ is None


def test_any_other_error_of_the_detector_is_passed_on(
    detector: faces.Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PackedTable, "level", fails_with(RuntimeError("index out of range")))
    with pytest.raises(RuntimeError, match="index out of range"):
        detector.run([detector.prepare(np.array(Image.new("RGB", (90, 60))), 0.7)])


def test_crops_are_those_of_extract_face(recogniser: faces.Recogniser) -> None:
    image = photo("astronaut.png")
    rng = np.random.default_rng(0)
    corners = rng.uniform(-60, 480, (40, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(62, 300, (40, 2))], 1).astype(np.float32)
    for box, crop in zip(boxes, recogniser.crops(np.array(image), boxes), strict=True):
        assert crop.dtype == np.uint8
        expected = extract_face(image, box, image_size=160, margin=0)  # (3, 160, 160), levels
        assert np.array_equal(crop, expected.permute(1, 2, 0).numpy())


def test_cutting_a_box_without_a_pixel_says_so(recogniser: faces.Recogniser) -> None:
    with pytest.raises(ValueError, match="no whole pixel: drop it"):
        recogniser.crops(np.array(photo("astronaut.png")), np.array([[10, 10, 10.5, 40]], np.float32))


@pytest.mark.parametrize("name", ["a photo", "a montage"])
def test_embeddings_are_those_of_facenet_pytorch(
    detector: faces.Detector, recogniser: faces.Recogniser, network: InceptionResnetV1, name: str
) -> None:
    image = {
        "a photo": photo("astronaut.png"),
        "a montage": montage(400, 300, [(0, 10, 10, 120), (1, 150, 20, 90), (1, 330, 60, 110), (0, 260, 170, 60)]),
    }[name]
    reference = MTCNN(keep_all=True, min_face_size=20, device="cpu")
    boxes, _ = reference.detect(image)
    with torch.inference_mode():
        expected = network(reference(image)).numpy()

    (found,) = detector.run([detector.prepare(np.array(image), 0.7)])
    assert len(found.boxes) == len(boxes) >= (1 if name == "a photo" else 3)
    embeddings = embed(recogniser, recogniser.crops(np.array(image), found.boxes))
    for box, embedding in zip(found.boxes, embeddings, strict=True):
        same = int(np.abs(boxes.astype(np.float32) - box).max(1).argmin())
        assert embedding @ expected[same] >= 0.9999


@pytest.mark.parametrize("rows", [1, 3, 32])
def test_a_face_has_the_same_embedding_in_any_batch(recogniser: faces.Recogniser, drawn: Crops, rows: int) -> None:
    alone = np.concatenate([recogniser.run(recogniser.collate([crop])) for crop in drawn[:4]])
    first = np.stack(recogniser.run(recogniser.collate(drawn[:rows])))
    last = np.stack(recogniser.run(recogniser.collate([*drawn[32 - rows + 1 :], drawn[0]])))
    assert first.shape == last.shape == (rows, 512)
    assert first.dtype == np.float32
    assert np.allclose(np.linalg.norm(first, axis=1), 1, atol=1e-5)
    assert ((first[:4] * alone[:rows]).sum(1) >= 0.99999).all()
    assert last[-1] @ alone[0] >= 0.99999


def test_different_faces_spread(recogniser: faces.Recogniser, drawn: Crops, held_out: Crops) -> None:
    of_drawn, of_real = embed(recogniser, drawn[:24]), embed(recogniser, held_out[:24])
    for embeddings in (of_drawn, of_real, np.concatenate([of_drawn, of_real])):
        assert mean_cosine(torch.from_numpy(embeddings)) < 0.5
        # Not one pair so near that batch against single at 0.99999 would say nothing.
        assert np.sort(embeddings @ embeddings.T, axis=1)[:, -2].max() < 0.999


def test_rounding_errs_as_little_as_in_a_trained_network(network: InceptionResnetV1) -> None:
    embedder = faces.Embedder(network).eval()
    crops = torch.from_numpy(samples.faces(160))
    with torch.inference_mode():
        exact, rounded = embedder(crops), export.lowered(embedder, "bfloat16")(crops)
    assert ((exact * rounded).sum(dim=1) >= 0.999).all()


def test_without_statistics_different_faces_are_one(drawn: Crops) -> None:
    degenerate = faces.Embedder(faces.build(faces.untrained_state()))
    with torch.inference_mode():
        assert mean_cosine(degenerate(torch.from_numpy(np.stack(drawn[:8])))) > 0.9


def test_calibration_makes_what_is_shipped(drawn: Crops) -> None:
    crops = torch.from_numpy(np.stack(drawn[:8]))
    statistics = faces.with_last_layer(calibrate(faces.untrained_state(), crops))
    shipped = faces.untrained_statistics()
    assert {key: t.shape for key, t in statistics.items()} == {key: t.shape for key, t in shipped.items()}
    with torch.inference_mode():
        embeddings = faces.Embedder(faces.build(faces.untrained_state() | statistics))(crops)
    # Around their own mean eight vectors lie apart on average: the mean cosine is near -1/7.
    assert mean_cosine(embeddings) < 0


def test_the_demo_is_marked_untrained_with_one_line_in_the_log(
    config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    before = torch.get_rng_state()
    with caplog.at_level(logging.INFO):
        model = faces.load_recogniser(catalog.face("demo"), config, CPU)
    assert torch.equal(before, torch.get_rng_state())
    assert model.info.untrained
    assert (model.info.name, model.info.kind, model.info.backend) == ("demo", "recognition", "eager")
    assert ["untrained" in line for line in caplog.messages] == [True]


def test_the_setting_makes_any_model_untrained(recogniser: faces.Recogniser, drawn: Crops, tmp_path: Path) -> None:
    model = faces.load_recogniser(PUBLISHED, Config(tmp_path, untrained=True), CPU)
    assert model.info.untrained
    assert model.info.name == PUBLISHED.name
    assert np.array_equal(embed(model, drawn[:1]), embed(recogniser, drawn[:1]))


def load_with(state: dict[str, Tensor], config: Config, monkeypatch: pytest.MonkeyPatch) -> faces.Recogniser:
    monkeypatch.setattr(weights, "digest", lambda _: "of these")
    monkeypatch.setattr(weights, "face_state", lambda *_: state)
    return faces.load_recogniser(PUBLISHED, config, CPU)


def test_published_weights_are_taken_as_they_are(
    config: Config,
    recogniser: faces.Recogniser,
    drawn: Crops,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    state = faces.untrained_state() | faces.untrained_statistics()
    state["last_linear.weight"] = -state["last_linear.weight"]
    state["last_bn.running_mean"] = -state["last_bn.running_mean"]
    model = load_with(state, config, monkeypatch)
    assert not model.info.untrained
    assert caplog.messages == []
    assert np.allclose(embed(model, drawn[:2]), -embed(recogniser, drawn[:2]), atol=1e-5)


@pytest.mark.parametrize("fault", ["missing", "unexpected", "shape"])
def test_weights_that_do_not_fit_say_what_to_do(config: Config, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    state = faces.untrained_state()
    if fault == "missing":
        del state["block8.conv2d.bias"]
    elif fault == "unexpected":
        state["block9.conv2d.bias"] = torch.zeros(1)
    else:
        state["block8.conv2d.bias"] = torch.zeros(3)
    with pytest.raises(WeightsBroken, match=r"facenet-vggface2 do not fit .* remove their file from .*block[89]"):
        load_with(state, config, monkeypatch)
