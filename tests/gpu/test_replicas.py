"""Two GPUs: one replica each, from threads of their own, with the same answers."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from engines import parity
from engines.engine import BackendName
from tests.gpu.conftest import new_engine
from tests.gpu.networks import BUCKETS, picture_tower, through

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_two_replicas_at_once_say_the_same(backend: BackendName, tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("this machine has one GPU: what two of them do together cannot be seen on it")
    sample = picture_tower().samples[0]

    def passed(ordinal: int) -> parity.Report:
        folder = tmp_path / str(ordinal)
        folder.mkdir()
        engine = new_engine("visual", backend, "bfloat16", torch.device("cuda", ordinal), folder)
        return parity.examine(sample.expected, through(engine), sample.inputs, BUCKETS, "bfloat16")

    with ThreadPoolExecutor(2) as threads:
        for report in threads.map(passed, (0, 1)):
            assert report.passed, report
