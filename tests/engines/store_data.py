"""Keys, manifests and builds for the tests of the store, some of them in processes of their own."""

import os
import signal
import sys
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from engines.artefact import Manifest, Stored
from engines.engine import Layout
from engines.key import Key
from engines.parity import Report
from engines.store import Store

KEY = Key(
    model="ViT-B-32__openai",
    kind="visual",
    weights="0" * 32,
    preparation="to 224 x 224",
    inputs="visual: uint8 (rows, 224, 224, 3), in batches of 1 2 4 8",
    backend="openvino",
    precision="bfloat16",
    calibration="",
    device="x86_64 AMD EPYC 25 17",
    instructions="avx2 avx512_bf16",
    cuda="",
    torch="2.12.1",
    compiler="openvino 2026.4.1",
    libraries="open_clip_torch 3.3.0",
    code="1" * 32,
    package="facet-ml 0.1.0",
)
OTHER = KEY.model_copy(update={"device": "x86_64 Intel Xeon 6 143", "torch": "2.11.0"})
# What changes names or contents in the file system, as the interpreter announces it to audit hooks.
STEPS = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "shutil.rmtree", "tempfile.mkdtemp"}


def manifest(key: Key = KEY, report: Report | None = None) -> Manifest:
    return Manifest(
        key=key,
        report=report or Report(0.99996, 0.01, 1.0, ()),
        timings={1: 33.5, 8: 37.9},
        reference_timings={1: 9.0, 8: 16.2},
        layout=Layout(threads=2, streams=2, hint="throughput"),
        untrained=True,
        build_seconds=4.2,
        memory_bytes=180_000_000,
        made="2026-11-01T10:00:00+00:00",
        cores=2,
    )


def build(folder: Path, content: bytes = b"new", key: Key = KEY) -> Stored:
    """Build an engine of two files, one of them in a folder of its own."""
    store = Store(folder)
    with store.lock(key), store.draft(key) as draft:
        (draft / "visual").mkdir()
        (draft / "visual" / "model.bin").write_bytes(content * 1000)
        (draft / "model.xml").write_bytes(content)
        return store.publish(key, draft, manifest(key))


def no_wait(fd: Any) -> None:
    """Stand in for os.fsync where many builds are killed: what a process wrote outlives it without, and it is slow."""


def build_until(folder: Path, step: int) -> None:
    """Build, and be killed right before the given step, counted from 0, if there are so many."""
    left = step

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal left
        if event in STEPS or (event == "open" and str(args[0]).startswith(str(folder))):
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    os.fsync = no_wait
    sys.addaudithook(hook)
    build(folder)


def hold(folder: Path, held: Event, go: Event) -> None:
    """Take the lock and build once `go` is given."""
    with Store(folder).lock(KEY):
        held.set()
        go.wait()
        build(folder, b"by the other")
