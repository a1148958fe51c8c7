import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from engines import catalog, download, manifest
from engines.catalog import Face
from scripts import fetch_weights
from tests.engines.weights_server import COMMIT, Server, hub

OPENAI_REPO = "timm/vit_base_patch32_clip_224.openai"
SAFE = "open_clip_model.safetensors"
CHECKPOINT = save({"visual.proj": torch.zeros(2, 2), "text_projection": torch.ones(2, 2)})
FACE_FILE = "20180402-114759-vggface2.pt"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "PAUSE", 0.0)
    with hub(monkeypatch) as running:
        yield running


@pytest.fixture
def face_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The published file of a face model, tiny, with the catalogue naming its checksum."""
    path = tmp_path / "made.pt"
    torch.save({"conv2d_1a.conv.weight": torch.zeros(1), "logits.weight": torch.zeros(1)}, path)
    content = path.read_bytes()
    entry = Face("facenet-vggface2", 512, 8631, f"http://hub.invalid/{FACE_FILE}", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(catalog, "face", lambda name, alias="": entry)
    return content


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def run(*arguments: str | Path) -> int:
    return fetch_weights.main([str(argument) for argument in arguments])


def test_fetching_reports_each_file_and_ends_with_a_table(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.publish(OPENAI_REPO, SAFE, CHECKPOINT)
    assert run("immich-app/ViT-B-32::openai", "--cache-folder", tmp_path) == 0
    folder = tmp_path / "clip" / "ViT-B-32__openai"
    assert (folder / SAFE).read_bytes() == CHECKPOINT
    line, _, head, row = capsys.readouterr().out.splitlines()
    assert line == (
        f"ViT-B-32__openai: {SAFE}, 0.0 MB, from the Hugging Face repository {OPENAI_REPO} at {COMMIT[:12]}, "
        f"sha256 verified, in {folder}"
    )
    assert head.split() == ["model", "files", "size", "state"]
    assert row.split() == ["ViT-B-32__openai", "1", "0.0", "MB", "complete"]


def test_all_files_of_a_model_with_a_tokenizer(server: Server, tmp_path: Path) -> None:
    server.publish("M-CLIP/LABSE-Vit-L-14", "model.safetensors", CHECKPOINT)
    server.publish("timm/vit_large_patch14_clip_224.openai", SAFE, CHECKPOINT)
    server.publish("sentence-transformers/LaBSE", "tokenizer.json", b"{}", large=False)
    server.publish("sentence-transformers/LaBSE", "config.json", b"{}", large=False)
    assert run("LABSE-Vit-L-14", "--cache-folder", tmp_path) == 0
    lying = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert {name for name in lying if not name.endswith((".lock", manifest.FILE))} == {
        "clip/LABSE-Vit-L-14/model.safetensors",
        "clip/ViT-L-14__openai/open_clip_model.safetensors",
        "tokenizers/sentence-transformers__LaBSE/config.json",
        "tokenizers/sentence-transformers__LaBSE/tokenizer.json",
    }


def test_one_failure_fails_the_run_and_not_the_others(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.publish(OPENAI_REPO, SAFE, CHECKPOINT)
    names = ("RN50__openai", "ViT-B-33__openai", "ViT-B-32__openai", "demo")
    assert run(*names, "--cache-folder", tmp_path) == 1
    printed = capsys.readouterr()
    states = {line.split()[0]: line for line in printed.out.splitlines()[-4:]}
    assert states["RN50__openai"].endswith("failed, see above")
    assert states["ViT-B-33__openai"].endswith("failed, see above")
    assert states["ViT-B-32__openai"].endswith("complete")
    assert states["demo"].endswith("complete")
    assert "demo comes with the package" in printed.out
    missing, unknown = printed.err.splitlines()
    assert missing.startswith("RN50__openai: failed: RN50__openai needs open_clip_model.safetensors")
    assert str(tmp_path / "clip" / "RN50__openai") in missing
    assert "Did you mean" in unknown


def test_a_face_alias_fetches_the_model_behind_it(
    server: Server, tmp_path: Path, face_file: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.release(FACE_FILE, face_file)
    monkeypatch.setattr(catalog, "face", lambda name, alias="": Face("facenet-vggface2", 512, 8631, url, ""))
    assert run("buffalo_l", "--cache-folder", tmp_path) == 0
    assert manifest.read(tmp_path / "faces" / "facenet-vggface2")[FACE_FILE].verified == "size"


@pytest.mark.parametrize(
    "place",
    [
        SAFE,
        f"ViT-B-32__openai/{SAFE}",
        f"clip/ViT-B-32__openai/{SAFE}",
        f"models--timm--vit_base_patch32_clip_224.openai/snapshots/{COMMIT}/{SAFE}",
        f"hub/models--timm--vit_base_patch32_clip_224.openai/snapshots/{COMMIT}/{SAFE}",
    ],
)
def test_import_finds_the_file_in_all_usual_places(
    server: Server, tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    brought = put(tmp_path / "usb" / place, CHECKPOINT)
    assert run("ViT-B-32__openai", "--cache-folder", tmp_path / "cache", "--from", tmp_path / "usb") == 0
    folder = tmp_path / "cache" / "clip" / "ViT-B-32__openai"
    assert (folder / SAFE).read_bytes() == CHECKPOINT
    assert brought.is_file()
    record = manifest.read(folder)[SAFE]
    assert (record.verified, record.revision) == ("by hand", COMMIT if "snapshots" in place else "")
    assert f"from {brought}" in capsys.readouterr().out
    assert server.asked == []


def test_import_takes_the_snapshot_of_main(tmp_path: Path) -> None:
    repository = tmp_path / "usb" / "models--timm--vit_base_patch32_clip_224.openai"
    for i, revision in enumerate(("aaa", "bbb", "ccc")):
        os.utime(put(repository / "snapshots" / revision / SAFE, CHECKPOINT), (i, i))
    found = [revision for _, revision in fetch_weights.snapshots(repository, SAFE)]
    assert found == ["ccc", "bbb", "aaa"]
    put(repository / "refs" / "main", b"bbb")
    found = [revision for _, revision in fetch_weights.snapshots(repository, SAFE)]
    assert found == ["bbb", "ccc", "aaa"]


def test_a_bare_file_is_not_taken_for_several_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path / "usb" / SAFE, CHECKPOINT)
    names = ("ViT-B-32__openai", "RN50__openai")
    assert run(*names, "--cache-folder", tmp_path / "cache", "--from", tmp_path / "usb") == 1
    assert "or import this model alone" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("place", [FACE_FILE, f"checkpoints/{FACE_FILE}", f"hub/checkpoints/{FACE_FILE}"])
def test_import_of_faces_from_a_torch_hub_cache(tmp_path: Path, face_file: bytes, place: str) -> None:
    put(tmp_path / "torch" / place, face_file)
    arguments = ("facenet-vggface2", "--cache-folder", tmp_path / "cache", "--from", tmp_path / "torch")
    assert run(*arguments) == 0
    assert manifest.read(tmp_path / "cache" / "faces" / "facenet-vggface2")[FACE_FILE].verified == "sha256"


@pytest.mark.usefixtures("face_file")
def test_import_refuses_a_wrong_checksum(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path / "torch" / FACE_FILE, b"other")
    arguments = ("facenet-vggface2", "--cache-folder", tmp_path / "cache", "--from", tmp_path / "torch")
    assert run(*arguments) == 1
    assert "differs from the published sha256" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_import_refuses_what_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path / "usb" / SAFE, CHECKPOINT[:20])
    assert run("ViT-B-32__openai", "--cache-folder", tmp_path / "cache", "--from", tmp_path / "usb") == 1
    assert "cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_import_leaves_a_good_file_alone(tmp_path: Path) -> None:
    put(tmp_path / "usb" / SAFE, CHECKPOINT)
    present = put(tmp_path / "cache" / "clip" / "ViT-B-32__openai" / SAFE, save({"visual.proj": torch.ones(1)}))
    before = present.read_bytes()
    assert run("ViT-B-32__openai", "--cache-folder", tmp_path / "cache", "--from", tmp_path / "usb") == 0
    assert present.read_bytes() == before


def test_the_list_tells_what_is_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path / "clip" / "ViT-B-32__openai" / SAFE, CHECKPOINT)
    assert run("--list", "--cache-folder", tmp_path) == 0
    rows = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()[1:]]
    states = {(row[0], row[1]): row[2] for row in rows}
    assert states["ViT-B-32__openai", "clip"] == "here"
    assert states["RN50__openai", "clip"] == "to be fetched"
    assert states["demo", "clip"] == "come with the package"
    assert states["facenet-vggface2", "facial-recognition"] == "to be fetched"
    assert len(states) == sum(len(names) for names in catalog.names().values())


@pytest.mark.parametrize("arguments", [(), ("ViT-B-32__openai", "--from", "/nonexistent")])
def test_a_wrong_command_line_is_explained(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == 2
    assert "usage: python -m scripts.fetch_weights" in capsys.readouterr().err


def test_the_cache_folder_is_the_servers(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.publish(OPENAI_REPO, SAFE, CHECKPOINT)
    monkeypatch.setenv("MACHINE_LEARNING_CACHE_FOLDER", str(tmp_path / "cache"))
    assert run("ViT-B-32__openai") == 0
    assert (tmp_path / "cache" / "clip" / "ViT-B-32__openai" / SAFE).is_file()
    assert "%|" not in capsys.readouterr().err  # no progress bar where there is no terminal
