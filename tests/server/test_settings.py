"""Every setting: its variable, its default, its meaning."""

from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from engines.engine import BackendName, Precision
from server.settings import REPLACED, Settings, advice, variable


def test_every_setting_has_a_sentence_and_a_variable_of_ours() -> None:
    for field, info in Settings.model_fields.items():
        assert variable(field).startswith(("MACHINE_LEARNING_", "IMMICH_"))
        assert info.description
        assert info.description.endswith("."), field
    assert len({variable(field) for field in Settings.model_fields}) == len(Settings.model_fields)


@pytest.mark.parametrize(
    ("name", "value", "field", "meaning"),
    [
        ("IMMICH_HOST", "127.0.0.1", "host", "127.0.0.1"),
        ("IMMICH_PORT", "4004", "port", 4004),
        ("IMMICH_LOG_LEVEL", "verbose", "log_level", "verbose"),
        ("IMMICH_LOG_LEVEL", "INFO", "log_level", "info"),
        ("MACHINE_LEARNING_CACHE_FOLDER", "/cache", "cache_folder", Path("/cache")),
        ("MACHINE_LEARNING_MODEL_TTL", "0", "model_ttl", 0),
        ("MACHINE_LEARNING_REQUEST_THREADS", "3", "request_threads", 3),
        ("MACHINE_LEARNING_MODEL_INTRA_OP_THREADS", "5", "model_intra_op_threads", 5),
        ("MACHINE_LEARNING_DEVICE_IDS", "0,1", "device_ids", (0, 1)),
        ("MACHINE_LEARNING_DEVICE_IDS", "2", "device_ids", (2,)),
        ("MACHINE_LEARNING_DEVICE", "cuda", "device", "cuda"),
        ("MACHINE_LEARNING_REQUIRE_DEVICE", "cuda", "require_device", "cuda"),
        ("MACHINE_LEARNING_REQUIRE_DEVICE", "", "require_device", ""),
        ("MACHINE_LEARNING_ENGINE", "openvino", "engine", "openvino"),
        ("MACHINE_LEARNING_ENGINE", "", "engine", "auto"),
        ("MACHINE_LEARNING_PRECISION", "bfloat16", "precision", "bfloat16"),
        ("MACHINE_LEARNING_BUILD", "background", "build", "background"),
        ("MACHINE_LEARNING_STREAMS", "2", "streams", 2),
        ("MACHINE_LEARNING_OPENVINO_HINT", "throughput", "openvino_hint", "throughput"),
        ("MACHINE_LEARNING_UNTRAINED", "true", "untrained", True),
        ("MACHINE_LEARNING_FACE_ALIAS", "", "face_alias", ""),
        ("MACHINE_LEARNING_MODEL_TTL", "", "model_ttl", 300),
        ("MACHINE_LEARNING_PRELOAD__CLIP__TEXTUAL", "a, b,", "preload_clip_textual", ("a", "b")),
        ("MACHINE_LEARNING_PRELOAD__FACIAL_RECOGNITION__DETECTION", "demo", "preload_face_detection", ("demo",)),
    ],
)
def test_a_variable_sets_its_field(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, field: str, meaning: object
) -> None:
    monkeypatch.setenv(name, value)
    assert getattr(Settings(), field) == meaning


def test_the_cache_folder_is_in_the_home_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Settings().cache_folder == tmp_path / ".cache" / "facet"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("IMMICH_PORT", "70000"),
        ("MACHINE_LEARNING_MIN_FACE", "5"),
        ("MACHINE_LEARNING_CLIP_RESIZE", "stretch"),
        ("MACHINE_LEARNING_DEVICE_IDS", "first"),
        ("MACHINE_LEARNING_ENGINE", "onnx"),
        ("MACHINE_LEARNING_PRECISION", "float8"),
        ("MACHINE_LEARNING_BUILD", "always"),
        ("MACHINE_LEARNING_DEVICE", "cuda:0"),
        ("MACHINE_LEARNING_REQUIRE_DEVICE", "auto"),
        ("MACHINE_LEARNING_STREAMS", "-1"),
        ("MACHINE_LEARNING_DEVICE_IDS", "-1"),
        ("MACHINE_LEARNING_MAX_BODY_MB", "nan"),
        ("MACHINE_LEARNING_MAX_BODY_MB", "inf"),
    ],
)
def test_a_wrong_value_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError):
        Settings()


def test_a_setting_has_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MACHINE_LEARNING_PORT", "1")
    monkeypatch.setenv("MACHINE_LEARNING_PRELOAD_CLIP", "demo")
    assert Settings() == Settings.model_construct(
        **{name: f.get_default() for name, f in Settings.model_fields.items()}
        | {"cache_folder": Settings().cache_folder}
    )


def test_old_and_new_preload_names_mean_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MACHINE_LEARNING_PRELOAD__CLIP", "ViT-B-32__openai")
    monkeypatch.setenv("MACHINE_LEARNING_PRELOAD__CLIP__VISUAL", "ViT-B-32__openai,demo")
    monkeypatch.setenv("MACHINE_LEARNING_PRELOAD__FACIAL_RECOGNITION", "buffalo_l")
    assert Settings().preloads() == (
        ("textual", "ViT-B-32__openai"),
        ("visual", "ViT-B-32__openai"),
        ("visual", "demo"),
        ("detection", "buffalo_l"),
        ("recognition", "buffalo_l"),
    )


def test_settings_without_a_meaning_here_are_told_what_replaces_them() -> None:
    replaced = [pattern.replace("*", "X") for pattern in REPLACED]
    environ = dict.fromkeys([*replaced, "MACHINE_LEARNING_ANN_FP16_TURBO", "MACHINE_LEARNING_RKNN_THREADS"], "1")
    sentences = advice(environ)
    assert len(sentences) == len(environ)
    assert all("has no effect" in sentence for sentence in sentences)


def test_a_misspelt_setting_is_told_its_name_and_others_are_left_alone() -> None:
    assert advice({"MACHINE_LEARNING_MODEL_TLL": "1", "HOME": "/", "IMMICH_WEB_ROOT": "/"}) == [
        "MACHINE_LEARNING_MODEL_TLL is not a setting: did you mean MACHINE_LEARNING_MODEL_TTL?"
    ]
    assert advice({variable(field): "1" for field in Settings.model_fields}) == []


def test_the_engines_that_can_be_set_are_those_that_there_are() -> None:
    for field, known in (("engine", BackendName), ("precision", Precision)):
        assert get_args(Settings.model_fields[field].annotation) == ("auto", *get_args(known))
