import hashlib
import json
import logging
import os
import pickle
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import open_clip
import pytest
import torch
from facenet_pytorch import InceptionResnetV1
from safetensors.torch import save_file
from torch import Tensor

from engines import catalog, download, manifest, sources, weights
from engines.catalog import Face
from engines.download import HubFile
from engines.errors import WeightsBroken, WeightsMissing
from engines.sources import Need
from tests.engines.weights_server import Server, hub, point_at

OPENAI = catalog.clip("ViT-B-32__openai")
OPENAI_REPO = "timm/vit_base_patch32_clip_224.openai"
MCLIP = catalog.clip("LABSE-Vit-L-14")
SAFE, PICKLED = "open_clip_model.safetensors", "open_clip_pytorch_model.bin"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "PAUSE", 0.0)
    with hub(monkeypatch) as running:
        yield running


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with hub(monkeypatch) as gone:
        pass
    point_at(gone.endpoint, monkeypatch)
    yield
    huggingface_hub.close_session()


@pytest.fixture(scope="module")
def clip_tensors() -> dict[str, Tensor]:
    """The state dict of a tiny CLIP in open_clip's architecture: the published keys, float16."""
    torch.manual_seed(0)
    model = open_clip.CLIP(
        embed_dim=8,
        vision_cfg={"image_size": 32, "patch_size": 16, "width": 16, "head_width": 8, "layers": 1},
        text_cfg={"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1},
    )
    return {key: value.half() for key, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def face_tensors() -> dict[str, Tensor]:
    """The published keys of the recogniser with its classifier, with one number each."""
    with torch.device("meta"):
        network = InceptionResnetV1(classify=True, num_classes=8631)
    return {key: torch.full((1,), float(i)) for i, key in enumerate(network.state_dict())}


def safe(tensors: dict[str, Tensor], folder: Path) -> bytes:
    path = folder / "made.safetensors"
    save_file(tensors, path)
    return path.read_bytes()


def pickled(value: object, folder: Path, archive: bool = True) -> bytes:
    path = folder / "made.pt"
    torch.save(value, path, _use_new_zipfile_serialization=archive)
    return path.read_bytes()


def publish_openai(server: Server, content: bytes, name: str = SAFE) -> str:
    return server.publish(OPENAI_REPO, name, content)


def by_hand(cache: Path, content: bytes, name: str = SAFE) -> Path:
    folder = cache / "clip" / OPENAI.name
    folder.mkdir(parents=True)
    path = folder / name
    path.write_bytes(content)
    return path


def same(state: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return state.keys() == expected.keys() and all(torch.equal(state[key], expected[key]) for key in state)


def test_towers_of_safetensors(server: Server, tmp_path: Path, clip_tensors: dict[str, Tensor]) -> None:
    publish_openai(server, safe(clip_tensors, tmp_path))
    visual = weights.clip_state(OPENAI, "visual", tmp_path / "cache")
    textual = weights.clip_state(OPENAI, "textual", tmp_path / "cache")
    assert {"visual.conv1.weight", "visual.proj"} <= visual.keys()
    assert {"token_embedding.weight", "text_projection", "logit_scale"} <= textual.keys()
    assert not visual.keys() & textual.keys()
    assert same(visual | textual, clip_tensors)
    assert server.spans(SAFE) == [""]  # one file, fetched once


@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"epoch": 32, "state_dict": state}])
def test_towers_of_a_training_checkpoint(
    server: Server,
    tmp_path: Path,
    clip_tensors: dict[str, Tensor],
    archive: bool,
    wrap: Callable[[object], object],
) -> None:
    saved = {f"module.{key}": value for key, value in clip_tensors.items()}
    publish_openai(server, pickled(wrap(saved), tmp_path, archive), PICKLED)
    visual = weights.clip_state(OPENAI, "visual", tmp_path / "cache")
    textual = weights.clip_state(OPENAI, "textual", tmp_path / "cache")
    assert same(visual | textual, clip_tensors)
    assert all(key.startswith("visual.") for key in visual)
    assert (tmp_path / "cache" / "clip" / OPENAI.name / PICKLED).is_file()


def test_a_text_tower_from_transformers_leaves_its_indices_behind(tmp_path: Path) -> None:
    state = {
        "visual.proj": torch.zeros(1),
        "text.transformer.embeddings.position_ids": torch.arange(4),
        "text.transformer.embeddings.word_embeddings.weight": torch.ones(4, 2),
        "text.proj.0.weight": torch.ones(2),
    }
    by_hand(tmp_path, safe(state, tmp_path))
    assert weights.clip_state(OPENAI, "textual", tmp_path).keys() == {
        "text.transformer.embeddings.word_embeddings.weight",
        "text.proj.0.weight",
    }


def test_the_sides_of_m_clip_come_from_two_repositories(
    server: Server, tmp_path: Path, clip_tensors: dict[str, Tensor]
) -> None:
    text = {
        "transformer.embeddings.position_ids": torch.arange(4),
        "transformer.embeddings.word_embeddings.weight": torch.ones(4, 2),
        "transformer.encoder.layer.0.attention.self.query.weight": torch.ones(2, 2),
        "LinearTransformation.weight": torch.ones(2, 2),
        "LinearTransformation.bias": torch.ones(2),
    }
    server.publish("M-CLIP/LABSE-Vit-L-14", "pytorch_model.bin", pickled(text, tmp_path))
    server.publish("timm/vit_large_patch14_clip_224.openai", SAFE, safe(clip_tensors, tmp_path))
    del text["transformer.embeddings.position_ids"]
    assert same(weights.clip_state(MCLIP, "textual", tmp_path / "cache"), text)
    visual = weights.clip_state(MCLIP, "visual", tmp_path / "cache")
    assert visual
    assert all(key.startswith("visual.") for key in visual)
    assert (tmp_path / "cache" / "clip" / "ViT-L-14__openai" / SAFE).is_file()


@pytest.mark.parametrize("archive", [True, False])
def test_faces_without_their_classifier(
    server: Server, tmp_path: Path, face_tensors: dict[str, Tensor], archive: bool
) -> None:
    url = server.release("20180402-114759-vggface2.pt", pickled(face_tensors, tmp_path, archive))
    state = weights.face_state(Face("facenet-vggface2", 512, 8631, url, ""), tmp_path / "cache")
    with torch.device("meta"):
        network = InceptionResnetV1()
    assert state.keys() == network.state_dict().keys()
    assert (tmp_path / "cache" / "faces" / "facenet-vggface2" / "20180402-114759-vggface2.pt").is_file()


def test_tokenizer_files_as_the_repository_has_them(server: Server, tmp_path: Path) -> None:
    repo = "sentence-transformers/LaBSE"
    server.publish(repo, "tokenizer.json", b"{}", large=False)
    server.publish(repo, "tokenizer_config.json", b'{"do_lower_case": false}', large=False)
    server.publish(repo, "vocab.txt", b"[PAD]\n")
    folder = weights.tokenizer_folder(MCLIP, tmp_path)
    assert folder == tmp_path / "tokenizers" / "sentence-transformers__LaBSE"
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert names == {"tokenizer.json", "tokenizer_config.json", "vocab.txt", "manifest.json"}
    asked = len(server.asked)
    assert weights.tokenizer_folder(MCLIP, tmp_path) == folder
    assert len(server.asked) == asked


def test_a_tokenizer_that_was_cut_off_is_completed(server: Server, tmp_path: Path) -> None:
    repo = "sentence-transformers/LaBSE"
    server.publish(repo, "tokenizer_config.json", b"{}", large=False)
    with pytest.raises(WeightsMissing, match=r"tokenizer.json"):
        weights.tokenizer_folder(MCLIP, tmp_path)
    server.publish(repo, "tokenizer.json", b"{}", large=False)
    assert (weights.tokenizer_folder(MCLIP, tmp_path) / "tokenizer.json").is_file()
    assert len(server.spans("tokenizer_config.json")) == 1


def test_clips_own_tokenizer_has_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs no files"):
        weights.tokenizer_folder(OPENAI, tmp_path)


@pytest.mark.usefixtures("no_network")
def test_without_network_what_is_there_works(tmp_path: Path, clip_tensors: dict[str, Tensor]) -> None:
    path = by_hand(tmp_path, safe(clip_tensors, tmp_path))
    manifest.write(path, "somewhere", "", "sha256", manifest.sha256(path))
    assert weights.clip_state(OPENAI, "visual", tmp_path)
    path.touch()
    assert weights.clip_state(OPENAI, "visual", tmp_path)
    assert path.is_file()


@pytest.mark.usefixtures("no_network")
def test_without_network_the_sentence_names_folder_file_and_command(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing) as caught:
        weights.clip_state(OPENAI, "visual", tmp_path)
    sentence = str(caught.value)
    assert str(tmp_path / "clip" / OPENAI.name) in sentence
    assert SAFE in sentence
    assert "127.0.0.1 cannot be reached" in sentence
    assert "`python -m scripts.fetch_weights ViT-B-32__openai`" in sentence


def test_offline_mode_is_named(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsMissing, match="HF_HUB_OFFLINE is set"):
        weights.clip_state(OPENAI, "visual", tmp_path)
    assert server.asked == []


def test_all_places_that_were_asked_are_named(server: Server, tmp_path: Path) -> None:
    with pytest.raises(weights.Unpublished) as caught:
        weights.clip_state(OPENAI, "visual", tmp_path)
    assert SAFE in str(caught.value)
    assert PICKLED in str(caught.value)


def test_a_folder_that_cannot_be_made(server: Server, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.write_text("a file in the way")
    with pytest.raises(WeightsMissing, match=r"the folder cannot be (read|written).*scripts.fetch_weights"):
        weights.clip_state(OPENAI, "visual", cache)


def test_an_unreadable_file_is_set_aside_and_fetched_again(
    server: Server, tmp_path: Path, clip_tensors: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    good = safe(clip_tensors, tmp_path)
    publish_openai(server, good)
    path = by_hand(tmp_path / "cache", good[:1000])
    assert weights.clip_state(OPENAI, "visual", tmp_path / "cache")
    assert path.read_bytes() == good
    assert path.with_name(SAFE + ".broken").read_bytes() == good[:1000]
    assert "It was set aside as open_clip_model.safetensors.broken" in caplog.text


def test_an_altered_file_is_set_aside_and_fetched_again(
    server: Server, tmp_path: Path, clip_tensors: dict[str, Tensor]
) -> None:
    good = safe(clip_tensors, tmp_path)
    publish_openai(server, good)
    weights.clip_state(OPENAI, "visual", tmp_path / "cache")
    path = tmp_path / "cache" / "clip" / OPENAI.name / SAFE
    path.write_bytes(good[:-1] + b"\x7f")  # a tensor's last byte: it would load
    assert same(
        weights.clip_state(OPENAI, "visual", tmp_path / "cache"),
        {key: value for key, value in clip_tensors.items() if key.startswith("visual.")},
    )
    assert path.with_name(SAFE + ".broken").is_file()


@pytest.mark.usefixtures("no_network")
def test_a_broken_file_without_network_says_all(tmp_path: Path) -> None:
    path = by_hand(tmp_path, b"no tensors")
    with pytest.raises(WeightsMissing) as caught:
        weights.clip_state(OPENAI, "visual", tmp_path)
    sentence = str(caught.value)
    assert sentence.startswith("open_clip_model.safetensors was broken (it cannot be read (")
    assert "was renamed to open_clip_model.safetensors.broken" in sentence
    assert "cannot be reached" in sentence
    assert path.with_name(SAFE + ".broken").read_bytes() == b"no tensors"


@pytest.mark.parametrize(
    "value", [[torch.zeros(1)], {"state_dict": 3}, {"a": torch.zeros(1), "b": "text"}], ids=["list", "number", "text"]
)
@pytest.mark.usefixtures("no_network")
def test_a_file_of_something_else_is_broken(tmp_path: Path, value: object) -> None:
    by_hand(tmp_path, pickled(value, tmp_path), PICKLED)
    with pytest.raises(WeightsMissing, match="does not hold tensors by name"):
        weights.clip_state(OPENAI, "visual", tmp_path)


def test_a_published_file_that_cannot_be_read_is_not_fetched_forever(server: Server, tmp_path: Path) -> None:
    publish_openai(server, b"no tensors")
    for _ in range(2):
        with pytest.raises(WeightsBroken, match=r"came as it was published .*update torch"):
            weights.clip_state(OPENAI, "visual", tmp_path)
    assert len(server.spans(SAFE)) == 1
    assert not list(tmp_path.rglob("*.broken"))


class Payload:
    """Pickles to a program that writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.write_text, (self.target, "it ran")


@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.usefixtures("no_network")
def test_a_program_in_a_pickle_does_not_run(tmp_path: Path, archive: bool) -> None:
    proof = tmp_path / "proof"
    content = pickled({"visual.proj": torch.zeros(1), "x": Payload(proof)}, tmp_path, archive)
    by_hand(tmp_path, content, PICKLED)
    with pytest.raises(WeightsMissing, match="holds more than tensors") as told:
        weights.clip_state(OPENAI, "visual", tmp_path)
    assert not proof.exists()
    assert "weights_only" not in str(told.value), "torch's own advice would run what is in the file"
    (tmp_path / "made.pkl").write_bytes(pickle.dumps(Payload(proof)))
    pickle.loads((tmp_path / "made.pkl").read_bytes())  # noqa: S301 - shows that the payload does work
    assert proof.exists()


@pytest.mark.filterwarnings("ignore:'torch.load' received a zip file:UserWarning")  # torch's own, before it refuses
@pytest.mark.usefixtures("no_network")
def test_torchscript_is_refused(tmp_path: Path) -> None:
    content = pickled({"visual.proj": torch.zeros(1)}, tmp_path)
    path = by_hand(tmp_path, content, PICKLED)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("made/constants.pkl", b"")  # by this torch knows a program
    with pytest.raises(WeightsMissing, match="TorchScript"):
        weights.clip_state(OPENAI, "visual", tmp_path)


def test_two_loads_at_once_fetch_once(server: Server, tmp_path: Path, clip_tensors: dict[str, Tensor]) -> None:
    publish_openai(server, safe(clip_tensors, tmp_path))
    barrier = threading.Barrier(4)
    states: list[dict[str, Tensor]] = []

    def load() -> None:
        barrier.wait()
        states.append(weights.clip_state(OPENAI, "visual", tmp_path / "cache"))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(states) == 4
    assert server.spans(SAFE) == [""]


def test_two_loads_of_a_broken_file_set_it_aside_once(
    server: Server, tmp_path: Path, clip_tensors: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = safe(clip_tensors, tmp_path)
    publish_openai(server, good)
    path = by_hand(tmp_path / "cache", b"no tensors")
    barrier = threading.Barrier(3)
    states: list[dict[str, Tensor]] = []
    obtain = weights.obtain

    def meet(need: Need) -> Path:
        found = obtain(need)
        barrier.wait()  # all have seen the broken file before one of them repairs it
        return found

    monkeypatch.setattr(weights, "obtain", meet)
    threads = [
        threading.Thread(target=lambda: states.append(weights.clip_state(OPENAI, "visual", tmp_path / "cache")))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(states) == 3
    assert path.read_bytes() == good
    assert len(list(path.parent.glob("*.broken*"))) == 1
    assert server.spans(SAFE) == [""]


@pytest.mark.usefixtures("no_network")
def test_a_file_that_vanishes_while_it_is_loaded_is_missing(
    tmp_path: Path, clip_tensors: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = by_hand(tmp_path, safe(clip_tensors, tmp_path))
    obtain = weights.obtain

    def lose(need: Need) -> Path:
        found = obtain(need)
        path.unlink()
        return found

    monkeypatch.setattr(weights, "obtain", lose)
    with pytest.raises(WeightsMissing, match="cannot be reached"):
        weights.clip_state(OPENAI, "visual", tmp_path)


def test_waiting_is_logged(
    server: Server, tmp_path: Path, clip_tensors: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    publish_openai(server, safe(clip_tensors, tmp_path))
    need = Need(OPENAI.name, tmp_path / "x", (HubFile(OPENAI_REPO, SAFE),))
    waiting = threading.Event()

    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "Waiting for" in record.getMessage():
                waiting.set()

    handler = Heard()
    weights.log.addHandler(handler)
    with caplog.at_level(logging.INFO):
        with weights._locked(need):
            thread = threading.Thread(target=weights.obtain, args=(need,))
            thread.start()
            assert waiting.wait(10)
        thread.join()
    weights.log.removeHandler(handler)
    assert (tmp_path / "x" / SAFE).is_file()


def test_a_folder_that_cannot_be_written_is_read_and_never_altered(
    server: Server, tmp_path: Path, clip_tensors: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = safe(clip_tensors, tmp_path)
    path = by_hand(tmp_path / "cache", good)
    manifest.write(path, "somewhere", "", "sha256", manifest.sha256(path))
    path.touch()
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert weights.clip_state(OPENAI, "visual", tmp_path / "cache")
    path.write_bytes(good[:-1] + b"\x7f")
    with pytest.raises(WeightsBroken, match=r"sha256 .*replace the file by hand"):
        weights.clip_state(OPENAI, "visual", tmp_path / "cache")
    (path.parent / manifest.FILE).unlink()
    path.write_bytes(good[:100])
    with pytest.raises(WeightsBroken, match=r"cannot be read .*replace the file by hand"):
        weights.clip_state(OPENAI, "visual", tmp_path / "cache")
    assert path.read_bytes() == good[:100]
    assert server.asked == []


def test_adopting_copies_checks_and_records(tmp_path: Path, clip_tensors: dict[str, Tensor]) -> None:
    file = tmp_path / SAFE
    file.write_bytes(safe(clip_tensors, tmp_path))
    need = Need(OPENAI.name, tmp_path / "cache", (HubFile(OPENAI_REPO, SAFE),))
    path = weights.adopt(file, need, "abc")
    assert path.read_bytes() == file.read_bytes()
    record = manifest.read(need.folder)[SAFE]
    assert (record.source, record.revision, record.verified) == (str(file), "abc", "by hand")
    file.write_bytes(b"no tensors")
    with pytest.raises(WeightsBroken, match="fetch or copy it again"):
        weights.adopt(file, need, "")
    assert manifest.mismatch(path) is None


def test_adopting_json_that_is_none(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps({"model": {}})[:-1])
    need = Need(MCLIP.name, tmp_path / "cache", (HubFile("x/y", "tokenizer.json"),))
    with pytest.raises(WeightsBroken, match="cannot be read"):
        weights.adopt(file, need, "")
    assert not need.folder.exists()


def test_the_digest_of_a_file_is_that_of_its_content_also_when_it_changed(tmp_path: Path) -> None:
    need = sources.face(catalog.face("facenet-vggface2"), tmp_path)
    need.folder.mkdir(parents=True)
    path = need.folder / need.names[0]
    for content in (b"first", b"second"):
        path.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        manifest.write(path, "a test", "1", "by hand", digest)
        assert weights.digest(need) == digest
    (need.folder / manifest.FILE).unlink()
    need.folder.chmod(0o500)
    try:
        assert weights.digest(need) == hashlib.sha256(b"second").hexdigest()
    finally:
        need.folder.chmod(0o700)
