"""open_clip imported without what it does without: transformers, and Triton where no GPU is there to use it.

The first takes a second and 20 MB, the second 75 MB of resident memory. Only open_clip's own text encoders for
transformers' models need that package, and engines.towers builds those by itself; Triton makes kernels for GPUs, and
torchvision imports it by the way. To be called before anything else imports open_clip. Knows no network.
"""

import importlib
import sys


def import_open_clip() -> None:
    """Import open_clip as if those were not installed; they can be imported as usual afterwards.

    What PyTorch noted of Triton meanwhile stays: on the processor it compiles without.
    """
    if "transformers" in sys.modules:
        return
    torch = importlib.import_module("torch")
    hidden = ["transformers"] if torch.cuda.is_available() or torch.xpu.is_available() else ["transformers", "triton"]
    hidden = [name for name in hidden if name not in sys.modules]
    for name in hidden:
        # Python refuses to import what is None here.
        sys.modules[name] = None  # type: ignore[assignment]  # typeshed: only modules
    try:
        importlib.import_module("open_clip")
    finally:
        for name in hidden:
            del sys.modules[name]
