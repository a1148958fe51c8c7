"""The legacy backend says what it needs where it cannot run; where it can, it computes what eager float32 computes.

The second half runs in the environment of `make test-ipex`.
"""

import logging
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from engines.backends import ipex
from engines.engine import Precision
from engines.errors import ArtefactBroken, BuildFailed
from tests.engines.backends.small_networks import (
    CPU,
    Sample,
    picture_tower,
    proposal_stage,
    smaller,
    spec_of,
    text_tower,
)

try:
    metadata.version(ipex.PACKAGE)
    INSTALLED = True
except metadata.PackageNotFoundError:
    INSTALLED = False
with_extension = pytest.mark.skipif(not INSTALLED, reason="the extension lives in an environment of its own")
without_extension = pytest.mark.skipif(INSTALLED, reason="the extension is installed here")


class Ran:
    """Touches a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)


@without_extension
def test_without_the_extension_it_says_that_it_is_legacy_and_how_to_get_it(tmp_path: Path) -> None:
    module, example, _ = proposal_stage()
    reason = ipex.available(CPU, "float32")
    assert reason is not None
    assert "legacy (ended with torch 2.8)" in reason
    assert "make test-ipex" not in reason
    assert "pip install" in reason
    spec = spec_of(example, "float32")
    with pytest.raises(BuildFailed, match="not installed"):
        ipex.build(module, spec, tmp_path)
    with pytest.raises(ArtefactBroken, match="not installed"):
        ipex.load(module, spec, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_extension_for_another_torch_is_refused_before_it_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda _: "1.13.0")
    assert ipex.available(CPU, "float32") == (
        f"intel-extension-for-pytorch 1.13.0 needs torch 1.13, this is {torch.__version__}: install the pair."
    )


@with_extension
@pytest.mark.parametrize(
    ("device", "precision", "reason"),
    [
        (torch.device("cuda", 0), "float32", "processors alone"),
        (CPU, "float16", "float32 and bfloat16"),
        (CPU, "int8", "no int8"),
    ],
)
def test_what_it_does_not_do_is_refused(device: torch.device, precision: Precision, reason: str) -> None:
    assert reason in (ipex.available(device, precision) or "")


@with_extension
@pytest.mark.parametrize("network", [picture_tower, text_tower, proposal_stage], ids=lambda network: network.__name__)
@pytest.mark.parametrize(("precision", "cosine"), [("float32", 0.9999), ("bfloat16", 0.999)])
def test_it_computes_what_eager_float32_computes(
    network: Callable[[], Sample],
    precision: Precision,
    cosine: float,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if (reason := ipex.available(CPU, precision)) is not None:
        assert "no native bfloat16" in reason  # the only reason left that depends on the machine
        return
    module, example, free = network()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    spec = spec_of(example, precision, free=free)
    ipex.build(module, spec, tmp_path)
    with caplog.at_level(logging.WARNING):
        engine = ipex.load(module, spec, tmp_path)
    assert "legacy and ended with torch 2.8" in caplog.text
    assert (engine.backend, engine.precision, engine.device) == ("ipex", precision, CPU)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    for batch in (example, example[:1], example[:3], smaller(example, free)):
        with torch.inference_mode():
            expected = module(batch)
        result = engine(batch)
        assert result.dtype == torch.float32
        assert result.shape == expected.shape
        assert torch.cosine_similarity(result.flatten(1), expected.flatten(1)).min() >= cosine


@with_extension
@pytest.mark.parametrize("spoil", ["missing", "truncated", "pickle"])
def test_a_file_that_is_not_whole_is_told_and_no_pickle_is_run(spoil: str, tmp_path: Path) -> None:
    module, example, free = proposal_stage()
    spec = spec_of(example, "float32", free=free)
    ipex.build(module, spec, tmp_path)
    (file,) = tmp_path.iterdir()
    mark = tmp_path / "ran"
    if spoil == "missing":
        file.unlink()
    elif spoil == "truncated":
        file.write_bytes(file.read_bytes()[:-1000])
    else:
        torch.save(Ran(mark), file)
    with pytest.raises(ArtefactBroken, match="build it anew"):
        ipex.load(module, spec, tmp_path)
    assert not mark.exists()


@with_extension
def test_what_the_extension_cannot_follow_is_a_failed_build(tmp_path: Path) -> None:
    class Undecided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, 4)

        def forward(self, batch: Tensor) -> Tensor:
            raise NotImplementedError("no forward today")

    with pytest.raises(BuildFailed, match=r"ipex cannot compile network .*no forward today"):
        ipex.build(Undecided(), spec_of(torch.zeros(2, 4), "float32"), tmp_path)
