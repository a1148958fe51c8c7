"""The page and its exit code: once as a process, with everything; else as far as wrong settings let it go."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from server.check.__main__ import main

ROOT = Path(__file__).parents[3]


def test_a_machine_that_is_well_gets_one_page_and_exit_code_0(tmp_path: Path) -> None:
    environ = {
        **os.environ,
        "COLUMNS": "100",
        "IMMICH_PORT": "0",
        "MACHINE_LEARNING_CACHE_FOLDER": str(tmp_path),
        "MACHINE_LEARNING_ENGINE": "eager",
        "MACHINE_LEARNING_PRECISION": "float32",
        "MACHINE_LEARNING_PRELOAD__CLIP__TEXTUAL": "demo",
        "MACHINE_LEARNING_PRELOAD__FACIAL_RECOGNITION": "demo",
    }
    command = [sys.executable, "-m", "server.check"]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=200)  # noqa: S603 - our own interpreter
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    headings = [line for line in lines if line.isupper() and line.isalpha()]
    assert headings == ["VERSIONS", "SETTINGS", "PORT", "CACHE", "DEVICES", "ENGINES", "WEIGHTS", "MODELS"]
    assert lines[-1] == "All is well. To start the server: python -m server"
    assert len(lines) < 80
    assert "demo (visual)" not in done.stdout
    for kind in ("textual", "detection", "recognition"):
        assert f"ok    demo ({kind})" in done.stdout or f"ok  demo ({kind})" in done.stdout


def test_wrong_settings_are_sentences_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IMMICH_PORT", "99999")
    assert main([]) == 1
    out = capsys.readouterr().out
    assert "IMMICH_PORT" in out
    assert "1 thing is to do" in out
    assert "Traceback" not in out


def test_programs_get_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("IMMICH_PORT", "99999")
    monkeypatch.setenv("MACHINE_LEARNING_MODEL_TLL", "1")
    assert main(["--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["well"] is False
    assert {one["name"] for one in told["findings"] if one["level"] == "to do"} == {
        "IMMICH_PORT",
        "MACHINE_LEARNING_MODEL_TLL",
    }
    assert all(one["advice"] for one in told["findings"] if one["level"] != "ok")
