"""Servers are processes that are waited for and ended, and what they run on is what was built."""

import contextlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from engines import catalog
from engines.choice import how_to_build
from engines.engine import Subject
from scripts.bench import served
from scripts.bench.options import Options
from scripts.bench.served import Running, Served, others
from scripts.bench.start import watch
from scripts.bench.turns import Ended

# Loads until the third question whether it is ready.
STUB = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    asked = 0
    def do_GET(self):
        Handler.asked += self.path == "/health/ready"
        self.send_response(503 if self.path == "/health/ready" and Handler.asked < 3 else 200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"[]")
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
BFLOAT16 = Running("openvino bfloat16", "2.2 x eager float32 here")
INSTEAD = Running("openvino bfloat16", "2.2 x eager float32 here; not int8: no compiled engine in int8")
EAGER = Running("eager float32", "no compiled engine: scripts.build_engines builds one")


def stub(folder: Path, code: str = STUB) -> Served:
    port = served.free_port()
    return Served([sys.executable, "-c", code, str(port)], {}, port, folder / "logs" / "stub.log")


def test_a_server_is_waited_for_and_ended(tmp_path: Path) -> None:
    server = stub(tmp_path)
    try:
        server.wait_ready(20)
        assert server.get("/ping") == (200, b"[]")
        held = server.memory()
        assert 1 < held.unique <= held.proportional <= held.resident <= held.peak < 1000
        server.wait_quiet()
    finally:
        server.close()
    with pytest.raises(Ended, match="the server ended with -15"):
        server.get("/ping")


def test_the_log_of_a_server_that_ended_is_told(tmp_path: Path) -> None:
    server = stub(tmp_path, "import sys; sys.exit('no weights')")
    with pytest.raises(Ended, match="no weights"):
        server.wait_ready(20)


def test_a_start_is_watched_until_it_is_ready(tmp_path: Path) -> None:
    starting = contextlib.closing(stub(tmp_path))
    start = watch(starting)
    assert start.ping > 0
    assert start.ready >= start.gap > 0.04  # two more questions, 0.05 s after one another


@pytest.mark.parametrize(
    ("built", "running", "precision", "wrong"),
    [
        ("openvino bfloat16", BFLOAT16, "auto", ""),
        (
            "openvino bfloat16",
            EAGER,
            "auto",
            "visual runs on eager float32, not openvino bfloat16 (no ",
        ),
        ("openvino int8", BFLOAT16, "auto", ""),  # among what was built it takes the fastest
        ("openvino int8", BFLOAT16, "int8", "visual runs on openvino bfloat16, not openvino int8 (2.2 x"),
        ("openvino bfloat16", INSTEAD, "int8", ""),  # int8 did not pass, and is told by build_engines
        ("openvino bfloat16", Running("eager float32", "faster here than the best"), "auto", ""),
        ("", EAGER, "auto", ""),  # nothing could be built
    ],
)
def test_what_runs_is_what_was_built(
    built: str, running: Running, precision: str, wrong: str, options: Options
) -> None:
    found = others({"visual": built} if built else {}, {"visual": running}, replace(options, precision=precision))
    assert found.startswith(wrong)
    assert bool(found) == bool(wrong)


def test_the_reason_that_is_looked_for_is_that_of_the_server(options: Options) -> None:
    model = SimpleNamespace(model=catalog.DEMO)
    assert served.NOT_BUILT in how_to_build(cast(Subject, model), replace(options, engine="auto").config())


def test_eager_needs_no_build(options: Options) -> None:
    assert served.build(options) == {}
    assert not list(options.cache.iterdir())


def builder(folder: Path, records: str) -> str:
    """Return the path of a program that takes the place of Python, and prints what scripts.build_engines might."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\necho a table\nprintf '%s' '{records}'\n")
    path.chmod(0o700)
    return str(path)


def test_the_last_that_passed_of_each_kind_is_what_was_built(
    options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = [
        ("visual", "int8", False),
        ("visual", "bfloat16", True),
        ("textual", "int8", True),
        ("other", "int8", False),
    ]
    records = [
        {"kind": kind, "backend": "openvino", "precision": precision, "passed": passed}
        for kind, precision, passed in tried
    ]
    monkeypatch.setattr(sys, "executable", builder(tmp_path, json.dumps(records)))
    assert served.build(replace(options, engine="auto")) == {"visual": "openvino bfloat16", "textual": "openvino int8"}


def test_a_build_that_tells_nothing_ends_the_bench(
    options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", builder(tmp_path, "killed"))
    with pytest.raises(Ended, match="no engines could be built"):
        served.build(replace(options, engine="auto"))
