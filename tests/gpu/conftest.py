"""What tests on a GPU share. Whoever asks for them with -m gpu wants them run: without a GPU they fail."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from engines import graphs, machine, memory
from engines.engine import BackendName, Engine, Layout, Precision, Spec, backend_named
from engines.model import Config
from tests.gpu.networks import BUCKETS, CASES

Make = Callable[[str, BackendName, Precision], Engine]


@pytest.fixture(scope="session", autouse=True)
def device() -> torch.device:
    """The first GPU, set up as the server does."""
    return first_gpu()


@pytest.fixture(scope="session")
def make(device: torch.device, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Build and load the engine of a case by name; each is made once, since compiling takes minutes."""
    made: dict[tuple[str, str, str], Engine] = {}

    def engine(case: str, backend: BackendName, precision: Precision) -> Engine:
        key = (case, backend, precision)
        if key not in made:
            made[key] = new_engine(case, backend, precision, device, tmp_path_factory.mktemp("-".join(key)))
        return made[key]

    return engine


@pytest.fixture(autouse=True)
def _memory_given_back() -> Iterator[None]:
    yield
    memory.release()


def first_gpu() -> torch.device:
    """Return the first GPU; without one the tests that need it fail."""
    if not torch.cuda.is_available():
        pytest.fail(
            "There is no CUDA GPU that PyTorch can use: run these tests on a machine that has one, or without -m gpu."
        )
    return machine.pick_devices(Config(cache_folder=Path(), require_device="cuda"))[0]


def new_engine(case: str, backend: BackendName, precision: Precision, device: torch.device, folder: Path) -> Engine:
    """Build the engine of a case in the empty `folder` and load it as the server does, its launches recorded."""
    return graphs.recorded(*plain_engine(case, backend, precision, device, folder))


def plain_engine(
    case: str, backend: BackendName, precision: Precision, device: torch.device, folder: Path
) -> tuple[Engine, Spec]:
    """Build the engine of a case in the empty `folder` and load it, with nothing recorded."""
    network = CASES[case]().network
    spec = network.spec(precision, device, Layout(), BUCKETS)
    way = backend_named(backend)
    reason = way.available(device, precision)
    assert reason is None, reason
    with warnings.catch_warnings():
        # The compiler advises TensorFloat-32 for float32, which machine.pick_devices switches off on purpose.
        warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)
        way.build(network.module, spec, folder)
    return way.load(network.module, spec, folder), spec
