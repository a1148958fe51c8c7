"""What can be known of TensorRT without a card: every call fits the pinned package, and all around the calls works."""

import ast
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engines import export, mtcnn
from engines.backends import tensorrt
from engines.engine import Layout, Precision
from engines.errors import ArtefactBroken, BuildFailed
from engines.subject import Stages
from scripts.check_tensorrt import pinned
from tests.engines.backends.small_networks import (
    CPU,
    Sample,
    picture_tower,
    smaller,
    spec_of,
    text_tower,
)
from tests.engines.backends.tensorrt_stub import CONVERT, RECORD, Stub, signature, unfolded

GPU = torch.device("cuda", 0)
SOURCE = ast.parse(Path(tensorrt.__file__).read_text(encoding="utf-8"))


def output_stage() -> Sample:
    levels = torch.rand(8, 3, 48, 48, generator=torch.Generator().manual_seed(1)) * 255
    return mtcnn.load_stages()[2], levels, ()


def calls() -> list[tuple[str, ast.Call]]:
    """Return every call into torch_tensorrt in the backend's source, by its dotted name."""
    found = [(ast.unparse(node.func), node) for node in ast.walk(SOURCE) if isinstance(node, ast.Call)]
    return [(name, node) for name, node in found if name.startswith("torch_tensorrt.")]


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Stub:
    stub = Stub()
    monkeypatch.setitem(sys.modules, "torch_tensorrt", stub.package)
    monkeypatch.setattr(tensorrt, "available", lambda device, precision: None)
    return stub


def test_the_record_is_of_the_pinned_version() -> None:
    assert RECORD["version"] == pinned()


def test_every_call_fits_the_signature_of_the_pinned_package() -> None:
    assert {name for name, _ in calls()} == set(RECORD["signatures"])
    for name, call in calls():
        keywords = [keyword.arg for keyword in call.keywords]
        assert None not in keywords, "a ** hides from this test what is given"
        signature(name).bind(*call.args, **dict.fromkeys(filter(None, keywords)))


def test_a_call_that_does_not_fit_would_be_seen() -> None:
    with pytest.raises(TypeError, match="attention_bias_is_causal"):
        signature(CONVERT).bind(None, attention_bias_is_causal=False)
    with pytest.raises(TypeError, match="minimum_shape"):
        signature("torch_tensorrt.Input").bind(minimum_shape=(1,))


def test_the_defaults_that_would_be_wrong_are_overridden() -> None:
    (call,) = [call for name, call in calls() if name == CONVERT]
    given = {str(keyword.arg): ast.unparse(keyword.value) for keyword in call.keywords}
    assert RECORD["defaults"]["_defaults.ATTN_BIAS_IS_CAUSAL"] == "True"
    assert RECORD["defaults"]["_defaults.DISABLE_TF32"] == "False"
    assert RECORD["defaults"]["_defaults.REQUIRE_FULL_COMPILATION"] == "False"
    assert "gettempdir" in RECORD["defaults"]["_defaults.TIMING_CACHE_PATH"]
    assert (given["attn_bias_is_causal"], given["disable_tf32"]) == ("False", "True")
    assert (given["require_full_compilation"], given["cache_built_engines"]) == ("True", "False")
    assert "scratch" in given["timing_cache_path"]
    assert "enabled_precisions" not in given, "anything but its default raises beside explicit types"


@pytest.mark.parametrize(
    ("network", "precision", "cosine"),
    [
        (picture_tower, "float32", 0.99999),
        (picture_tower, "bfloat16", 0.999),
        (text_tower, "float32", 0.99999),
        (text_tower, "float16", 0.999),
        (output_stage, "float32", 0.99999),
        (output_stage, "float16", 0.999),
    ],
)
def test_what_is_compiled_is_the_network_in_its_precision(
    network: Callable[[], Sample], precision: Precision, cosine: float, stub: Stub, tmp_path: Path
) -> None:
    module, example, free = network()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    spec = spec_of(example, precision, free=free)
    tensorrt.build(module, spec, tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    weights = {tensor.dtype for tensor in stub.program.state_dict.values() if tensor.is_floating_point()}
    assert export.DTYPES[precision] in weights

    engine = tensorrt.load(module, spec, tmp_path)
    assert (engine.backend, engine.precision, engine.device) == ("tensorrt", precision, CPU)
    assert stub.given["torch_tensorrt.runtime.TorchTensorRTModule"]["serialized_engine"] == b"a plan"
    for batch in (example, example[:1], example[:3], smaller(example, free)):
        with torch.inference_mode():
            expected = module(batch)
        result = engine(batch)
        assert result.dtype == torch.float32
        assert torch.cosine_similarity(result.flatten(1), expected.flatten(1)).min() >= cosine


def test_bytes_become_float32_before_the_plan_and_ids_stay_ids(stub: Stub, tmp_path: Path) -> None:
    for network, dtype in ((picture_tower, torch.float32), (text_tower, torch.int64)):
        module, example, free = network()
        tensorrt.build(module, spec_of(example, "float32", free=free), tmp_path)
        assert stub.given["torch_tensorrt.Input"]["dtype"] == dtype
        (placeholder,) = [node for node in unfolded(stub.program).graph.nodes if node.op == "placeholder"]
        assert placeholder.meta["val"].dtype == dtype


def test_no_pooling_that_rounds_up_is_left(stub: Stub, tmp_path: Path) -> None:
    module, levels, _ = output_stage()
    spec = spec_of(levels, "float32")
    tensorrt.build(module, spec, tmp_path)
    pools = [node for node in unfolded(stub.program).graph.nodes if "max_pool2d" in str(node.target)]
    assert len(pools) == 3
    assert not any(True in node.args for node in pools)  # ceil_mode is the one flag it has
    with torch.inference_mode():
        assert torch.allclose(tensorrt.load(module, spec, tmp_path)(levels), module(levels), atol=1e-5)


class Pooled(nn.Module):
    """As the recogniser does it: bytes with their channels last, pooled to one place."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(7)
            self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, batch: Tensor) -> Tensor:
        output: Tensor = self.body(batch.permute(0, 3, 1, 2).float())
        return output


def test_no_pooling_is_left_that_sets_strides(stub: Stub, tmp_path: Path) -> None:
    module = Pooled().eval().requires_grad_(False)
    pictures = torch.randint(0, 256, (8, 9, 9, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    spec = spec_of(pictures, "float32")
    tensorrt.build(module, spec, tmp_path)
    targets = {str(node.target) for node in unfolded(stub.program).graph.nodes}
    assert "aten.mean.dim" in targets
    assert not any("adaptive" in target for target in targets)
    assert torch.allclose(tensorrt.load(module, spec, tmp_path)(pictures), module(pictures), rtol=1e-4)


def test_the_plan_is_for_every_size_and_tuned_for_full_batches_of_the_usual_one(stub: Stub, tmp_path: Path) -> None:
    module, example, _ = text_tower()
    tensorrt.build(module, spec_of(example[:, :40], "float32", largest=8, free=((0, 13, 77),)), tmp_path)
    given = stub.given["torch_tensorrt.Input"]
    assert (given["min_shape"], given["opt_shape"], given["max_shape"]) == ((1, 13), (8, 40), (8, 77))


def test_pictures_of_any_size_are_refused_in_a_sentence_and_leave_nothing(stub: Stub, tmp_path: Path) -> None:
    network = Stages(mtcnn.load_stages(), CPU).networks[0]
    spec = network.spec("float32", CPU, Layout(), (1,))
    with pytest.raises(
        BuildFailed, match=r"proposal takes pictures of any size: take inductor for it, or torchscript\.$"
    ):
        tensorrt.build(network.module, spec, tmp_path)
    assert stub.given == {}
    assert list(tmp_path.iterdir()) == []


def test_the_names_beside_the_plan_are_those_of_the_exported_program(stub: Stub, tmp_path: Path) -> None:
    module, example, free = picture_tower()
    spec = spec_of(example, "float32", free=free)
    tensorrt.build(module, spec, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"network.plan", "network.json"}
    tensorrt.load(module, spec, tmp_path)
    given = stub.given["torch_tensorrt.runtime.TorchTensorRTModule"]
    # TensorRT's inputs are called as the placeholders of the module that the program unfolds to.
    placeholders = [node.target for node in unfolded(stub.program).graph.nodes if node.op == "placeholder"]
    assert given["input_binding_names"] == placeholders
    assert given["output_binding_names"] == ["output0"]


def test_the_timing_cache_is_a_file_that_nobody_else_wrote(stub: Stub, tmp_path: Path) -> None:
    module, example, free = output_stage()
    tensorrt.build(module, spec_of(example, "float32", free=free), tmp_path)
    folder = Path(stub.given[CONVERT]["timing_cache_path"]).parent
    assert not folder.exists()


def test_what_the_compiler_raises_is_a_failed_build_that_leaves_nothing(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> bytes:
        raise AssertionError("Conversion of function aten::index not supported!\nand much more")

    monkeypatch.setattr(stub.package.dynamo, CONVERT.rpartition(".")[2], refuse)
    module, example, free = output_stage()
    with pytest.raises(BuildFailed, match=r"TensorRT cannot compile network .*aten::index not supported!\)$"):
        tensorrt.build(module, spec_of(example, "float32", free=free), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("spoil", ["network.plan", "network.json", "names", "refused"])
def test_a_plan_that_cannot_be_loaded_is_told(
    spoil: str, stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, example, free = output_stage()
    spec = spec_of(example, "float32", free=free)
    tensorrt.build(module, spec, tmp_path)
    if spoil == "refused":

        def refuse(*args: Any, **kwargs: Any) -> Callable[[Tensor], Tensor]:
            raise RuntimeError("the plan is of TensorRT 9")

        monkeypatch.setattr(stub.package.runtime, "TorchTensorRTModule", refuse)
    elif spoil == "names":
        (tmp_path / "network.json").write_text('{"inputs": ["x"', encoding="utf-8")
    else:
        (tmp_path / spoil).unlink()
    with pytest.raises(ArtefactBroken, match="build it anew"):
        tensorrt.load(module, spec, tmp_path)


def test_it_says_that_it_needs_a_gpu_of_nvidia() -> None:
    assert tensorrt.available(CPU, "float32") == "TensorRT runs on NVIDIA GPUs alone, not on cpu."


def test_without_the_package_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    reason = tensorrt.available(GPU, "float32")
    assert reason is not None
    assert reason.startswith("torch-tensorrt is not installed: pip install")
    module, example, _ = output_stage()
    spec = replace(spec_of(example, "float32"), device=GPU)
    with pytest.raises(BuildFailed, match="not installed"):
        tensorrt.build(module, spec, tmp_path)
    with pytest.raises(ArtefactBroken, match="not installed"):
        tensorrt.load(module, spec, tmp_path)


def test_a_package_for_another_torch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda _: "1.4.0")
    assert tensorrt.available(GPU, "float32") == (
        f"torch-tensorrt 1.4.0 goes with torch 1.4, this is {torch.__version__}: install the pair."
    )


def test_where_the_libraries_are_missing_it_says_so_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "torch_tensorrt").mkdir()
    (tmp_path / "torch_tensorrt/__init__.py").write_text(
        'print("import error"); raise Exception("libnvinfer.so.10: cannot open shared object file")', encoding="utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch_tensorrt", raising=False)
    monkeypatch.setattr(metadata, "version", lambda _: torch.__version__)
    monkeypatch.setattr(export, "refusal", lambda device, precision: None)
    reason = tensorrt.available(GPU, "float32")
    assert reason is not None
    assert "Exception: libnvinfer.so.10: cannot open shared object file" in reason
    assert "install TensorRT's libraries" in reason
    assert capsys.readouterr().out == ""
