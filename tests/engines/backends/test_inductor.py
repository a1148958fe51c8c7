"""AOTInductor packages compute what eager does at all sizes.

Compiling takes half a minute each, so three networks are compiled for all tests.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from engines import backends
from engines.backends import inductor
from engines.backends.inductor import Inductor
from engines.engine import Precision, Spec, backend_named
from engines.errors import ArtefactBroken, BuildFailed
from tests.engines.backends.networks import assert_engine_equals, assert_untouched, in_fresh_process, state_of
from tests.engines.backends.small_networks import CPU, Sample, proposal_stage, spec_of, text_tower


@dataclass(frozen=True)
class Built:
    module: nn.Module
    before: dict[str, Tensor]
    spec: Spec
    folder: Path


def built(sample: Sample, precision: Precision, largest: int, folder: Path) -> Built:
    module, example, free = sample
    spec = spec_of(example, precision, largest, free)
    before = state_of(module)
    inductor.build(module, spec, folder)
    return Built(module, before, spec, folder)


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return built(text_tower(), "bfloat16", 8, tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="session")
def proposal(tmp_path_factory: pytest.TempPathFactory) -> Built:
    module, example, _ = proposal_stage()
    # No map of P-Net is one wide: the pyramid ends at 13 pixels.
    return built((module, example, ((1, 13, 40), (2, 13, 60))), "float32", 1, tmp_path_factory.mktemp("proposal"))


class Branches(nn.Module):
    """Convolutions with a number behind each, as in InceptionResnetV1."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(3))

    def forward(self, maps: Tensor) -> Tensor:
        for convolution, scale in zip(self.body, (0.17, 0.9, 3.0), strict=True):
            maps = convolution(maps) * scale + maps
        return maps.mean((2, 3))


@pytest.fixture(scope="session")
def branches(tmp_path_factory: pytest.TempPathFactory) -> Built:
    maps = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    sample = (Branches().eval().requires_grad_(False), maps, ())
    return built(sample, "float32", 8, tmp_path_factory.mktemp("branches"))


@pytest.mark.parametrize("name", ["text", "proposal", "branches"])
def test_it_computes_what_the_network_computes(name: str, request: pytest.FixtureRequest) -> None:
    network: Built = request.getfixturevalue(name)
    assert [file.name for file in network.folder.iterdir()] == ["network.pt2"]  # no caches are left
    engine = inductor.load(nn.Identity(), network.spec, network.folder)
    assert_engine_equals(engine, network.module, network.spec)
    assert_untouched(network.module, network.before)


def test_rows_that_lie_otherwise_in_memory_are_the_same_rows(proposal: Built) -> None:
    engine = inductor.load(nn.Identity(), proposal.spec, proposal.folder)
    levels = proposal.spec.example[:1]
    assert torch.equal(engine(levels.to(memory_format=torch.channels_last)), engine(levels))


def test_loading_compiles_nothing(proposal: Built, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no compiler is found
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    levels = proposal.spec.example[:1]
    assert inductor.load(nn.Identity(), proposal.spec, proposal.folder)(levels).isfinite().all()
    assert list(tmp_path.iterdir()) == []


def test_it_loads_in_another_process(proposal: Built, tmp_path: Path) -> None:
    levels = proposal.spec.example[:1, :, :31, :44]
    there = in_fresh_process("inductor", proposal.spec, proposal.folder, levels, tmp_path)
    assert torch.equal(there, inductor.load(nn.Identity(), proposal.spec, proposal.folder)(levels))


def test_a_broken_package_is_told(proposal: Built, tmp_path: Path) -> None:
    with pytest.raises(ArtefactBroken, match=r"network\.pt2 cannot be loaded, build it anew"):
        inductor.load(nn.Identity(), proposal.spec, tmp_path)
    whole = (proposal.folder / "network.pt2").read_bytes()
    (tmp_path / "network.pt2").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtefactBroken, match=r"network\.pt2 cannot be loaded, build it anew"):
        inductor.load(nn.Identity(), proposal.spec, tmp_path)


class Undecided(nn.Module):
    """Asks for a number that only a run can tell, which no exporter follows."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(2, 2)

    def forward(self, batch: Tensor) -> Tensor:
        output: Tensor = self.body(batch)
        return output if output.sum() > 0 else -output


def test_a_network_that_cannot_be_exported_is_told(tmp_path: Path) -> None:
    with pytest.raises(BuildFailed, match="AOTInductor cannot compile network: "):
        inductor.build(Undecided(), spec_of(torch.ones(2, 2), "float32"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_it_says_why_it_cannot_be_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert inductor.available(CPU, "float32") is None
    assert "openvino" in str(inductor.available(CPU, "int8"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "needs a C++ compiler" in str(inductor.available(CPU, "float32"))


@pytest.mark.parametrize("missing", ["torch._inductor", "torch._inductor.utils", "torch._C._aoti"])
def test_a_torch_that_has_moved_what_is_private_is_told(
    missing: str, proposal: Built, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)  # Python then refuses to import it
    monkeypatch.setattr(backends, "inductor", inductor)  # puts back what is imported anew below
    monkeypatch.delitem(sys.modules, "engines.backends.inductor")
    backend = backend_named("inductor")
    sentence = rf"AOTInductor is not where it was in this torch, .*{missing}.*: take another backend\."
    assert re.search(sentence, str(backend.available(CPU, "float32")))
    with pytest.raises(BuildFailed, match=sentence):
        backend.build(proposal.module, proposal.spec, tmp_path)
    with pytest.raises(ArtefactBroken, match=sentence):
        backend.load(proposal.module, proposal.spec, proposal.folder)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((5, 6), torch.int64),  # more rows than the largest bucket
        ((0, 6), torch.int64),
        ((4, 7), torch.int64),
        ((4, 1), torch.int64),
        ((4, 6), torch.int32),
        ((4, 6, 1), torch.int64),
    ],
    ids=["rows", "no rows", "long", "short", "type", "dimensions"],
)
def test_compiled_code_is_never_given_what_it_was_not_compiled_for(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    engine = Inductor(torch.clone, spec_of(torch.zeros(2, 6, dtype=torch.int64), "float32", 4, ((0, 2, 6),)))
    assert engine(torch.ones(4, 6, dtype=torch.int64)).shape == (4, 6)
    with pytest.raises(ValueError, match="network is compiled for"):
        engine(torch.ones(shape, dtype=dtype))
