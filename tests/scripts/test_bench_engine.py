"""The bench of engines counts the arithmetic, measures the ceiling, and runs batches as the server does."""

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from engines import catalog, models
from engines.builder import Effort
from engines.engine import BackendName, Network, Precision
from engines.model import Config
from engines.store import Store
from scripts import bench_engine

CPU = torch.device("cpu")
QUICK = Effort(rounds=1, seconds=0.0, most=2, patience=60.0)


class Doubling:
    """An engine that notes which thread ran it, and the sizes that it was given."""

    backend: BackendName = "eager"
    precision: Precision = "float32"
    device = CPU

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.threads: set[int] = set()

    def __call__(self, batch: Tensor) -> Tensor:
        self.sizes.append(len(batch))
        self.threads.add(threading.get_ident())
        return 2.0 * batch


def test_the_arithmetic_of_a_network_is_counted() -> None:
    layers = nn.Sequential(nn.Linear(100, 50, bias=False), nn.Linear(50, 10, bias=False))
    network = Network("layers", layers, (100,), torch.float32, example=torch.zeros(2, 100))
    assert bench_engine.gflop(network) == pytest.approx(2 * (100 * 50 + 50 * 10) / 1e9)


def test_attention_is_counted_too() -> None:
    class Attention(nn.Module):
        def forward(self, rows: Tensor) -> Tensor:
            return nn.functional.scaled_dot_product_attention(rows, rows, rows)

    network = Network("attention", Attention(), (1, 10, 8), torch.float32, example=torch.ones(2, 1, 10, 8))
    assert bench_engine.gflop(network) == pytest.approx(2 * 2 * 10 * 10 * 8 / 1e9)


def test_the_ceiling_is_that_of_a_computer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench_engine.SIDES, "cpu", 256)
    assert 0.1 < bench_engine.matrix_rate(CPU, torch.float32) < 100_000


def test_every_batch_is_padded_to_its_bucket_and_run_by_the_measuring_thread() -> None:
    engine = Doubling()
    items = [np.ones(4, np.float32)] * 3
    assert bench_engine.rate(engine, items, (1, 2, 4), 0.05) > 3
    assert set(engine.sizes) == {4}
    assert engine.threads == {threading.get_ident()}


def test_a_model_is_measured_in_every_bucket_and_precision_or_the_reason_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(bench_engine.SIDES, "cpu", 256)
    subject = models.subject_of("visual", catalog.clip(catalog.DEMO), Config(cache_folder=tmp_path), CPU)
    record = bench_engine.measure(subject, Store(tmp_path), 0.01, ["eager"], ["float32", "float16"], QUICK)
    plain, half = record["engines"]
    assert set(plain["items_per_second"]) == {1, 2}
    assert plain["share_of_ceiling"][2] == pytest.approx(
        plain["items_per_second"][2] * record["gflop_per_item"] / record["float32_gflops"], rel=0.05, abs=1e-3
    )
    assert "float16" in half["reason"]
    shown = capsys.readouterr().out
    assert shown.index("ceiling of") < shown.index("batch 2")
    assert half["reason"][:40] in shown


def test_the_records_stand_in_the_last_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def quick(names: list[str], config: Config, face_alias: str, seconds: float, backends: Any) -> list[dict[str, Any]]:
        return [{"names": names, "device": config.device, "seconds": seconds, "backends": list(backends)}]

    monkeypatch.setattr(bench_engine, "bench", quick)
    bench_engine.main(["some", "--device", "cpu", "--seconds", "0.5", "--backend", "eager"])
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == [{"names": ["some"], "device": "cpu", "seconds": 0.5, "backends": ["eager"]}]


def test_an_unknown_model_is_told_in_a_sentence() -> None:
    with pytest.raises(SystemExit, match="weather"):
        bench_engine.main(["weather", "--device", "cpu"])
