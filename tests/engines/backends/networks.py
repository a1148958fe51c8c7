"""What the tests of every backend share beside small_networks.py: more networks, and how an engine is compared."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from engines import mtcnn, towers
from engines.engine import BackendName, Engine, Spec
from tests.engines.backends.small_networks import Free, Sample, picture_tower, proposal_stage, text_tower

COSINE = {"float32": 0.9999, "bfloat16": 0.999}
LEVELS = {"float32": 1e-4, "bfloat16": 0.05}  # of shifts and probabilities, which lie between -1 and 1

LOAD = """
import ast, importlib, pathlib, sys, torch
from engines.engine import Spec
name, folder, inputs, output, free = sys.argv[1:]
batch = torch.load(inputs)
item, device = tuple(batch.shape[1:]), torch.device("cpu")
spec = Spec("network", item, batch.dtype, ast.literal_eval(free), batch, "float32", (1, 2, 4, 8), device)
backend = importlib.import_module("engines.backends." + name)
torch.save(backend.load(torch.nn.Identity(), spec, pathlib.Path(folder))(batch), output)
"""


def masked_text_tower() -> Sample:
    """Return a small text tower from transformers; ids of 1 are padding, that of the second text is half of it."""
    from transformers import XLMRobertaConfig, XLMRobertaModel

    config: Any = XLMRobertaConfig
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(1)
    transformer: Any = XLMRobertaModel(config(vocab_size=100, max_position_embeddings=60, **sizes))
    tower = towers.MaskedTextTower(towers.MaskedText(transformer, nn.Linear(32, 24), True, 1))
    ids = torch.randint(2, 100, (8, 40), generator=torch.Generator().manual_seed(1))
    ids[1::2, 7:] = 1
    return tower.eval().requires_grad_(False), ids, ((0, 8, 40),)


def refine_stage() -> Sample:
    crops = torch.rand(8, 3, 24, 24, generator=torch.Generator().manual_seed(2)) * 255
    return mtcnn.load_stages()[1], crops, ()


NETWORKS: dict[str, Callable[[], Sample]] = {
    "pictures": picture_tower,
    "causal text": text_tower,
    "masked text": masked_text_tower,
    "proposal": proposal_stage,
    "refine": refine_stage,
}


def sizes_of(example: Tensor, free: Free) -> list[Tensor]:
    """Return `example` cut to every combination of odd, even, least and full sizes that matter for `free`."""
    batches = [example]
    for dimension, low, high in free:
        axis = dimension + 1
        lengths = sorted({low + 1, (low + high) // 2, (low + high) // 2 + 1, high})
        batches = [batch.narrow(axis, 0, length) for batch in batches for length in lengths]
    return batches


def assert_engine_equals(engine: Engine, module: nn.Module, spec: Spec) -> None:
    """Hold `engine` against `module` in eager float32 at 1, odd and full batches and at all free sizes, three times."""
    assert engine.precision == spec.precision
    assert engine.device == spec.device
    batches = [
        cut[:rows]
        for cut in sizes_of(spec.example, spec.free)
        for rows in sorted({1, min(3, spec.buckets[-1]), spec.buckets[-1]})
    ]
    first = [engine(batch) for batch in batches]
    for batch, output in zip(batches, first, strict=True):
        with torch.inference_mode():
            expected = module(batch)
        assert output.dtype == torch.float32
        assert output.shape == expected.shape
        if output.shape[1] == 5:
            if output.ndim == 4:  # P-Net's last map is a logit
                output, expected = (torch.cat([maps[:, :4], maps[:, 4:].sigmoid()], 1) for maps in (output, expected))
            assert (output - expected).abs().max() <= LEVELS[spec.precision]
        else:
            assert functional.cosine_similarity(output, expected).min() >= COSINE[spec.precision]
    for _ in range(2):
        for batch, output in zip(batches, first, strict=True):
            assert torch.equal(engine(batch), output)
    if spec.buckets[-1] > 1:
        rows = engine(spec.example[:1].expand(spec.buckets[-1], *spec.item).contiguous())
        assert functional.cosine_similarity(rows, rows[:1]).min() >= 0.99999


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in module.state_dict().items()}


def assert_untouched(module: nn.Module, before: dict[str, Tensor]) -> None:
    after = module.state_dict()
    assert list(after) == list(before)
    assert all(after[key].dtype == before[key].dtype and torch.equal(after[key], before[key]) for key in before)


def in_fresh_process(name: BackendName, spec: Spec, folder: Path, batch: Tensor, scratch: Path) -> Tensor:
    """Return what the engine in `folder` computes of `batch` where it is loaded by another process."""
    inputs, output = scratch / "inputs.bin", scratch / "output.bin"
    torch.save(batch, inputs)
    command = [sys.executable, "-c", LOAD, name, str(folder), str(inputs), str(output), repr(spec.free)]
    subprocess.run(command, check=True, timeout=300)  # noqa: S603 — our own interpreter and arguments
    result: Tensor = torch.load(output)
    return result
