"""Cores are counted from trees of files as kernels lay them out; devices are picked as torch says they are."""

import logging
import os
import platform
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from engines import machine
from engines.errors import EngineMissing
from engines.machine import Identity
from engines.model import Config

CPU = torch.device("cpu")


def tree(root: Path, **files: str) -> Path:
    """Write files into a tree, their slashes spelt as two underscores."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"proc__self__cgroup": "0::/\n"}, 8),
        ({"proc__self__cgroup": "0::/\n", "sys__fs__cgroup__cpu.max": "max 100000\n"}, 8),
        ({"proc__self__cgroup": "0::/\n", "sys__fs__cgroup__cpu.max": "200000 100000\n"}, 2),
        ({"proc__self__cgroup": "0::/\n", "sys__fs__cgroup__cpu.max": "150000 100000\n"}, 2),
        ({"proc__self__cgroup": "0::/\n", "sys__fs__cgroup__cpu.max": "10000 100000\n"}, 1),
        ({"proc__self__cgroup": "0::/\n", "sys__fs__cgroup__cpu.max": "3200000 100000\n"}, 8),
        ({"proc__self__cgroup": "0::/\n", "sys__fs__cgroup__cpu.max": "\n"}, 8),
        (
            {
                "proc__self__cgroup": "0::/user.slice/app\n",
                "sys__fs__cgroup__user.slice__app__cpu.max": "max 100000\n",
                "sys__fs__cgroup__user.slice__cpu.max": "300000 100000\n",
            },
            3,
        ),
        # A container that sees its own group as the root of all, and the path of the host.
        ({"proc__self__cgroup": "0::/docker/0123\n", "sys__fs__cgroup__cpu.max": "400000 100000\n"}, 4),
        ({"proc__self__cgroup": "0::/../../pod\n", "sys__fs__cgroup__cpu.max": "400000 100000\n"}, 4),
        (
            {
                "proc__self__cgroup": "4:memory:/a\n3:cpu,cpuacct:/docker/0123\n0::/\n",
                "sys__fs__cgroup__cpu,cpuacct__docker__0123__cpu.cfs_quota_us": "250000\n",
                "sys__fs__cgroup__cpu,cpuacct__docker__0123__cpu.cfs_period_us": "100000\n",
                "sys__fs__cgroup__cpu,cpuacct__cpu.cfs_quota_us": "-1\n",
                "sys__fs__cgroup__cpu,cpuacct__cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        (
            {
                "proc__self__cgroup": "3:cpu,cpuacct:/docker/0123\n",
                "sys__fs__cgroup__cpu__cpu.cfs_quota_us": "50000\n",
                "sys__fs__cgroup__cpu__cpu.cfs_period_us": "25000\n",
            },
            2,
        ),
    ],
)
def test_the_quota_of_every_control_group_around_counts(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    assert machine.cores(tree(tmp_path, **files)) == expected


def test_there_is_a_core_on_this_machine() -> None:
    assert 1 <= machine.cores() <= len(os.sched_getaffinity(0))


def test_cores_are_counted_without_torch() -> None:
    code = "import sys; from engines import machine; machine.cores(); print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603 - our own interpreter
    assert shown.stdout == "False\n"


def config(**settings: object) -> Config:
    return Config(Path("unused"), **settings)  # type: ignore[arg-type]  # the tests spell them out one by one


def gpus(monkeypatch: pytest.MonkeyPatch, count: int, broken: tuple[int, ...] = ()) -> None:
    """Let torch see `count` GPUs, of which some fail."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(machine, "_try_cuda", lambda device: "no kernel image" if device.index in broken else None)


def test_without_a_gpu_it_is_the_processor_and_nothing_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gpus(monkeypatch, 0)
    assert machine.pick_devices(config(), tmp_path) == (CPU,)
    assert machine.pick_devices(config(device="cpu"), tmp_path) == (CPU,)
    assert machine.pick_devices(config(require_device="cpu"), tmp_path) == (CPU,)
    assert not caplog.records
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


def test_every_gpu_that_is_named_and_works_is_picked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gpus(monkeypatch, 3, broken=(2,))
    first, second = torch.device("cuda", 0), torch.device("cuda", 1)
    assert machine.pick_devices(config(), tmp_path) == (first,)
    assert machine.pick_devices(config(device_ids=()), tmp_path) == (first,)
    assert machine.pick_devices(config(device_ids=(1, 0, 1)), tmp_path) == (second, first)
    assert machine.pick_devices(config(device="cpu"), tmp_path) == (CPU,)
    assert not caplog.records
    assert machine.pick_devices(config(device_ids=(1, 2, 7), require_device="cuda"), tmp_path) == (second,)
    assert [(record.levelname, record.message.split(":")[1]) for record in caplog.records] == [
        ("ERROR", " GPU 2 is there, but fails a trial (no kernel image)"),
        ("ERROR", " there is no GPU 7, only 0, 1, 2"),
    ]


def test_gpus_that_all_fail_leave_the_processor_loudly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gpus(monkeypatch, 1, broken=(0,))
    assert machine.pick_devices(config(), tmp_path) == (CPU,)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "RUNNING ON THE PROCESSOR: GPU 0 is there, but fails a trial (no kernel image)" in record.message
    for settings in ({"device": "cuda"}, {"require_device": "cuda"}):
        with pytest.raises(EngineMissing, match="the device cuda: GPU 0 is there, but fails"):
            machine.pick_devices(config(**settings), tmp_path)


CARD = {
    "sys__bus__pci__devices__0000:01:00.0__vendor": "0x10de\n",
    "sys__bus__pci__devices__0000:01:00.0__class": "0x030200\n",
}
SOUND = {**CARD, "sys__bus__pci__devices__0000:01:00.0__class": "0x040300\n"}


@pytest.mark.parametrize(
    ("files", "cuda", "reason"),
    [
        ({"dev__nvidia0": "", "dev__nvidiactl": ""}, None, "torch was built without CUDA"),
        ({"proc__driver__nvidia__version": "NVRM"}, "13.0", r"\(CUDA 13.0\) cannot use it: the driver is too old"),
        (CARD, "13.0", "nothing of its driver"),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_told_loudly(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    files: dict[str, str],
    cuda: str | None,
    reason: str,
) -> None:
    def unavailable() -> bool:
        warnings.warn("the driver is too old", stacklevel=2)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", unavailable)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    root = tree(tmp_path, **files)
    assert machine.pick_devices(config(), root) == (CPU,)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    with pytest.raises(EngineMissing, match=reason) as caught:
        machine.pick_devices(config(require_device="cuda"), root)
    assert "unset MACHINE_LEARNING_DEVICE" in str(caught.value)


@pytest.mark.parametrize(("files", "cuda"), [(SOUND, "13.0"), (CARD, None), ({"dev__nvidiactl": ""}, "13.0")])
def test_what_is_no_gpu_for_this_torch_is_not_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    files: dict[str, str],
    cuda: str | None,
) -> None:
    gpus(monkeypatch, 0)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert machine.pick_devices(config(), tree(tmp_path, **files)) == (CPU,)
    assert not caplog.records
    with pytest.raises(EngineMissing, match="there is no NVIDIA GPU here"):
        machine.pick_devices(config(device="cuda"), tmp_path)


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(EngineMissing, match="unset one of them"):
        machine.pick_devices(config(device="cpu", require_device="cuda"))


def test_what_torch_says_of_a_gpu_that_works_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gpus(monkeypatch, 1)

    def available() -> bool:
        warnings.warn("this card is getting old", stacklevel=2)
        return True

    monkeypatch.setattr(torch.cuda, "is_available", available)
    assert machine.pick_devices(config(), tmp_path) == (torch.device("cuda", 0),)
    assert "this card is getting old" in caplog.text


def test_a_trial_really_computes() -> None:
    assert machine._try_cuda(CPU) is None
    failure = machine._try_cuda(torch.device("meta"))  # has shapes and no numbers
    assert failure is not None
    assert "RuntimeError" in failure


class OneIntelGpu:
    """Answers as OpenVINO does on a machine with one Intel GPU."""

    available_devices: tuple[str, ...] = ("CPU", "GPU")

    def get_property(self, device: str, name: str) -> object:
        return {
            ("GPU.0", "FULL_DEVICE_NAME"): "Intel(R) Arc(TM) A770 Graphics (dGPU)",
            ("GPU.0", "DEVICE_ARCHITECTURE"): "GPU: vendor=0x8086 arch=v12.55.8",
            ("GPU.0", "OPTIMIZATION_CAPABILITIES"): ["FP32", "BIN", "FP16", "INT8"],
        }[device, name]


class TwoIntelGpus(OneIntelGpu):
    available_devices = ("CPU", "GPU.0", "GPU.1")


class NoIntelGpu(OneIntelGpu):
    available_devices = ("CPU",)


def test_intel_gpus_are_those_of_openvino(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    first, second = torch.device("xpu", 0), torch.device("xpu", 1)
    openvino = SimpleNamespace(Core=OneIntelGpu)
    monkeypatch.setitem(sys.modules, "openvino", openvino)
    assert machine.pick_devices(config(device="xpu")) == (first,)
    assert machine.identity(first) == Identity(
        "Intel(R) Arc(TM) A770 Graphics (dGPU)", "GPU: vendor=0x8086 arch=v12.55.8", ""
    )
    assert machine.native("float16", first) is None
    assert machine.native("bfloat16", first) == "This Intel GPU does not compute in bfloat16."
    assert not caplog.records
    assert machine.pick_devices(config(require_device="xpu", device_ids=(0, 1))) == (first,)
    assert "there is no GPU 1, only 0" in caplog.text
    openvino.Core = TwoIntelGpus
    assert machine.pick_devices(config(device="xpu", device_ids=(1, 0))) == (second, first)
    openvino.Core = NoIntelGpu
    with pytest.raises(EngineMissing, match="OpenVINO sees no Intel GPU"):
        machine.pick_devices(config(device="xpu"))
    monkeypatch.setitem(sys.modules, "openvino", None)  # as if it were not installed
    with pytest.raises(EngineMissing, match="OpenVINO, which cannot be imported"):
        machine.pick_devices(config(device="xpu"))


X86 = """processor : 0
model name : AMD EPYC
cpu family : 25
model : 17
flags : fpu sse4_2 avx2 smep avx512f avx512_bf16 constant_tsc

processor : 1
model name : AMD EPYC
cpu family : 25
model : 17
flags : fpu sse4_2 avx2 smep avx512f constant_tsc avx512_bf16

"""
ARM = """processor : 0
Features : fp asimd aes asimdhp i8mm bf16 sve
CPU implementer : 0x41
CPU part : 0xd40

processor : 1
Features : fp asimd aes asimdhp
CPU implementer : 0x41
CPU part : 0xd05

"""


@pytest.mark.parametrize(
    ("kind", "cpuinfo", "expected"),
    [
        ("x86_64", X86, Identity("x86_64 AMD EPYC 25 17", "avx2 avx512_bf16 avx512f sse4_2", "")),
        ("aarch64", ARM, Identity("aarch64 0x41 0xd40", "asimd asimdhp", "")),
    ],
)
def test_a_processor_is_named_by_its_model_and_what_all_its_cores_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, cpuinfo: str, expected: Identity
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: kind)
    assert machine.identity(CPU, tree(tmp_path, proc__cpuinfo=cpuinfo)) == expected


def test_a_machine_that_tells_nothing_has_an_identity_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    assert machine.identity(CPU, tmp_path) == Identity("arm64 arm", "", "")


def test_this_machine_has_an_identity() -> None:
    assert machine.identity(CPU).device.startswith(platform.machine())
    assert machine.identity(CPU) == machine.identity(CPU)


def card(monkeypatch: pytest.MonkeyPatch, name: str, capability: tuple[int, int]) -> torch.device:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    return torch.device("cuda", 0)


def test_a_gpu_is_named_by_its_compute_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.identity(card(monkeypatch, "NVIDIA H200", (9, 0))) == Identity("NVIDIA H200", "sm_90", "13.0")


def test_precisions_that_the_hardware_lacks_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turing = card(monkeypatch, "Tesla T4", (7, 5))
    assert machine.native("bfloat16", turing) == "Tesla T4 is older than bfloat16: use float16."
    assert machine.native("float16", turing) is None
    assert machine.native("int8", turing) is None
    assert machine.native("bfloat16", card(monkeypatch, "NVIDIA A10", (8, 6))) is None
    epyc = tree(tmp_path / "epyc", proc__cpuinfo=X86.replace("smep", "avx512_vnni"))
    assert machine.native("float32", CPU, epyc) is None
    assert machine.native("int8", CPU, epyc) is None
    assert machine.native("bfloat16", CPU, epyc) is None
    assert "no instructions for float16" in str(machine.native("float16", CPU, epyc))
    old = tree(tmp_path / "old", proc__cpuinfo=X86)
    assert machine.native("int8", CPU, old) == (
        "This processor has no instructions for int8 (amx_int8, asimddp, avx512_vnni, avx_vnni, i8mm)."
    )
    arm = tree(tmp_path / "arm", proc__cpuinfo=ARM)
    assert machine.native("float16", CPU, arm) is None
    assert "no instructions for bfloat16" in str(machine.native("bfloat16", CPU, arm))  # its small cores have none
