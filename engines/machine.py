"""The machine at hand: its cores, its devices, what their instructions can do.

Reads what the kernel tells under /proc and /sys, and asks torch or OpenVINO about GPUs. Imports neither before a
function needs it, since the server counts cores before torch is loaded. Knows no networks and no backends.
"""

import logging
import math
import os
import platform
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engines import intel
from engines.errors import EngineMissing
from engines.model import Config

if TYPE_CHECKING:
    import torch

    from engines.engine import Precision

log = logging.getLogger(__name__)

_ROOT = Path("/")
# The instruction sets that compilers choose between, of x86 and of ARM, as Linux spells them. A kernel knows more
# names with each version: without this choice an update of it would make other processors of the old ones.
_INSTRUCTIONS = re.compile(
    r"(sse4_[12a]|avx\w*|amx_\w+|fma|f16c|bmi[12]|gfni|vaes|vpclmulqdq|asimd\w*|fphp|bf16|i8mm|sve\w*|sme2?)"
)
_DISPLAY = "0x03"  # how the PCI class of display controllers begins, cards for data centres included
_NVIDIA = "0x10de"


@dataclass(frozen=True, slots=True)
class Identity:
    """What a compiled engine depends on: the device by name, its instructions, the version of CUDA; "" for none."""

    device: str
    instructions: str
    cuda: str


def cores(root: Path = _ROOT) -> int:
    """Return how many cores this process may use, at least 1: by its affinity and the quota of its control groups.

    A quota of a part of a core counts as a whole one. `root` is where /proc and /sys are.
    """
    # macOS has no affinity.
    least: float = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min([least, *_quotas(root)])))


def _quotas(root: Path) -> Iterator[float]:
    """Yield the cores' worth of time that each control group around this process allows, where one is limited."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            for folder in _upwards(root / "sys/fs/cgroup", path):
                # https://docs.kernel.org/admin-guide/cgroup-v2.html: "$MAX $PERIOD", both in µs, MAX may be "max".
                quota, _, period = _read(folder / "cpu.max").partition(" ")
                yield from _share(quota, period)
        elif "cpu" in controllers.split(","):
            for mount in (root / "sys/fs/cgroup" / controllers, root / "sys/fs/cgroup/cpu"):
                for folder in _upwards(mount, path):
                    # -1 is no limit.
                    yield from _share(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """Yield the folder of a control group and all around it. A container may see only its own, as the mount itself."""
    parts = [part for part in path.split("/") if part]
    if ".." in parts:  # the group lies outside of what is mounted here
        parts = []
    for length in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:length])


def _share(quota: str, period: str) -> Iterator[float]:
    if quota.strip().isdecimal() and period.strip().isdecimal() and int(period) > 0:
        yield int(quota) / int(period)


def _read(path: Path) -> str:
    """Return the text of a file of the kernel, "" where there is none to read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def pick_devices(config: Config, root: Path = _ROOT) -> tuple["torch.device", ...]:
    """Return the devices to run on: the GPUs that the settings name and that work, or the processor.

    Switches TensorFloat-32 off. Tells in the log of every GPU that is there and cannot be used. Raises EngineMissing if
    a device that the settings insist on is not there.
    """
    import torch

    # TensorFloat-32 keeps 10 bits of a mantissa: float32 here means float32, faster precisions have names of their own.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    wanted = config.require_device or config.device
    if config.require_device and config.device not in ("auto", config.require_device):
        raise EngineMissing(
            f"MACHINE_LEARNING_DEVICE is {config.device} and MACHINE_LEARNING_REQUIRE_DEVICE is "
            f"{config.require_device}: unset one of them."
        )
    if wanted == "cpu":
        return (torch.device("cpu"),)
    ids = tuple(dict.fromkeys(config.device_ids)) or (0,)
    try:
        return _intel_gpus(ids) if wanted == "xpu" else _nvidia_gpus(ids, root)
    except _Unusable as error:
        if wanted != "auto":
            raise EngineMissing(
                f"The settings want the device {wanted}: {error}. Or unset MACHINE_LEARNING_DEVICE and "
                "MACHINE_LEARNING_REQUIRE_DEVICE to run on the processor."
            ) from error
        if error.present:
            log.error("RUNNING ON THE PROCESSOR: %s. MACHINE_LEARNING_DEVICE=cpu silences this.", error)
        return (torch.device("cpu"),)


class _Unusable(Exception):
    """No GPU can be used; `str()` says why and what helps, `present` whether the machine has one."""

    def __init__(self, reason: str, present: bool) -> None:
        super().__init__(reason)
        self.present = present


def _nvidia_gpus(ids: tuple[int, ...], root: Path) -> tuple["torch.device", ...]:
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    said = "; ".join(str(warning.message) for warning in caught)
    if not available:
        raise _why_no_cuda(root, torch.version.cuda, said)
    if said:
        log.warning("torch says of the GPU: %s", said)
    count = torch.cuda.device_count()
    return _usable("cuda", ids, [str(i) for i in range(count)], _try_cuda)


def _why_no_cuda(root: Path, cuda: str | None, said: str) -> _Unusable:
    """Say why torch, built for `cuda` and having `said` something on the way, sees no GPU."""
    nodes = [*(root / "dev").glob("nvidia[0-9]*"), *(root / "proc/driver/nvidia").glob("version")]
    if nodes and cuda is None:
        reason = "there is an NVIDIA GPU, but torch was built without CUDA: install the build of torch for CUDA"
    elif nodes:
        why = said or "it sees none: check that the driver works and that CUDA_VISIBLE_DEVICES does not hide the GPU"
        reason = f"there is an NVIDIA GPU, but torch (CUDA {cuda}) cannot use it: {why}"
    elif cuda is not None and _nvidia_on_the_bus(root):
        reason = (
            "there is an NVIDIA GPU, but nothing of its driver: install the driver, or give the GPU to the container "
            "(docker run --gpus all)"
        )
    else:
        return _Unusable("there is no NVIDIA GPU here: add one, or give it to the container", present=False)
    return _Unusable(reason, present=True)


def _nvidia_on_the_bus(root: Path) -> bool:
    """Return whether a graphics card of NVIDIA is plugged in, also if a container may not use it."""
    return any(
        _read(card / "vendor").strip() == _NVIDIA and _read(card / "class").startswith(_DISPLAY)
        for card in (root / "sys/bus/pci/devices").glob("*")
    )


def _try_cuda(device: "torch.device") -> str | None:
    """Return why `device` cannot compute, None if it can: some are listed, and too old or broken for this torch."""
    import torch

    try:
        ones = torch.ones(64, 64, device=device)
        total = float((ones @ ones).sum())
    except RuntimeError as error:  # all that torch raises on a device, out of memory included
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return None if total == 64.0**3 else f"a sum that is {64**3} came out as {total:g}"


def _intel_gpus(ids: tuple[int, ...]) -> tuple["torch.device", ...]:
    try:
        there = intel.gpus()
    except ImportError as error:
        raise _Unusable(f"Intel GPUs are used by OpenVINO, which cannot be imported ({error})", False) from error
    if not there:
        raise _Unusable(
            "OpenVINO sees no Intel GPU: install Intel's compute runtime, and give /dev/dri to the container", False
        )
    return _usable("xpu", ids, list(there), lambda _: None)


def _usable(
    kind: str, ids: tuple[int, ...], there: list[str], trial: Callable[["torch.device"], str | None]
) -> tuple["torch.device", ...]:
    """Return the devices of `kind` with the ordinals `ids` that are `there` and pass the `trial`; tell of the others.

    Raises _Unusable if none is left.
    """
    import torch

    devices, reasons = [], []
    for ordinal in ids:
        device = torch.device(kind, ordinal)
        if str(ordinal) not in there:
            why: str | None = f"there is no GPU {ordinal}, only {', '.join(there)}: set MACHINE_LEARNING_DEVICE_IDS"
        elif (failure := trial(device)) is not None:
            why = f"GPU {ordinal} is there, but fails a trial ({failure}): check its driver and what else runs on it"
        else:
            why = None
            devices.append(device)
        if why:
            reasons.append(why)
    if not devices:
        raise _Unusable("; ".join(reasons), present=True)
    for why in reasons:
        log.error("A GPU IS NOT USED: %s", why)
    return tuple(devices)


def identity(device: "torch.device", root: Path = _ROOT) -> Identity:
    """Return what an engine that is compiled for `device` depends on."""
    import torch

    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return Identity(torch.cuda.get_device_name(device), f"sm_{major}{minor}", torch.version.cuda or "")
    if device.type == "xpu":
        return Identity(_intel(device, "FULL_DEVICE_NAME"), _intel(device, "DEVICE_ARCHITECTURE"), "")
    fields, flags = _processor(root)
    name = " ".join(filter(None, (platform.machine(), *fields)))
    return Identity(name, " ".join(sorted(flag for flag in flags if _INSTRUCTIONS.fullmatch(flag))), "")


def _processor(root: Path) -> tuple[list[str], set[str]]:
    """Return what names the processor's model, and the flags that all its cores have."""
    cores = [
        {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in block.splitlines())}
        for block in _read(root / "proc/cpuinfo").split("\n\n")
    ]
    cores = [core for core in cores if "flags" in core or "Features" in core]
    if not cores:
        return [platform.processor()], set()  # not Linux
    # Virtual machines may call all of a maker's processors the same, so the numbers tell them apart.
    keys = ("model name", "cpu family", "model", "CPU implementer", "CPU part")
    flags = [set(core.get("flags", core.get("Features", "")).split()) for core in cores]
    return [cores[0][key] for key in keys if key in cores[0]], set.intersection(*flags)


def _intel(device: "torch.device", what: str) -> str:
    return str(intel.openvino().Core().get_property(f"GPU.{device.index or 0}", what))


def native(precision: "Precision", device: "torch.device", root: Path = _ROOT) -> str | None:
    """Return None, or one sentence why the hardware of `device` does not compute in `precision` by itself.

    Where it does not, each operation is imitated in others, which is slower than float32.
    """
    import torch

    if precision == "float32":
        return None
    if device.type == "cuda":
        # bfloat16 came with Ampere; all cards that torch still supports have float16 and int8.
        old = precision == "bfloat16" and torch.cuda.get_device_capability(device) < (8, 0)
        return f"{torch.cuda.get_device_name(device)} is older than bfloat16: use float16." if old else None
    if device.type == "xpu":
        name = {"bfloat16": "BF16", "float16": "FP16", "int8": "INT8"}[precision]
        able = intel.openvino().Core().get_property(f"GPU.{device.index or 0}", "OPTIMIZATION_CAPABILITIES")
        return None if name in able else f"This Intel GPU does not compute in {precision}."
    wanted = {
        "bfloat16": {"avx512_bf16", "amx_bf16", "bf16"},
        "float16": {"avx512_fp16", "amx_fp16", "asimdhp"},
        # Products of bytes that are summed up in 32 bits: without them sums overflow, or take several steps.
        "int8": {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"},
    }
    if wanted[precision] & _processor(root)[1]:
        return None
    return f"This processor has no instructions for {precision} ({', '.join(sorted(wanted[precision]))})."
