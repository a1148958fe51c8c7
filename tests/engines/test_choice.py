"""The fastest engine that passed for this device is taken; without one eager is, and says how to build."""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from engines import builder, catalog, choice, clip, machine
from engines.artefact import Manifest
from engines.choice import choose
from engines.engine import BackendName, Engine, Layout, Precision, Spec, Subject, backend_named, powers_of_two
from engines.errors import ArtefactBroken
from engines.key import Key, key_for
from engines.model import Config
from engines.parity import Report
from engines.store import Store
from tests.engines.broken_backends import Broken, faithful

CPU = torch.device("cpu")
ANY = Config(Path("/nowhere"), engine="auto", precision="auto")


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return clip.visual_subject(catalog.clip("demo"), Config(tmp_path_factory.mktemp("cache")), CPU)


@pytest.fixture(autouse=True)
def _processor_with_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not each has the instructions that int8 needs."""
    monkeypatch.setattr(machine, "native", lambda precision, device: None)


@pytest.fixture(autouse=True)
def _backends_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled backends are eager PyTorch under their names, and eager has no lower precision."""
    compiled = Broken(faithful)
    eager = backend_named("eager")
    monkeypatch.setattr(builder, "backend_named", lambda name: eager if name == "eager" else compiled)
    monkeypatch.setattr(eager, "available", lambda device, precision: f"This processor has no {precision}.")


def publish(
    cache: Path,
    subject: Subject,
    backend: BackendName,
    precision: Precision = "float32",
    *,
    rates: Sequence[float],
    untrained: bool = False,
    layout: Layout = Layout(),  # noqa: B008 - frozen
    cores: int = 2,
    calibration: str = "",
    **fields: str,
) -> Path:
    """Put an engine into the store with items/s by bucket, beside an eager float32 of 10; `fields` change its key."""
    buckets = powers_of_two(1 << (len(rates) - 1))
    store = Store(cache / "engines")
    specs = subject.specs(precision, Layout(), buckets)
    key = key_for(subject, backend, precision, CPU, specs, calibration=calibration)
    key = Key.model_validate({**key.model_dump(), **fields})
    manifest = Manifest(
        key=key,
        report=Report(0.9999, 0.01, 1.0, ()),
        timings=dict(zip(buckets, rates, strict=True)),
        reference_timings=dict.fromkeys(buckets, 10.0),
        layout=layout,
        untrained=untrained,
        build_seconds=1.0,
        memory_bytes=1,
        made="2026-11-23T00:00:00+00:00",
        cores=cores,
    )
    with store.draft(key) as folder:
        (folder / "visual.bin").write_bytes(b"compiled")
        return store.publish(key, folder, manifest).folder


def test_without_an_engine_eager_float32_is_taken_and_says_how_to_build(tower: Subject, tmp_path: Path) -> None:
    chosen = choose(tower, replace(ANY, cache_folder=tmp_path))
    assert (chosen.engine.backend, chosen.engine.precision, chosen.built) == ("eager", "float32", False)
    assert "python -m scripts.build_engines demo" in chosen.reason
    assert "has no bfloat16" in chosen.reason
    assert chosen.buckets == tuple(range(1, 33))


def test_the_fastest_is_taken_over_all_buckets_that_the_rivals_share(tower: Subject, tmp_path: Path) -> None:
    publish(tmp_path, tower, "torchscript", rates=(30, 30, 30))
    publish(tmp_path, tower, "openvino", rates=(60, 40))
    # Fast only in a bucket that the others do not have.
    publish(tmp_path, tower, "torchscript", "int8", rates=(20, 20, 20, 900))
    chosen = choose(tower, replace(ANY, cache_folder=tmp_path))
    assert chosen.built
    assert chosen.reason.startswith("4.9 x eager float32")  # the root of 6 x 4
    assert chosen.buckets == (1,)


@pytest.mark.parametrize(
    ("config", "precision"),
    [
        (ANY, "float32"),  # int8 of random weights says nothing
        (replace(ANY, precision="int8"), "int8"),
    ],
)
def test_int8_is_taken_by_itself_only_with_real_weights(
    tower: Subject, tmp_path: Path, config: Config, precision: Precision
) -> None:
    publish(tmp_path, tower, "torchscript", "float32", rates=(20, 20))
    publish(tmp_path, tower, "openvino", "int8", rates=(90, 90), untrained=True)
    assert choose(tower, replace(config, cache_folder=tmp_path)).engine.precision == precision


def test_int8_that_passed_on_real_weights_is_taken(tower: Subject, tmp_path: Path) -> None:
    publish(tmp_path, tower, "torchscript", "float32", rates=(20, 20))
    publish(tmp_path, tower, "openvino", "int8", rates=(90, 90), untrained=False)
    assert choose(tower, replace(ANY, cache_folder=tmp_path)).engine.precision == "int8"


def test_int8_is_used_whatever_it_was_calibrated_on(tower: Subject, tmp_path: Path) -> None:
    publish(tmp_path, tower, "openvino", "int8", rates=(90, 90), calibration="40 inputs 0123")
    assert choose(tower, replace(ANY, cache_folder=tmp_path, precision="int8")).engine.precision == "int8"


def test_int8_that_is_asked_for_is_taken_also_where_others_are_faster(tower: Subject, tmp_path: Path) -> None:
    publish(tmp_path, tower, "torchscript", "bfloat16", rates=(90, 90))
    publish(tmp_path, tower, "openvino", "int8", rates=(5, 5), untrained=True)
    chosen = choose(tower, replace(ANY, cache_folder=tmp_path, precision="int8"))
    assert (chosen.engine.precision, chosen.built) == ("int8", True)


def test_without_int8_the_next_best_runs_and_one_is_left_to_build(tower: Subject, tmp_path: Path) -> None:
    publish(tmp_path, tower, "torchscript", "float32", rates=(20, 20))
    publish(tmp_path, tower, "torchscript", "bfloat16", rates=(90, 90))
    chosen = choose(tower, replace(ANY, cache_folder=tmp_path, precision="int8"))
    assert (chosen.engine.precision, chosen.built) == ("bfloat16", False)
    assert (
        "no compiled engine in int8: python -m scripts.build_engines demo --precision int8 builds one" in chosen.reason
    )


@pytest.mark.parametrize("lacks", ["processor", "subject"])
def test_where_int8_cannot_be_the_settings_count_as_auto(
    tower: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacks: str
) -> None:
    if lacks == "processor":
        monkeypatch.setattr(machine, "native", lambda precision, device: f"there is no {precision}.")
    else:
        monkeypatch.setattr(tower, "no_int8", "there is no int8")
    publish(tmp_path, tower, "torchscript", "bfloat16", rates=(90, 90))
    chosen = choose(tower, replace(ANY, cache_folder=tmp_path, precision="int8"))
    assert (chosen.engine.precision, chosen.built) == ("bfloat16", True)
    assert chosen.reason.endswith("; not int8: there is no int8")


def test_the_settings_can_name_the_engine(tower: Subject, tmp_path: Path) -> None:
    publish(tmp_path, tower, "torchscript", rates=(90, 90))
    publish(tmp_path, tower, "openvino", rates=(20, 20))
    chosen = choose(tower, replace(ANY, cache_folder=tmp_path, engine="openvino"))
    assert chosen.reason.startswith("2.0 x")
    none = choose(tower, replace(ANY, cache_folder=tmp_path, engine="inductor"))
    assert none.engine.backend == "eager"


def test_what_would_stall_the_server_is_taken_by_name_only(tower: Subject, tmp_path: Path) -> None:
    publish(tmp_path, tower, "torchscript", rates=(20, 20))
    publish(tmp_path, tower, "inductor", rates=(90, 90))
    assert choose(tower, replace(ANY, cache_folder=tmp_path)).reason.startswith("2.0 x")
    assert choose(tower, replace(ANY, cache_folder=tmp_path, engine="inductor")).reason.startswith("9.0 x")


def test_eager_float32_is_kept_where_it_is_the_fastest(tower: Subject, tmp_path: Path) -> None:
    publish(tmp_path, tower, "torchscript", rates=(9, 9))
    chosen = choose(tower, replace(ANY, cache_folder=tmp_path))
    assert (chosen.engine.backend, chosen.built) == ("eager", False)
    assert chosen.reason == "faster here than the best that passed, torchscript float32 (0.90 x)"


def test_an_engine_of_another_processor_is_named_and_not_used(
    tower: Subject, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(tmp_path, tower, "torchscript", rates=(90, 90), instructions="avx2", device="another processor")
    with caplog.at_level(logging.WARNING):
        chosen = choose(tower, replace(ANY, cache_folder=tmp_path))
    assert chosen.engine.backend == "eager"
    assert "device: built with 'another processor'" in caplog.text
    assert "instructions: built with 'avx2'" in caplog.text


def test_a_truncated_artefact_is_set_aside_and_the_next_best_taken(
    tower: Subject, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(tmp_path, tower, "torchscript", rates=(20, 20))
    best = publish(tmp_path, tower, "openvino", rates=(90, 90))
    (best / "visual.bin").write_bytes(b"com")
    with caplog.at_level(logging.WARNING):
        chosen = choose(tower, replace(ANY, cache_folder=tmp_path))
    assert chosen.reason.startswith("2.0 x")
    assert "visual.bin has 3 bytes, 8 were published" in caplog.text
    assert not best.exists()


def test_an_engine_that_cannot_be_loaded_now_stays_for_later(
    tower: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Short(Broken):
        def load(self, module: nn.Module | None, spec: Spec, folder: Path) -> Engine:
            raise ArtefactBroken("There is no memory left.")

    publish(tmp_path, tower, "torchscript", rates=(20, 20))
    best = publish(tmp_path, tower, "openvino", rates=(90, 90))
    short, fine = Short(faithful), Broken(faithful)
    monkeypatch.setattr(builder, "backend_named", lambda name: short if name == "openvino" else fine)
    with caplog.at_level(logging.WARNING):
        assert choose(tower, replace(ANY, cache_folder=tmp_path)).reason.startswith("2.0 x")
    assert "openvino float32 cannot be loaded now. There is no memory left." in caplog.text
    assert best.is_dir()


def test_streams_are_those_measured_unless_the_cores_are_others(
    tower: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    class Noting(Broken):
        def load(self, module: nn.Module | None, spec: Spec, folder: Path) -> Engine:
            seen.append(spec.layout.streams)
            return super().load(module, spec, folder)

    monkeypatch.setattr(builder, "backend_named", lambda name: Noting(faithful))
    publish(tmp_path, tower, "openvino", rates=(90, 90), layout=Layout(streams=4), cores=8)
    for cores, asked in ((8, 0), (2, 0), (2, 3)):
        monkeypatch.setattr(machine, "cores", lambda cores=cores: cores)
        choose(tower, replace(ANY, cache_folder=tmp_path, streams=asked))
    assert seen == [4, 1, 3]


@pytest.mark.parametrize(
    ("config", "advice"),
    [
        (ANY, "python -m scripts.build_engines demo builds one"),
        (replace(ANY, engine="openvino", precision="bfloat16"), "demo --backend openvino --precision bfloat16 builds"),
        (
            replace(ANY, precision="int8"),
            "no compiled engine in int8: python -m scripts.build_engines demo --precision int8",
        ),
        (replace(ANY, engine="eager"), "the settings ask for eager PyTorch"),
    ],
)
def test_the_advice_builds_what_the_settings_ask_for(
    tower: Subject, tmp_path: Path, config: Config, advice: str
) -> None:
    assert advice in choose(tower, replace(config, cache_folder=tmp_path)).reason


def test_nothing_is_examined_where_something_better_is_on_its_way(
    tower: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(builder, "build", lambda *args, **kwargs: asked.append("build"))
    assert choose(tower, replace(ANY, cache_folder=tmp_path, examine=False)).engine.precision == "float32"
    assert asked == []


def test_an_unreadable_manifest_costs_nothing_but_its_engine(tower: Subject, tmp_path: Path) -> None:
    publish(tmp_path, tower, "torchscript", rates=(20, 20))
    best = publish(tmp_path, tower, "openvino", rates=(90, 90))
    (best / "manifest.json").write_text(json.dumps({"format": 1}))
    assert choose(tower, replace(ANY, cache_folder=tmp_path)).reason.startswith("2.0 x")


def test_the_largest_batch_is_the_smallest_that_is_nearly_as_fast_as_any() -> None:
    assert choice.useful({1: 30.0, 2: 36.0, 4: 39.0, 8: 41.0, 16: 40.0, 32: 42.0}) == (1, 2, 4, 8)
    assert choice.useful({1: 42.0, 2: 42.0, 4: 30.0}) == (1,)
    assert choice.useful({1: 10.0, 2: 20.0, 4: 40.0}) == (1, 2, 4)
