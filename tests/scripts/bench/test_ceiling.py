"""The ceiling is that of a computer, and the arithmetic of a network is counted."""

import io

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from engines.engine import Network
from scripts import scenes
from scripts.bench import ceiling
from scripts.bench.ceiling import Ceiling


def test_the_arithmetic_of_a_network_is_counted() -> None:
    layers = nn.Sequential(nn.Linear(100, 50, bias=False), nn.Linear(50, 10, bias=False))
    network = Network("layers", lambda: layers, (100,), torch.float32, example=torch.zeros(2, 100))
    assert ceiling.gflop(network) == pytest.approx(2 * (100 * 50 + 50 * 10) / 1e9)


def test_attention_is_counted_too() -> None:
    class Attention(nn.Module):
        def forward(self, rows: Tensor) -> Tensor:
            return nn.functional.scaled_dot_product_attention(rows, rows, rows)

    network = Network("attention", Attention, (1, 10, 8), torch.float32, example=torch.ones(2, 1, 10, 8))
    assert ceiling.gflop(network) == pytest.approx(2 * 2 * 10 * 10 * 8 / 1e9)


def test_a_text_is_counted_at_its_length() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4, bias=False)

        def forward(self, ids: Tensor) -> Tensor:
            rows: Tensor = self.layer(ids[..., None].expand(*ids.shape, 4).float())
            return rows

    network = Network("words", Words, (77,), torch.int64, example=torch.ones(2, 77, dtype=torch.int64))
    assert ceiling.gflop(network, 12) == pytest.approx(12 / 77 * ceiling.gflop(network))


def test_the_ceiling_is_that_of_a_computer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ceiling.SIDES, "cpu", 256)
    monkeypatch.setattr(ceiling, "COPIED", 1 << 20)
    monkeypatch.setattr(ceiling, "DECODING_S", 0.01)
    file = io.BytesIO()
    scenes.photo(np.random.default_rng(0), 320, 240).save(file, "JPEG")
    most = ceiling.measure(torch.device("cpu"), file.getvalue())
    assert most.gflops.keys() == {"float32", "bfloat16", "int8"}
    assert all(0.1 < rate < 100_000 for rate in most.gflops.values())
    assert 0.1 < most.bandwidth < 10_000
    assert 1 < most.decoded < 100_000
    assert {one.unit for one in most.rows()} == {"GFLOP/s", "GB/s", "pictures/s"}
    assert most.device in most.sentence()


def test_items_are_the_rate_over_the_arithmetic_of_one() -> None:
    most = Ceiling("a computer", 2, {"float32": 100.0, "bfloat16": 200.0, "int8": 400.0}, 20.0, 200.0)
    assert [most.items(precision, 4.0) for precision in ("float32", "bfloat16", "float16", "int8")] == [25, 50, 50, 100]
