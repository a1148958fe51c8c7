from pathlib import Path

import pytest

from engines import catalog, sources
from engines.catalog import Clip, Face
from engines.download import HubFile, UrlFile

CACHE = Path("/cache")
PUBLISHED = [catalog.clip(name) for name in catalog.names()["clip"] if name != catalog.DEMO]


def test_every_model_has_a_repository_or_a_release_with_a_checksum() -> None:
    for entry in PUBLISHED:
        for source in sources.visual(entry, CACHE).sources + sources.textual(entry, CACHE).sources:
            if isinstance(source, HubFile):
                assert source.repo.count("/") == 1
                assert source.name.endswith((".safetensors", ".bin"))
            else:
                assert source.url.startswith("https://github.com/mlfoundations/open_clip/releases/")
                assert len(source.sha256) == 8
                assert int(source.sha256, 16) >= 0


def test_safetensors_come_first_and_openais_programs_never() -> None:
    need = sources.visual(catalog.clip("ViT-B-32__openai"), CACHE)
    repo = "timm/vit_base_patch32_clip_224.openai"
    assert need.sources == (
        HubFile(repo, "open_clip_model.safetensors"),
        HubFile(repo, "open_clip_pytorch_model.bin"),
    )
    assert need.folder == CACHE / "clip" / "ViT-B-32__openai"


def test_a_release_is_the_last_resort() -> None:
    *_, last = sources.visual(catalog.clip("RN50__cc12m"), CACHE).sources
    assert isinstance(last, UrlFile)
    assert (last.name, last.sha256) == ("rn50-quickgelu-cc12m-f000538c.pt", "f000538c")


def test_another_tags_repository_is_not_taken() -> None:
    # open_clip 3.3.0 names the repository of laion400m_e31 for laion400m_e32.
    for entry in PUBLISHED:
        for source in sources.visual(entry, CACHE).sources:
            if isinstance(source, HubFile) and "laion400m" in source.repo:
                assert source.repo.endswith(entry.tag)
    (only,) = sources.visual(catalog.clip("ViT-B-16-plus-240__laion400m_e32"), CACHE).sources
    assert only.name == "vit_b_16_plus_240-laion400m_e32-699c4b84.pt"


def test_m_clip_shares_the_picture_side_with_the_model_it_was_built_on() -> None:
    entry = catalog.clip("LABSE-Vit-L-14")
    assert sources.visual(entry, CACHE).folder == sources.visual(catalog.clip("ViT-L-14__openai"), CACHE).folder
    text = sources.textual(entry, CACHE)
    assert text.folder == CACHE / "clip" / "LABSE-Vit-L-14"
    assert text.sources == (
        HubFile("M-CLIP/LABSE-Vit-L-14", "model.safetensors"),
        HubFile("M-CLIP/LABSE-Vit-L-14", "pytorch_model.bin"),
    )


@pytest.mark.parametrize(
    ("name", "repo"),
    [
        ("ViT-B-16-SigLIP2__webli", "timm/ViT-B-16-SigLIP2"),
        ("nllb-clip-base-siglip__v1", "facebook/nllb-200-distilled-600M"),
        ("XLM-Roberta-Base-ViT-B-32__laion5b_s13b_b90k", "xlm-roberta-base"),
        ("XLM-Roberta-Large-Vit-B-16Plus", "xlm-roberta-large"),
        ("LABSE-Vit-L-14", "sentence-transformers/LaBSE"),
    ],
)
def test_tokenizers(name: str, repo: str) -> None:
    *extras, last = sources.tokenizer(catalog.clip(name), CACHE)
    assert last.sources == (HubFile(repo, "tokenizer.json"),)
    assert not last.extra_of
    assert {need.extra_of for need in extras} == {"tokenizer.json"}
    assert last.folder == CACHE / "tokenizers" / repo.replace("/", "__")


def test_only_clips_own_tokenizer_needs_no_files() -> None:
    for entry in PUBLISHED:
        assert bool(sources.tokenizer(entry, CACHE)) == (entry.tokenizer != "CLIP-BPE")


def test_needs_lists_each_file_once_and_none_for_the_demo() -> None:
    assert len(sources.needs(catalog.clip("RN50__openai"), CACHE)) == 1
    entry = catalog.clip("XLM-Roberta-Large-Vit-L-14")
    files = sources.needs(entry, CACHE)
    assert len(files) == len(set(files)) == 2 + len(sources.tokenizer(entry, CACHE))
    assert sources.needs(catalog.clip("demo"), CACHE) == ()
    assert sources.needs(catalog.face("demo"), CACHE) == ()
    (face,) = sources.needs(catalog.face("facenet-vggface2"), CACHE)
    assert face.folder == CACHE / "faces" / "facenet-vggface2"
    assert face.names == ("20180402-114759-vggface2.pt",)


def test_what_nobody_publishes_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="no published weights"):
        sources.face(Face("demo", 512, 0, "", ""), CACHE)
    unknown = Clip("x", "ViT-B-32", "nowhere", 512, 224, 77, "shortest", "CLIP-BPE", False, "causal")
    with pytest.raises(ValueError, match="no safe checkpoint for ViT-B-32 with the tag nowhere"):
        sources.visual(unknown, CACHE)
