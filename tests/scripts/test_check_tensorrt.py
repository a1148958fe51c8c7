"""The record is made from source alone, a source that changed is told, and the check says what is missing."""

import zipfile
from pathlib import Path

import pytest

from engines.backends import tensorrt
from scripts import build_engines, check_tensorrt
from server.settings import Settings

SOURCES = {
    "torch_tensorrt/__init__.py": "from ._Device import Device\nfrom ._Input import Input\n",
    "torch_tensorrt/dynamo/__init__.py": (
        "if True:\n    from ._compiler import convert_exported_program_to_serialized_trt_engine\n"
        "    from ._settings import CompilationSettings\n"
    ),
    "torch_tensorrt/runtime/__init__.py": "from torch_tensorrt.dynamo.runtime import TorchTensorRTModule\n",
    "torch_tensorrt/_Device.py": "class Device:\n    def __init__(self, *args, **kwargs):\n        kwargs['gpu_id']\n",
    "torch_tensorrt/_Input.py": "class Input:\n    def __init__(self, shape: int = 3):\n        pass\n",
    "torch_tensorrt/dynamo/_settings.py": "class CompilationSettings:\n    device: int = 1\n    names: set\n",
    "torch_tensorrt/dynamo/_compiler.py": (
        "def convert_exported_program_to_serialized_trt_engine(a: int, *, b: str = _defaults.B, **kwargs: int): ...\n"
    ),
    "torch_tensorrt/dynamo/runtime/_TorchTensorRTModule.py": (
        "class TorchTensorRTModule:\n    def __init__(self, plan: bytes = None, *, name: str = ''): ...\n"
    ),
    check_tensorrt.DEFAULTS: "raise SystemExit('run')\nB = 1 + 1\n",
    check_tensorrt.INTERPRETER: f"def output(i):\n    {check_tensorrt.OUTPUT_NAMES}\n",
}


def wheel(folder: Path, **changed: str) -> Path:
    file = folder / "torch_tensorrt-9.9-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for name, source in (SOURCES | changed).items():
            archive.writestr(name, source)
    return file


def test_signatures_are_read_without_types_and_nothing_is_run(tmp_path: Path) -> None:
    found = check_tensorrt.read(wheel(tmp_path), "9.9")
    parameters = {name.rpartition(".")[2]: entry["parameters"] for name, entry in found["signatures"].items()}
    assert parameters == {
        "Device": "*args, **kwargs",
        "Input": "shape=3",
        "CompilationSettings": "device=1, names=None",
        "convert_exported_program_to_serialized_trt_engine": "a, *, b=_defaults.B, **kwargs",
        "TorchTensorRTModule": "plan=None, *, name=''",
    }
    assert found["signatures"]["torch_tensorrt.Device"]["keywords"] == ["gpu_id"]
    assert found["defaults"] == {"_defaults.B": "1 + 1"}


@pytest.mark.parametrize(
    ("file", "source", "reason"),
    [
        (check_tensorrt.INTERPRETER, "name = 'out'", "names outputs in another way"),
        ("torch_tensorrt/runtime/__init__.py", "", "does not give TorchTensorRTModule its public name"),
    ],
)
def test_a_source_that_changed_is_told(file: str, source: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(LookupError, match=reason):
        check_tensorrt.read(wheel(tmp_path, **{file: source}), "9.9")


def test_the_record_of_the_pinned_version_is_there() -> None:
    assert check_tensorrt.record_of(check_tensorrt.pinned()).is_file()


def test_a_record_is_written_and_said_to_be_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check_tensorrt, "ROOT", tmp_path)
    monkeypatch.setattr(check_tensorrt, "pinned", lambda: "9.9")
    (tmp_path / "tests/engines/backends").mkdir(parents=True)
    file = wheel(tmp_path)
    for said in ("written", "as it was"):
        assert check_tensorrt.main(["--wheel", str(file)]) == 0
        assert said in capsys.readouterr().out
    assert check_tensorrt.record_of("9.9").is_file()


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(tensorrt, "available", lambda device, precision: f"No {device} for {precision}: buy one.")
    assert check_tensorrt.main([]) == 1
    assert capsys.readouterr().out == "No cuda:0 for float32: buy one.\n"


def test_where_all_is_there_untrained_engines_are_built(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[str]] = []

    def build(arguments: list[str]) -> int:
        assert Settings().untrained
        given.append(arguments)
        return 0

    monkeypatch.setenv("MACHINE_LEARNING_UNTRAINED", "false")  # put back at the end
    monkeypatch.setattr(tensorrt, "available", lambda device, precision: None)
    monkeypatch.setattr(build_engines, "main", build)
    assert check_tensorrt.main([]) == 0
    (arguments,) = given
    options = build_engines._parser().parse_args(arguments)
    assert options.names == ["ViT-B-32__openai", "facenet-vggface2"]
    assert (options.backend, options.device) == ("tensorrt", "cuda")
