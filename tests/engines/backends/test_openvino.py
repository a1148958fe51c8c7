"""OpenVINO compiles what eager computes, in every size, and gives its memory back."""

import gc
import os
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import XLMRobertaConfig, XLMRobertaModel

from engines import machine, memory, mtcnn, towers
from engines.backends import openvino
from engines.engine import Layout, Precision, Spec
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

# Of the processor: not each has bfloat16.
PRECISIONS: list[Precision] = [p for p in ("float32", "bfloat16") if openvino.available(CPU, p) is None]
PAD = 1


def built(sample: Sample, folder: Path, precision: Precision = "float32") -> tuple[nn.Module, Spec]:
    module, example, free = sample
    spec = spec_of(example, precision, free=free)
    openvino.build(module, spec, folder)
    return module, spec


def masked_tower() -> Sample:
    """Three-layer XLM-R with mean pooling; the second half of every second text is padding."""
    config = XLMRobertaConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64
    )
    torch.manual_seed(1)
    text = towers.MaskedText(XLMRobertaModel(config, add_pooling_layer=False), nn.Linear(32, 16), True, PAD)
    ids = torch.randint(3, 100, (8, 24))
    ids[::2, 12:] = PAD
    return towers.MaskedTextTower(text).eval().requires_grad_(False), ids, ((0, 4, 24),)


class Picky(nn.Module):
    """Adds the positive numbers of (rows, 4) to two zeros per row: it fails if they are more or less."""

    def forward(self, rows: Tensor) -> Tensor:
        zeros = rows[:, :2].flatten() * 0
        return (rows[rows > 0] + zeros).view(-1, 2)


class Unknown(nn.Module):
    """Does what OpenVINO has no operation for."""

    def forward(self, rows: Tensor) -> Tensor:
        output: Tensor = torch.special.bessel_j0(rows)
        return output


def alike(actual: Tensor, expected: Tensor, precision: Precision) -> bool:
    """Whether all rows are the same but for the rounding of `precision`."""
    assert actual.dtype == torch.float32
    assert actual.shape == expected.shape
    if precision == "float32":
        return torch.allclose(actual, expected, rtol=1e-4, atol=1e-5)
    return bool(functional.cosine_similarity(actual.flatten(1), expected.flatten(1)).min() > 0.999)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("make", [picture_tower, text_tower, masked_tower, proposal_stage])
def test_it_computes_what_eager_computes_in_every_size(
    make: Callable[[], Sample], precision: Precision, tmp_path: Path
) -> None:
    module, spec = built(make(), tmp_path, precision)
    engine = openvino.load(module, spec, tmp_path)
    assert (engine.backend, engine.precision, engine.device) == ("openvino", precision, CPU)
    batch = spec.example
    shorter = smaller(batch, spec.free)
    for inputs in (batch[:1], batch[:3], batch[:8], shorter[:1], shorter[:5], batch[:2]):
        with torch.inference_mode():
            expected = module(inputs)
        assert alike(engine(inputs), expected, precision)


def test_float32_is_always_there() -> None:
    assert PRECISIONS[0] == "float32"


@pytest.mark.parametrize("length", [16, 32, 77])
def test_nothing_behind_the_end_of_a_text_counts(length: int, tmp_path: Path) -> None:
    module, spec = built(text_tower(), tmp_path)
    engine = openvino.load(module, spec, tmp_path)
    other = spec.example.clone()
    other[:, 13:] = 7
    torch.testing.assert_close(engine(other[:, :length]), engine(spec.example))
    before = spec.example.clone()
    before[:, 3] = 7
    assert not torch.allclose(engine(before[:, :length]), engine(spec.example), atol=1e-3)


def test_padding_is_masked(tmp_path: Path) -> None:
    module, spec = built(masked_tower(), tmp_path)
    engine = openvino.load(module, spec, tmp_path)
    padded = spec.example[::2]  # all of them padded from 12 on
    torch.testing.assert_close(engine(padded), engine(padded[:, :12]), rtol=1e-4, atol=1e-5)


def test_attention_is_one_operation_per_block(tmp_path: Path) -> None:
    module, _ = built(text_tower(), tmp_path)
    blocks = sum(name.endswith("attn") for name, _ in module.named_modules())
    assert blocks > 0
    assert (tmp_path / "network.xml").read_text().count('type="ScaledDotProductAttention"') == blocks


def test_streams_share_the_rows_and_keep_their_order(tmp_path: Path) -> None:
    module, spec = built(picture_tower(), tmp_path)
    one = openvino.load(module, spec, tmp_path)
    three = openvino.load(module, replace(spec, layout=Layout(threads=1, streams=3)), tmp_path)
    for rows in (1, 2, 3, 7, 8):
        batch = torch.cat([spec.example, spec.example.flip(1)])[:rows]
        torch.testing.assert_close(three(batch), one(batch))


def test_the_layout_reaches_openvino(tmp_path: Path) -> None:
    module, spec = built(proposal_stage(), tmp_path)
    layouts = (Layout(), Layout(threads=2, streams=2, hint="throughput"))
    engines = [openvino.load(module, replace(spec, layout=layout), tmp_path) for layout in layouts]
    names = ("INFERENCE_NUM_THREADS", "NUM_STREAMS", "PERFORMANCE_HINT")
    told = [[engine._requests.compiled[0].get_property(name) for name in names] for engine in engines]
    assert [(threads, streams) for threads, streams, _ in told] == [(machine.cores(), 1), (2, 2)]
    assert [str(hint) for *_, hint in told] == ["LATENCY", "THROUGHPUT"]


@pytest.mark.parametrize("bad", [0, 2, 5])
def test_a_part_that_fails_is_told(bad: int, tmp_path: Path) -> None:
    good = torch.tensor([[1.0, -1.0, 2.0, -1.0]]).repeat(6, 1)
    spec = replace(spec_of(good, "float32"), layout=Layout(threads=1, streams=3))
    openvino.build(Picky(), spec, tmp_path)
    engine = openvino.load(Picky(), spec, tmp_path)
    assert engine(good).tolist() == [[1.0, 2.0]] * 6
    broken = good.clone()
    broken[bad] = -1.0
    for _ in range(3):
        with pytest.raises(RuntimeError, match="shape infer"):
            engine(broken)
        assert engine(good).tolist() == [[1.0, 2.0]] * 6


def test_a_batch_after_one_that_failed_needs_no_folder(tmp_path: Path) -> None:
    good = torch.tensor([[1.0, -1.0, 2.0, -1.0]]).repeat(6, 1)
    spec = spec_of(good, "float32")
    openvino.build(Picky(), spec, tmp_path)
    engine = openvino.load(Picky(), spec, tmp_path)
    shutil.rmtree(tmp_path)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="shape infer"):
            engine(-good.abs())
        assert engine(good).tolist() == [[1.0, 2.0]] * 6


def test_weights_stay_when_their_file_goes(tmp_path: Path) -> None:
    module, spec = built(picture_tower(), tmp_path)
    engine = openvino.load(module, spec, tmp_path)
    expected = engine(spec.example)
    shutil.rmtree(tmp_path)
    with pytest.raises(RuntimeError):
        engine(spec.example[:, :-1])
    assert torch.equal(engine(spec.example), expected)


class Wide(nn.Module):
    """4 million weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Linear(2048, 2048)

    def forward(self, rows: Tensor) -> Tensor:
        output: Tensor = self.body(rows)
        return output


def resident_mb(path: Path) -> float:
    """Return how much of a file is mapped by this process and in memory now."""
    maps = [one for one in psutil.Process().memory_maps() if one.path == str(path)]
    assert maps
    return sum(one.rss for one in maps) / 1e6


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="what is in memory is read there")
def test_weights_as_they_are_in_the_file_do_not_stay_in_memory(tmp_path: Path) -> None:
    example = torch.rand(8, 2048)
    module, spec = built((Wide().eval(), example, ()), tmp_path)
    engine = openvino.load(module, spec, tmp_path)
    with torch.inference_mode():
        for rows in (1, 3, 8, 3):
            assert alike(engine(example[:rows]), module(example[:rows]), "float32")
            assert resident_mb(tmp_path / "network.bin") < 1


class Part:
    """A request that is only waited for."""

    def __init__(self, failure: str = "") -> None:
        self.failure = failure
        self.ended = False

    def wait(self) -> None:
        self.ended = True
        if self.failure:
            raise RuntimeError(self.failure)


def test_all_parts_end_before_a_failure_is_raised() -> None:
    parts = [Part(), Part("first"), Part(), Part("second"), Part()]
    with pytest.raises(RuntimeError, match="first"):
        openvino._wait(parts)
    assert all(part.ended for part in parts)


def test_an_answer_stays_when_the_next_batch_runs(tmp_path: Path) -> None:
    module, spec = built(picture_tower(), tmp_path)
    engine = openvino.load(module, spec, tmp_path)
    first = engine(spec.example[:2])
    kept = first.clone()
    engine(spec.example[2:4])
    assert torch.equal(first, kept)


def test_a_batch_may_lie_in_any_order_in_memory(tmp_path: Path) -> None:
    module, spec = built(proposal_stage(), tmp_path)
    engine = openvino.load(module, spec, tmp_path)
    levels = spec.example[:2]
    assert torch.equal(engine(levels.contiguous(memory_format=torch.channels_last)), engine(levels))


def test_another_thread_may_run_it(tmp_path: Path) -> None:
    module, spec = built(picture_tower(), tmp_path)
    engine = openvino.load(module, spec, tmp_path)
    answers: list[Tensor] = []
    thread = threading.Thread(target=lambda: answers.append(engine(spec.example)))
    thread.start()
    thread.join()
    assert torch.equal(answers[0], engine(spec.example))


def test_threads_at_once_get_each_their_own_answer(tmp_path: Path) -> None:
    module, spec = built(proposal_stage(), tmp_path)
    engine = openvino.load(module, replace(spec, layout=Layout(threads=2, copies=2)), tmp_path)
    levels = [spec.example[:1, :, : 20 + 3 * k, : 90 - 5 * k].contiguous() for k in range(12)]
    alone = [engine(level) for level in levels]
    assert all(alike(answer, module(level), "float32") for answer, level in zip(alone, levels, strict=True))
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            assert all(map(torch.equal, pool.map(engine, levels), alone))
    assert engine._requests._idle.qsize() == 2


def test_no_batch_is_held_after_it_ran(tmp_path: Path) -> None:
    module, spec = built(picture_tower(), tmp_path)
    engine = openvino.load(module, spec, tmp_path)
    pixels = spec.example.numpy().copy()
    gone = weakref.ref(pixels)
    engine(torch.from_numpy(pixels))
    del pixels
    gc.collect()
    assert gone() is None


def test_the_network_stays_as_it_is(tmp_path: Path) -> None:
    module, example, free = text_tower()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    expected = module(example)
    openvino.build(module, spec_of(example, "float32", free=free), tmp_path)
    after = module.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(module(example), expected)
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_fresh_process_builds_and_loads_and_tells_nobody(tmp_path: Path) -> None:
    # OpenVINO's telemetry keeps its identity in the home folder; where CI is set it is off by itself.
    code = """
import sys
from pathlib import Path
import numpy, torch
from engines.backends import openvino
from tests.engines.backends.small_networks import picture_tower, spec_of
assert "openvino" not in sys.modules
module, example, _ = picture_tower()
spec = spec_of(example, "float32")
if not Path("network.xml").exists():
    openvino.build(module, spec, Path())
numpy.save("answer.npy", openvino.load(torch.nn.Identity(), spec, Path())(example).numpy())
"""
    module, example, _ = picture_tower()
    (tmp_path / "home").mkdir()
    with torch.inference_mode():
        expected = module(example)
    answers = []
    for _ in ("builds and loads", "loads"):
        in_a_process(code, tmp_path)
        answers.append(torch.from_numpy(np.load(tmp_path / "answer.npy")))
    assert alike(answers[0], expected, "float32")
    assert torch.equal(answers[1], answers[0])
    assert not list((tmp_path / "home").iterdir())


def test_a_fresh_process_quantises_and_tells_nobody(tmp_path: Path) -> None:
    # Without pytest, in whose presence NNCF tells nobody either.
    code = """
import sys
from pathlib import Path
from engines import intel, quantise
from engines.backends import openvino
from tests.engines.backends.small_networks import picture_tower, spec_of
module, example, _ = picture_tower()
openvino.build(module, spec_of(example, "float32"), Path())
assert "nncf" not in sys.modules
model = intel.openvino().Core().read_model("network.xml")
quantise.quantised(model, tuple(example.split(1)))
assert "pytest" not in sys.modules
import nncf.telemetry.wrapper
assert sys.modules["openvino_telemetry"] is None
assert not isinstance(nncf.telemetry.wrapper.telemetry, nncf.telemetry.wrapper.NNCFTelemetry)
"""
    (tmp_path / "home").mkdir()
    in_a_process(code, tmp_path)
    assert not list((tmp_path / "home").iterdir())


def in_a_process(code: str, folder: Path) -> None:
    environment = {
        "HOME": str(folder / "home"),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(Path(__file__).parents[3]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, check=True)  # noqa: S603 - our own code


@pytest.mark.parametrize("file", ["network.xml", "network.bin"])
@pytest.mark.parametrize("share", [0.5, 0.0, None])
def test_broken_files_are_told(file: str, share: float | None, tmp_path: Path) -> None:
    module, spec = built(proposal_stage(), tmp_path)
    path = tmp_path / file
    content = path.read_bytes()
    if share is None:
        path.unlink()
    else:
        path.write_bytes(content[: int(len(content) * share)])
    told = r"network\.xml cannot be loaded, build it anew: (Runtime|FileNotFound)Error: \S+"
    with pytest.raises(ArtefactBroken, match=told):
        openvino.load(module, spec, tmp_path)


def test_what_openvino_cannot_convert_is_told(tmp_path: Path) -> None:
    spec = spec_of(torch.rand(2, 4), "float32")
    with pytest.raises(BuildFailed, match=r"cannot convert network: OpConversionFailure: .*bessel_j0"):
        openvino.build(Unknown(), spec, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("device", "precision", "sentence"),
    [
        (torch.device("cuda", 0), "float32", "not on cuda"),
        (CPU, "float16", "GPUs of Intel alone"),
        (torch.device("xpu", 99), "float32", "OpenVINO sees .* Intel GPU, and xpu:99 is asked for: install"),
    ],
)
def test_it_says_why_it_cannot_be_used(
    device: torch.device, precision: Precision, sentence: str, tmp_path: Path
) -> None:
    reason = openvino.available(device, precision)
    assert reason is not None
    assert reason.endswith(".")
    module, example, free = proposal_stage()
    spec = replace(spec_of(example, precision, free=free), device=device)
    with pytest.raises(BuildFailed, match=sentence):
        openvino.build(module, spec, tmp_path)
    with pytest.raises(ArtefactBroken, match=sentence):
        openvino.load(module, spec, tmp_path)


def test_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # Python then refuses to import it
    reason = openvino.available(CPU, "float32")
    assert reason is not None
    assert reason.endswith("pip install 'facet-ml[openvino]'.")


def test_a_processor_without_bfloat16_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "native", lambda precision, device: f"no {precision} on {device}")
    assert openvino.available(CPU, "bfloat16") == "no bfloat16 on cpu"


def test_ever_new_sizes_of_pictures_fill_no_memory(tmp_path: Path) -> None:
    module, spec = built(proposal_stage(), tmp_path)
    engine = openvino.load(module, spec, tmp_path)
    sizes = [(height, width) for height in range(20, 42) for width in range(20, 42)]
    used = []
    for at, (height, width) in enumerate(sizes):
        engine(torch.zeros(1, 3, height, width))
        if at in (len(sizes) // 2, len(sizes) - 1):
            used.append(resident())
    # Without a limit each new size takes 0.6 MB for good.
    assert used[1] - used[0] < len(sizes) / 2 * 0.1


def test_an_engine_that_is_dropped_gives_its_memory_back(tmp_path: Path) -> None:
    module, example, free = mtcnn.load_stages()[2], torch.rand(4, 3, 48, 48) * 255, ()
    spec = spec_of(example, "float32", free=free)
    openvino.build(module, spec, tmp_path)
    used = []
    for _ in range(10):
        engine = openvino.load(module, spec, tmp_path)
        engine(example)
        del engine
        used.append(resident())
    assert used[-1] - used[2] < 4


def resident() -> float:
    """Return the memory of this process in MB, after all that nobody uses was freed."""
    memory.release()
    return float(psutil.Process().memory_info().rss) / 1e6
