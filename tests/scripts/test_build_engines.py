"""Building from the command line: the table, the last line, exit codes, and what an interrupted build leaves."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch

from engines import builder, catalog, clip, engine, tokenizer
from engines.choice import choose
from engines.engine import BackendName
from engines.errors import UnknownModel
from engines.model import Config
from engines.store import Store
from scripts import build_engines
from tests.engines.broken_backends import Broken, faithful, swapped_rows

TEXTS = ["demo", "--kind", "textual", "--backend", "torchscript", "--precision", "float32", "--batch", "1,2"]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MACHINE_LEARNING_CACHE_FOLDER", str(tmp_path))


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Broken], None]:
    """Put a backend in the place of torchscript."""

    def put(backend: Broken) -> None:
        def named(name: BackendName) -> engine.Backend:
            return engine.backend_named(name) if name == "eager" else backend

        monkeypatch.setattr(builder, "backend_named", named)

    return put


def records(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    last: list[dict[str, Any]] = orjson.loads(capsys.readouterr().out.splitlines()[-1])
    return last


def test_what_passed_is_shown_and_told_as_json(
    tmp_path: Path, use: Callable[[Broken], None], capsys: pytest.CaptureFixture[str]
) -> None:
    use(Broken(faithful))
    assert build_engines.main(TEXTS) == 0
    printed = capsys.readouterr()
    for heading in (
        "backend",
        "precision",
        "batch 1",
        "batch 2",
        "x eager, most",
        "lowest cosine",
        "build s",
        "memory MB",
    ):
        assert heading in printed.out
    assert "demo (textual): torchscript float32 is examined" in printed.err
    (record,) = orjson.loads(printed.out.splitlines()[-1])
    assert record["passed"]
    assert (record["model"], record["kind"], record["network"]) == ("demo", "textual", "textual")
    assert (record["backend"], record["precision"]) == ("torchscript", "float32")
    assert set(record["items_per_s"]) == {"1", "2"}
    (stored,) = Store(tmp_path / "engines").all()
    assert record["bytes"] == sum(path.stat().st_size for path in stored.folder.glob("textual*")) > 0


def test_what_failed_is_told_with_the_reason(
    tmp_path: Path, use: Callable[[Broken], None], capsys: pytest.CaptureFixture[str]
) -> None:
    use(Broken(swapped_rows))
    assert build_engines.main(TEXTS) == 1
    printed = capsys.readouterr().out
    (record,) = orjson.loads(printed.splitlines()[-1])
    assert not record["passed"]
    assert "a row in a batch of 2" in record["reason"]
    assert f"torchscript float32: {record['reason']}" in printed
    assert Store(tmp_path / "engines").all() == []


def test_the_detector_has_a_record_for_each_network(
    use: Callable[[Broken], None], capsys: pytest.CaptureFixture[str]
) -> None:
    use(Broken(faithful, reason="It is not installed."))
    assert build_engines.main(["mtcnn", "--backend", "torchscript", "--precision", "float32"]) == 1
    told = records(capsys)
    assert [record["network"] for record in told] == ["proposal", "refine", "output"]
    assert {record["reason"] for record in told} == {"It is not installed."}


def test_auto_goes_on_to_float32_where_the_lower_precision_fails(
    use: Callable[[Broken], None], capsys: pytest.CaptureFixture[str]
) -> None:
    class OnlyFloat32(Broken):
        def available(self, device: torch.device, precision: engine.Precision) -> str | None:
            return None if precision == "float32" else f"This machine has no {precision}."

    use(OnlyFloat32(faithful))
    assert build_engines.main(["demo", "--kind", "textual", "--backend", "torchscript", "--batch", "1,2"]) == 0
    assert [(one["precision"], one["passed"]) for one in records(capsys)] == [
        ("bfloat16", False),
        ("float16", False),
        ("float32", True),
    ]


@pytest.mark.parametrize(("precision", "passed"), [("auto", ["bfloat16"]), ("all", ["float32", "bfloat16", "float16"])])
def test_the_best_backend_alone_builds_in_the_precisions_that_are_asked_for(
    use: Callable[[Broken], None], capsys: pytest.CaptureFixture[str], precision: str, passed: list[str]
) -> None:
    use(Broken(faithful))
    arguments = ["demo", "--kind", "textual", "--precision", precision, "--batch", "1,2"]
    assert build_engines.main(arguments) == 0
    assert [(one["backend"], one["precision"]) for one in records(capsys)] == [("openvino", one) for one in passed]


def test_what_does_not_pass_in_int8_is_built_as_without_it(
    use: Callable[[Broken], None], capsys: pytest.CaptureFixture[str]
) -> None:
    class NoInt8(Broken):
        def available(self, device: torch.device, precision: engine.Precision) -> str | None:
            return f"This machine has no {precision}." if precision == "int8" else None

    use(NoInt8(faithful))
    arguments = ["demo", "--kind", "textual", "--backend", "torchscript", "--precision", "int8", "--batch", "1,2"]
    assert build_engines.main(arguments) == 0
    assert [(one["precision"], one["passed"]) for one in records(capsys)] == [("int8", False), ("bfloat16", True)]


def test_int8_is_calibrated_on_what_is_given(
    tmp_path: Path, use: Callable[[Broken], None], capsys: pytest.CaptureFixture[str]
) -> None:
    use(Broken(faithful))
    (tmp_path / "mine.txt").write_text("\n".join(f"text {number}" for number in range(10)), encoding="utf-8")
    arguments = [*TEXTS[:5], "--precision", "int8", "--batch", "1,2"]
    words = []
    for more in ([], ["--calibrate-texts", str(tmp_path / "mine.txt")]):
        assert build_engines.main([*arguments, *more]) == 0
        (stored,) = Store(tmp_path / "engines").all()  # the second in place of the first
        words.append(stored.manifest.key.calibration)
    assert words[0] != words[1]
    capsys.readouterr()
    assert build_engines.main([*arguments, "--calibrate-texts", str(tmp_path / "none.txt")]) == 0
    assert "none.txt cannot be read" in records(capsys)[0]["reason"]


def test_all_builds_what_the_settings_preload(
    use: Callable[[Broken], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(Broken(faithful))
    monkeypatch.setenv("MACHINE_LEARNING_PRELOAD__CLIP__TEXTUAL", "demo")
    assert build_engines.main(["--all", *TEXTS[3:]]) == 0
    assert [(record["model"], record["kind"]) for record in records(capsys)] == [("demo", "textual")]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["ViT-B-33"], "There is no CLIP model 'ViT-B-33'"),
        ([], "--all"),
        (["demo", "--device", "cuda"], "cuda"),
    ],
)
def test_what_cannot_be_done_is_told(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert build_engines.main(arguments) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("batch", ["2,4", "1,4,2", "1,x", ""])
def test_batches_that_make_no_sense_are_refused(batch: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        build_engines.main(["demo", "--batch", batch])
    assert ended.value.code == 2
    assert "--batch" in capsys.readouterr().err


def test_the_sides_of_a_name() -> None:
    assert [kind for kind, _ in build_engines.parts("demo", "")] == ["visual", "textual", "detection", "recognition"]
    assert [kind for kind, _ in build_engines.parts("buffalo_l", "facenet-vggface2")] == ["detection", "recognition"]
    with pytest.raises(UnknownModel):
        build_engines.parts("nothing", "")


@pytest.mark.parametrize("stage", ["is compiled", "is examined", "is timed"])
def test_a_build_that_is_killed_leaves_nothing_that_is_loaded(tmp_path: Path, stage: str) -> None:
    command = [sys.executable, "-m", "scripts.build_engines", *TEXTS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as build:  # noqa: S603 - our own command
        assert build.stderr is not None
        assert any(stage in line for line in build.stderr)
        build.send_signal(signal.SIGKILL)
    store = Store(tmp_path / "engines")
    assert store.all() == []
    config = Config(tmp_path, engine="torchscript", precision="float32")
    subject = clip.textual_subject(
        catalog.clip("demo"), config, torch.device("cpu"), tokenizer.load(catalog.clip("demo"), config)[0]
    )
    assert choose(subject, config).engine.backend == "eager"
    # The next build takes the lock that the dead one held, and clears away what it left.
    stored = builder.build(subject, "torchscript", "float32", store, builder.BRIEF, buckets=(1, 2))
    assert choose(subject, replace(config, precision="auto")).engine.backend == "torchscript"
    assert [path for path in store.folder.iterdir() if path.name.startswith(".draft")] == []
    assert stored.folder.is_dir()
