"""The bench of engines runs batches as the server does, and tells each in turn with eager float32."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from engines.builder import Effort
from engines.engine import BackendName, Precision
from scripts.bench import engine
from scripts.bench.ceiling import Ceiling
from scripts.bench.options import Options
from scripts.build_engines import parts

QUICK = Effort(rounds=1, seconds=0.0, most=2, patience=60.0)


class Doubling:
    """An engine that notes which thread ran it, and the sizes that it was given."""

    backend: BackendName = "eager"
    precision: Precision = "float32"
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.threads: set[int] = set()

    def __call__(self, batch: Tensor) -> Tensor:
        self.sizes.append(len(batch))
        self.threads.add(threading.get_ident())
        return 2.0 * batch


def test_every_batch_is_padded_to_its_bucket_and_run_by_the_measuring_thread() -> None:
    doubling = Doubling()
    items = [np.ones(4, np.float32)] * 3
    assert engine.rate(doubling, items, (1, 2, 4), 0.05) > 3
    assert set(doubling.sizes) == {4}
    assert doubling.threads == {threading.get_ident()}


@pytest.fixture
def visual(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the other sides of the demo model, which take longer."""
    monkeypatch.setattr(engine, "parts", lambda name, alias: parts(name, alias)[:1])


@pytest.mark.usefixtures("visual")
def test_a_model_is_measured_in_every_bucket(options: Options, most: Ceiling) -> None:
    rows = engine.measure(options, most, QUICK)
    assert [(one.case, one.at, one.engine) for one in rows] == [("visual", at, "eager float32") for at in (1, 2)]
    assert all(one.baseline and one.ratio and one.share and one.rounds == 2 for one in rows)
    assert all(one.share == pytest.approx(one.ours / (one.ceiling or 0), rel=0.01) for one in rows)


@pytest.mark.usefixtures("visual")
def test_the_reason_why_there_is_no_engine_is_told(
    options: Options, most: Ceiling, capsys: pytest.CaptureFixture[str]
) -> None:
    assert engine.measure(replace(options, precision="float16"), most, QUICK) == []
    assert "eager float16: " in capsys.readouterr().out
