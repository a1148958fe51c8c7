"""Devices, engines, weights and forwards: each well, and each not."""

from pathlib import Path

import pytest

from engines import catalog, manifest
from engines.machine import native
from engines.model import Config
from server.check import inside
from server.check.finding import Finding
from server.settings import Settings
from server.shelf import Part

VISUAL = Part("visual", catalog.clip(catalog.DEMO))
FACENET = Part("recognition", catalog.face("facenet-vggface2"))
NO_GPU = (99,)  # no machine has so many


def named(found: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in found}


def test_the_processor_is_told_with_its_instructions_and_what_it_computes(tmp_path: Path) -> None:
    devices, found = inside.devices(Config(tmp_path, device="cpu"))
    told = named(found)
    assert str(devices[0]) == "cpu"
    assert told["cpu"].says
    assert int(told["cores at hand"].says) >= 1
    for precision in inside.LOWER:
        assert (told[precision].level == "ok") == (native(precision, devices[0]) is None)
    assert not [finding for finding in found if finding.level == "to do"]


def test_a_device_that_is_not_there_is_told(tmp_path: Path) -> None:
    devices, (finding,) = inside.devices(Config(tmp_path, device="cuda", device_ids=NO_GPU))
    assert devices == ()
    assert finding.level == "to do"
    assert "MACHINE_LEARNING_DEVICE" in finding.says


def test_a_precision_that_is_asked_for_and_not_computed_is_told(tmp_path: Path) -> None:
    devices, _ = inside.devices(Config(tmp_path, device="cpu"))
    for precision in inside.LOWER:
        _, found = inside.devices(Config(tmp_path, device="cpu", precision=precision))
        wanted = "ok" if native(precision, devices[0]) is None else "to do"
        assert named(found)[precision].level == wanted


def test_engines_that_cannot_be_used_are_noted_with_the_reason(tmp_path: Path) -> None:
    devices, _ = inside.devices(Config(tmp_path, device="cpu"))
    told = named(list(inside.engines(devices[0], Config(tmp_path, engine="auto"))))
    assert told["eager"].says == "available"
    assert told["tensorrt"].level == "note"
    assert "NVIDIA" in told["tensorrt"].says
    assert told["built"].says == "none"


def test_an_engine_that_is_asked_for_and_cannot_be_used_is_told(tmp_path: Path) -> None:
    devices, _ = inside.devices(Config(tmp_path, device="cpu"))
    told = named(list(inside.engines(devices[0], Config(tmp_path, engine="tensorrt"))))
    assert told["tensorrt"].level == "to do"


def test_what_the_engines_warn_of_is_told(tmp_path: Path) -> None:
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines").chmod(0o777)
    devices, _ = inside.devices(Config(tmp_path, device="cpu"))
    remarks = [one for one in inside.engines(devices[0], Config(tmp_path)) if one.name == "log"]
    assert [one.level for one in remarks] == ["note"]
    assert "can be written by others" in remarks[0].says


def test_weights_that_come_with_the_package_are_here(tmp_path: Path) -> None:
    ready, found = inside.weights([VISUAL], Settings(cache_folder=tmp_path))
    assert ready == {VISUAL}
    assert [finding.level for finding in found] == ["ok"]


def test_weights_that_are_missing_are_told_with_the_command(tmp_path: Path) -> None:
    ready, found = inside.weights([VISUAL, FACENET], Settings(cache_folder=tmp_path))
    assert ready == {VISUAL}
    assert found[-1].level == "to do"
    assert found[-1].advice == "Run: python -m scripts.fetch_weights facenet-vggface2"


def test_weights_are_listed_and_those_that_changed_since_they_were_verified_are_told(tmp_path: Path) -> None:
    path = tmp_path / "faces" / "facenet-vggface2" / "20180402-114759-vggface2.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"weights")
    manifest.write(path, "a test", "", "by hand", manifest.sha256(path))
    ready, found = inside.weights([FACENET], Settings(cache_folder=tmp_path))
    assert ready == {FACENET}
    assert "facenet-vggface2 (0 MB)" in found[0].says
    path.write_bytes(b"other weights")
    ready, found = inside.weights([FACENET], Settings(cache_folder=tmp_path))
    assert ready == set()
    assert "had 7 when it was verified" in found[-1].says


def test_untrained_models_need_no_weights(tmp_path: Path) -> None:
    assert inside.weights([FACENET], Settings(cache_folder=tmp_path, untrained=True))[0] == {FACENET}


def test_a_forward_of_each_kind_is_told_with_what_it_ran_on(tmp_path: Path) -> None:
    parts = inside.tried([])
    found = list(inside.forwards(parts, Config(tmp_path, device="cpu")))
    models = {finding.name: finding for finding in found if finding.name != "log"}
    assert models.keys() == {f"demo ({kind})" for kind in ("visual", "textual", "detection", "recognition")}
    assert {finding.level for finding in models.values()} == {"ok"}
    assert all("on cpu, eager float32" in finding.says for finding in models.values())


def test_what_is_preloaded_is_tried_alone() -> None:
    assert inside.tried([FACENET]) == [FACENET]


@pytest.mark.parametrize(
    ("part", "config", "told"),
    [
        (VISUAL, Config(Path(), device="cuda", device_ids=NO_GPU), "The settings want the device cuda"),
        (Part("visual", FACENET.entry), Config(Path(), device="cpu"), "ValueError: facenet-vggface2"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_told_and_ends_nothing(part: Part, config: Config, told: str) -> None:
    (finding,) = inside.forwards([part], config)
    assert finding.level == "to do"
    assert told in finding.says
