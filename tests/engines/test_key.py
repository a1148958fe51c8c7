"""A key is the same wherever it is made from the same things, and another when any of them is another."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from engines import key, machine
from engines.engine import BackendName, Layout, Network, Subject, given
from engines.errors import EngineMissing
from engines.key import Key, calibration_words, key_for, weights_hash
from engines.machine import Identity
from tests.engines.store_data import KEY, OTHER

CPU = torch.device("cpu")


class Body(nn.Module):
    """A network with tensors of several types, one that is never saved, and an activation without any."""

    hidden: Tensor

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(24, dtype=torch.float32).reshape(2, 3, 2, 2))
        self.short = nn.Parameter(torch.arange(4, dtype=torch.bfloat16))
        self.activation = activation
        self.register_buffer("count", torch.tensor(7))
        self.register_buffer("empty", torch.zeros(0, 3))
        self.register_buffer("hidden", torch.tensor([True, False]), persistent=False)


def network(module: nn.Module, name: str = "visual") -> Network:
    example = torch.zeros(2, 224, 224, 3, dtype=torch.uint8)
    return Network(name, given(module), (224, 224, 3), torch.uint8, example, free=((0, 12, 4096),))


def body(activation: nn.Module | None = None) -> Body:
    return Body(activation or nn.GELU())


def hashed(*modules: nn.Module) -> str:
    return weights_hash([network(module) for module in modules])


def made(backend: BackendName = "eager", buckets: tuple[int, ...] = (1, 2, 4), weights: str = "a-hash") -> Key:
    """Return the key of an engine of one small network on the processor."""
    only = network(body())
    subject = SimpleNamespace(model="ViT-B-32__openai", kind="visual", preparation="to 224 x 224", weights=weights)
    specs = [only.spec("float32", CPU, Layout(), buckets)]
    return key_for(cast(Subject, subject), backend, "float32", CPU, specs)


def fields_that_differ(one: Key, other: Key) -> list[str]:
    return [sentence.split(":")[0] for sentence in one.differences(other)]


def test_a_key_says_in_words_what_an_engine_depends_on() -> None:
    fields = made().model_dump()
    assert fields["inputs"] == "visual: uint8 (rows, 224, 224, 3), dimension 0 from 12 to 4096, in batches of 1 2 4"
    assert fields["model"] == "ViT-B-32__openai"
    assert fields["kind"] == "visual"
    assert fields["preparation"] == "to 224 x 224"
    assert fields["torch"] == torch.__version__
    assert fields["compiler"].startswith("torch ")
    assert "open_clip_torch 3." in fields["libraries"]
    assert fields["device"] == machine.identity(CPU).device
    assert fields["weights"] == "a-hash"


def test_it_is_the_same_in_another_process() -> None:
    code = "from tests.engines.test_key import made; key = made(); print(key.digest(), key.weights, key.code)"
    environment = {"PYTHONHASHSEED": "7", "PATH": "/usr/bin:/bin"}
    shown = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
        cwd=Path(__file__).parents[2],
        timeout=120,
    )
    here = made()
    assert shown.stdout.split() == [here.digest(), here.weights, here.code]


def test_the_digest_is_that_of_its_words() -> None:
    assert KEY.digest() == "23e8c2f771de1760461f1d89a2727888"
    assert KEY.model_copy().digest() == KEY.digest()
    names = {"kind": "textual", "backend": "inductor", "precision": "float32"}
    changed = {KEY.model_copy(update={name: names.get(name, "another")}).digest() for name in Key.model_fields}
    assert len(changed | {KEY.digest()}) == len(Key.model_fields) + 1


def test_what_differs_is_named() -> None:
    assert KEY.differences(KEY) == []
    assert OTHER.differences(KEY) == [
        "device: built with 'x86_64 Intel Xeon 6 143', here is 'x86_64 AMD EPYC 25 17'",
        "torch: built with '2.11.0', here is '2.12.1'",
    ]


def test_shapes_weights_and_devices_change_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = made()
    assert fields_that_differ(before, made()) == []
    assert fields_that_differ(before, made(buckets=(1, 2))) == ["inputs"]
    assert fields_that_differ(before, made(weights="another")) == ["weights"]
    monkeypatch.setattr(machine, "identity", lambda _: Identity("NVIDIA H200", "sm_90", "13.0"))
    assert fields_that_differ(before, made()) == ["device", "instructions", "cuda"]


def test_other_inputs_to_calibrate_on_are_another_calibration() -> None:
    batches = [torch.arange(4)[None], torch.arange(3)[None]]
    words = calibration_words(batches)
    assert words.startswith("2 inputs ")
    assert calibration_words([batch.clone() for batch in batches]) == words
    for other in (batches[::-1], batches[:1], [batches[0], batches[1] + 1], [torch.arange(7)[None]]):
        assert calibration_words(other) != words
    assert calibration_words([]) == ""


def test_what_was_calibrated_anew_replaces_what_was_there() -> None:
    before, after = (KEY.model_copy(update={"precision": "int8", "calibration": words}) for words in ("a", "b"))
    assert after.replaces(before)
    assert not after.replaces(after)
    assert not after.replaces(KEY)  # of another precision


def test_the_sources_of_the_engines_and_of_the_backend_change_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Path(key.__file__).parent
    shutil.copytree(here, tmp_path / "engines", ignore=shutil.ignore_patterns("data", "__pycache__"))
    before = made()
    monkeypatch.setattr(key, "__file__", str(tmp_path / "engines" / "key.py"))
    for name in (*key.CODE, "backends/eager.py"):
        key._code.cache_clear()
        assert fields_that_differ(before, made()) == []
        path = tmp_path / "engines" / name
        original = path.read_bytes()
        path.write_bytes(original + b"#")
        key._code.cache_clear()
        assert fields_that_differ(before, made()) == ["code"]
        path.write_bytes(original)
    key._code.cache_clear()


def test_all_modules_that_define_networks_or_what_the_gate_runs_are_sources() -> None:
    here = Path(key.__file__).parent
    told = ("(nn.Module)", "from engines.subject import")
    defining = {path.name for path in here.glob("*.py") if any(words in path.read_text() for words in told)}
    assert {"clip.py", "faces.py"} <= defining
    assert defining <= {*key.CODE}


def test_a_backend_without_its_library_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(key.COMPILERS, "openvino", ("no-such-compiler", "torch"))
    with pytest.raises(EngineMissing, match="openvino needs no-such-compiler: install it"):
        made("openvino")


def nudge(module: Body) -> None:
    with torch.no_grad():
        module.weight[1, 2, 1, 1] += 1e-5


def flip_what_is_never_saved(module: Body) -> None:
    module.hidden[1] = True


def reshape(module: Body) -> None:
    module.weight = nn.Parameter(module.weight.detach().reshape(2, 3, 4))


def retype(module: Body) -> None:
    module.short = nn.Parameter(module.short.detach().view(torch.float16))


def rename(module: Body) -> None:
    module.renamed = module.short
    del module.short


@pytest.mark.parametrize("change", [nudge, flip_what_is_never_saved, reshape, retype, rename])
def test_every_tensor_counts_in_name_type_shape_and_bytes(change: Callable[[Body], None]) -> None:
    changed = body()
    assert hashed(changed) == hashed(body())
    change(changed)
    assert hashed(changed) != hashed(body())


def test_activations_and_the_networks_themselves_count() -> None:
    assert hashed(body(nn.ReLU())) != hashed(body(nn.GELU()))
    assert hashed(body(), body()) != hashed(body())
    assert weights_hash([network(body(), "textual")]) != weights_hash([network(body(), "visual")])


def test_how_a_tensor_lies_in_memory_does_not_count() -> None:
    other = body()
    other.weight = nn.Parameter(other.weight.detach().contiguous(memory_format=torch.channels_last))
    assert other.weight.stride() != body().weight.stride()
    assert hashed(other) == hashed(body())
