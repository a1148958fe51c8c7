"""OpenVINO as it is imported here, and the GPUs that it sees.

OpenVINO reports over the network that it was imported, and later each conversion, to its makers, unless somebody has
opted out in a file in the home folder. A server for private photos tells nobody anything, so that package is kept out:
OpenVINO then does without, as where it is not installed. All of this code imports OpenVINO through here, and only when
it is wanted. NNCF, which makes int8 of networks, reports through the same package. Knows no networks and no precision.
"""

import importlib
import logging
import sys
from typing import Any


def openvino() -> Any:
    """Return the module openvino, which then tells nobody; raises ImportError where it is not installed."""
    # Python refuses to import what is None here. Whoever has imported it before keeps it.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # typeshed: only modules
    return importlib.import_module("openvino")


def nncf() -> Any:
    """Return the module nncf, which then tells nobody; raises ImportError where it or openvino is not installed."""
    openvino()
    ours = logging.getLoggerClass()
    module = importlib.import_module("nncf")
    # It takes over all loggers to come, and writes to the standard output, where others have something to say.
    logging.setLoggerClass(ours)
    logger = logging.getLogger("nncf")
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(logging.WARNING)
    return module


def gpus() -> tuple[str, ...]:
    """Return the ordinals of the Intel GPUs that OpenVINO sees; raises ImportError."""
    seen = [name.split(".") for name in openvino().Core().available_devices]
    # A single one is called GPU, several GPU.0, GPU.1, …
    return tuple(name[1] if len(name) > 1 else "0" for name in seen if name[0] == "GPU")
