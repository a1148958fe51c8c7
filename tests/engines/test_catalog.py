import pytest

from engines import catalog
from engines.errors import UnknownModel

CLIP_NAMES = catalog.names()["clip"]


def test_the_table_has_every_published_name_and_the_demo() -> None:
    published = [name for name in CLIP_NAMES if catalog.clip(name).tag]
    assert len(published) == len(set(published)) == 58
    assert len([name for name in published if catalog.clip(name).mclip_repo]) == 4
    assert catalog.names()["facial-recognition"] == ("facenet-vggface2", "facenet-casia-webface", "demo")


def test_no_name_changes_when_normalised() -> None:
    assert [catalog.normalise(name) for name in CLIP_NAMES] == list(CLIP_NAMES)


@pytest.mark.parametrize(
    ("written", "key"),
    [
        ("ViT-B-32__openai", "ViT-B-32__openai"),
        ("ViT-B-32::openai", "ViT-B-32__openai"),
        ("immich-app/ViT-B-32__openai", "ViT-B-32__openai"),
        ("a/b/ViT-B-32:_openai", "ViT-B-32__openai"),
        ("ViT-B-32\\\\openai", "ViT-B-32__openai"),
        ("ViT-B-32__open.ai", "ViT-B-32__openai"),
        ("../../etc/passwd", "passwd"),
        ("", ""),
    ],
)
def test_spellings_of_one_name(written: str, key: str) -> None:
    assert catalog.normalise(written) == key


def test_an_entry_carries_its_row() -> None:
    entry = catalog.clip("immich-app/ViT-B-16-SigLIP2::webli")
    assert (entry.arch, entry.tag) == ("ViT-B-16-SigLIP2", "webli")
    assert (entry.dim, entry.image_size, entry.context_length) == (768, 224, 64)
    assert (entry.resize, entry.text_tower, entry.quickgelu) == ("squash", "fixed", False)


def test_quickgelu_follows_the_column_that_says_how_to_run_and_not_what_the_tag_wants() -> None:
    assert catalog.clip("ViT-B-32__openai").quickgelu
    assert catalog.clip("ViT-H-14-378-quickgelu__dfn5b").quickgelu
    assert not catalog.clip("ViT-B-32__laion400m_e32").quickgelu
    assert not catalog.clip("RN50__cc12m").quickgelu


@pytest.mark.parametrize(
    ("name", "dim"),
    [
        ("XLM-Roberta-Large-Vit-B-32", 512),
        ("XLM-Roberta-Large-Vit-B-16Plus", 640),
        ("LABSE-Vit-L-14", 768),
        ("XLM-Roberta-Large-Vit-L-14", 768),
    ],
)
def test_mclip_names_lead_to_their_repository(name: str, dim: int) -> None:
    entry = catalog.clip(name)
    assert (entry.dim, entry.mclip_repo, entry.text_tower) == (dim, f"M-CLIP/{name}", "masked")


def test_the_demo_says_what_its_own_config_says() -> None:
    entry, config = catalog.clip("demo"), catalog.demo_config()
    assert entry.dim == config["embed_dim"]
    assert entry.image_size == config["vision_cfg"]["image_size"]
    assert entry.context_length == config["text_cfg"]["context_length"]


@pytest.mark.parametrize("alias", catalog.FACE_ALIASES)
def test_insightface_names_lead_to_the_alias(alias: str) -> None:
    assert catalog.face(alias).name == "facenet-vggface2"
    assert catalog.face(f"immich-app/{alias}", "facenet-casia-webface").classes == 10575
    assert catalog.look_up("detection", alias, "demo").name == "demo"


def test_an_empty_alias_refuses_insightface_names_but_no_other() -> None:
    with pytest.raises(UnknownModel, match="MACHINE_LEARNING_FACE_ALIAS"):
        catalog.face("buffalo_l", "")
    assert catalog.face("facenet-vggface2", "").classes == 8631


@pytest.mark.parametrize("alias", ["nonsense", "buffalo_m"])
def test_an_alias_that_is_no_face_model_is_refused(alias: str) -> None:
    with pytest.raises(UnknownModel, match="set it to one of facenet-vggface2"):
        catalog.face("buffalo_l", alias)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownModel, match="ViT-B-32__openai"):
        catalog.clip("vit-b-32__openia")
    with pytest.raises(UnknownModel, match="buffalo_l"):
        catalog.face("bufalo_l")
    with pytest.raises(UnknownModel, match="/models"):
        catalog.clip("")


def test_a_name_of_another_task_says_which() -> None:
    with pytest.raises(UnknownModel, match="facial-recognition"):
        catalog.look_up("visual", "buffalo_l")
    with pytest.raises(UnknownModel, match="'clip'"):
        catalog.look_up("recognition", "ViT-B-32__openai")


def test_a_hostile_name_is_shown_short_and_escaped() -> None:
    with pytest.raises(UnknownModel) as caught:
        catalog.clip("\r\nSet-Cookie: x" + "a" * 1_000_000)
    message = str(caught.value)
    assert "\n" not in message
    assert "\r" not in message
    assert len(message) < 300
