"""Settings, cache folder and port: each well, and each not."""

import sys
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from server.check import configured
from server.check.finding import Finding
from server.routes import PRELOAD
from server.settings import Settings
from server.shelf import in_thread
from tests.server.fakes import FakeEngines, fake_app


def looked(monkeypatch: pytest.MonkeyPatch, **environ: str) -> tuple[Settings | None, dict[str, Finding]]:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    settings, found = configured.settings()
    return settings, {finding.name: finding for finding in found}


def test_no_setting_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    settings, found = looked(monkeypatch)
    assert settings is not None
    assert found == {"all": Finding("settings", "all", "as they are by default")}


def test_settings_that_are_not_default_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    _, found = looked(
        monkeypatch, IMMICH_PORT="3010", MACHINE_LEARNING_DEVICE_IDS="0,1", MACHINE_LEARNING_MIN_FACE="40"
    )
    assert {name: (one.says, one.level) for name, one in found.items()} == {
        "IMMICH_PORT": ("3010", "ok"),
        "MACHINE_LEARNING_DEVICE_IDS": ("0,1", "ok"),
    }


@pytest.mark.parametrize(
    ("name", "value", "level", "told"),
    [
        ("MACHINE_LEARNING_WORKERS", "4", "note", "has no effect"),
        ("MACHINE_LEARNING_UNTRAINED", "true", "note", "random weights"),
        ("MACHINE_LEARNING_MODEL_TLL", "4", "to do", "did you mean MACHINE_LEARNING_MODEL_TTL?"),
        ("MACHINE_LEARNING_CALIBRATION", "/nowhere/at/all", "to do", "there is no /nowhere/at/all"),
    ],
)
def test_what_is_without_effect_or_misspelt_or_not_there_is_told(
    name: str, value: str, level: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, found = looked(monkeypatch, **{name: value})
    assert settings is not None
    assert found[name].level == level
    assert told in found[name].says


def test_traces_that_could_not_be_sent_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    _, found = looked(monkeypatch, MACHINE_LEARNING_TRACING="localhost:4318")
    assert found["MACHINE_LEARNING_TRACING"].level == "to do"
    assert "http://localhost:4318" in found["MACHINE_LEARNING_TRACING"].says
    _, found = looked(monkeypatch, MACHINE_LEARNING_TRACING="http://localhost:4318")
    assert found["MACHINE_LEARNING_TRACING"].level == "ok"
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    _, found = looked(monkeypatch)
    assert found["MACHINE_LEARNING_TRACING"].level == "to do"
    assert "facet-ml[tracing]" in found["MACHINE_LEARNING_TRACING"].says


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("IMMICH_PORT", "99999", "less than or equal to 65535"),
        ("MACHINE_LEARNING_MIN_FACE", "tiny", "valid integer"),
    ],
)
def test_a_wrong_setting_is_a_sentence(name: str, value: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, found = looked(monkeypatch, **{name: value})
    assert settings is None
    assert found[name].level == "to do"
    assert told in found[name].says


def test_a_wrong_name_of_a_model_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    settings, found = looked(monkeypatch, MACHINE_LEARNING_PRELOAD__CLIP="ViT-B-33__openai")
    assert settings is None
    (finding,) = found.values()
    assert finding.level == "to do"
    assert "ViT-B-32__openai" in finding.says


def test_a_folder_that_is_there_or_can_be_made_is_well(tmp_path: Path) -> None:
    assert [finding.level for finding in configured.cache(tmp_path)] == ["ok", "ok"]
    folder, disk = configured.cache(tmp_path / "not" / "yet")
    assert "will be made" in folder.says
    assert (folder.level, disk.level) == ("ok", "ok")


def test_a_file_in_place_of_the_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    for path in (tmp_path / "file", tmp_path / "file" / "cache"):
        folder, _ = configured.cache(path)
        assert folder.level == "to do"
        assert f"{tmp_path / 'file'} is a file" in folder.says
        assert "writable" not in folder.advice
        assert "MACHINE_LEARNING_CACHE_FOLDER" in folder.advice


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configured, "LITTLE_GB", 1e9)
    *_, disk = configured.cache(tmp_path)
    assert disk.level == "to do"
    assert "Make room" in disk.advice


async def listened(app: web.Application) -> Finding:
    """Return what is found at a port where `app` is served."""
    async with TestServer(app) as server:
        if PRELOAD in app:
            await app[PRELOAD]
        settings = Settings(IMMICH_HOST="127.0.0.1", IMMICH_PORT=server.port)
        return await in_thread(lambda: configured.port(settings), "look")


async def test_a_server_that_is_ready_may_hold_the_port() -> None:
    finding = await listened(fake_app(FakeEngines()))
    assert finding.level == "ok"
    assert "is ready" in finding.says


async def test_a_server_that_is_not_ready_is_told_with_its_reason() -> None:
    engines = FakeEngines()
    engines.broken = ImportError("a library is missing")
    finding = await listened(fake_app(engines))
    assert finding.level == "note"
    assert "a library is missing" in finding.says


async def test_something_else_at_the_port_is_told() -> None:
    finding = await listened(web.Application())
    assert finding.level == "to do"
    assert "IMMICH_PORT" in finding.advice


def test_a_free_port_is_well() -> None:
    settings = Settings(IMMICH_HOST="127.0.0.1", IMMICH_PORT=0)
    assert configured.port(settings).level == "ok"
