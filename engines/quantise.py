"""From float32 to int8: ranges measured on inputs, weights and activations rounded to 8 bits by NNCF.

Knows which of NNCF's ways keep the answers, and needs NNCF for building alone: what comes out runs with OpenVINO.
Deliberately knows neither networks nor where the inputs come from (calibration.py), nor whether the result is good
enough: that is for the gate.
"""

import importlib
import os
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engines import intel, machine
from engines.engine import Precision
from engines.errors import BuildFailed

_ATTENTION = {"ScaledDotProductAttention", "Softmax"}  # by which OpenVINO's graphs show that they are transformers
_WEIGHED = {"Convolution", "MatMul"}
_ROUNDED = {*_WEIGHED, "ScaledDotProductAttention"}
_ENDS = {"Parameter", "Constant", "Result"}  # of which NNCF knows itself
# So many products with weights at the input keep their precision, since rounding errs most there: the patches and the
# first block of a transformer, and what a convolutional network does before its residual blocks.
_SPARED_IN_TRANSFORMERS = 5
_SPARED_IN_OTHERS = 7
# How much of the differences between channels moves from the activations into the weights, after Xiao et al.,
# SmoothQuant (2023). NNCF's own 0.95 leaves the weights too coarse.
_SMOOTHING = 0.5


def missing() -> str | None:
    """Return None, or one sentence that says how to install what building in int8 needs."""
    try:
        intel.nncf()
    except ImportError as error:
        return f"Building in int8 needs NNCF, which cannot be imported ({error}): pip install 'facet-ml[int8]'."
    return None


def quantised(model: Any, inputs: Sequence[Tensor]) -> Any:
    """Return an openvino.Model in float32 as one in int8; its ranges are those of the activations on `inputs`.

    Each of `inputs` is a batch (1, …) as the network takes it. Raises BuildFailed without NNCF or without inputs, and
    whatever NNCF does if it cannot follow the network.
    """
    if (reason := missing()) is not None:
        raise BuildFailed(reason)
    if not inputs:
        raise BuildFailed("Building in int8 needs inputs to measure ranges on, and has none.")
    nncf = intel.nncf()
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):  # its progress bars
        return nncf.quantize(
            model,
            nncf.Dataset([batch.numpy() for batch in inputs]),
            subset_size=len(inputs),
            preset=nncf.QuantizationPreset.MIXED,
            **_ways(nncf, model),
        )


def rest(model: Any, device: torch.device) -> Precision:
    """Return the precision for what is not int8 in `model`.

    In a transformer bfloat16 was no faster than float32 for it, and erred more; of others it is a third of the work.
    """
    return "float32" if _is_transformer(model) or machine.native("bfloat16", device) else "bfloat16"


def _is_transformer(model: Any) -> bool:
    return any(node.get_type_name() in _ATTENTION for node in model.get_ops())


def _ways(nncf: Any, model: Any) -> dict[str, Any]:
    nodes = model.get_ordered_ops()
    products = [node.get_friendly_name() for node in nodes if node.get_type_name() in _WEIGHED]
    estimators = importlib.import_module("nncf.quantization.range_estimator").RangeEstimatorParametersSet
    # From the lowest to the highest value ever seen: what is cut off of a picture unlike those errs more than steps
    # that are a little coarser.
    ways = {"activations_range_estimator_params": estimators.MINMAX}
    # Sums of residual branches and the L2 norm would lose more than they gain: all else keeps its precision.
    types = sorted({node.get_type_name() for node in nodes} - _ROUNDED - _ENDS)
    transformer = _is_transformer(model)
    spared = products[: _SPARED_IN_TRANSFORMERS if transformer else _SPARED_IN_OTHERS]
    if transformer:
        ways["smooth_quant_alphas"] = nncf.AdvancedSmoothQuantParameters(matmul=_SMOOTHING)
    return {
        "model_type": nncf.ModelType.TRANSFORMER if transformer else None,
        "ignored_scope": nncf.IgnoredScope(names=spared, types=types, validate=False),
        "advanced_parameters": nncf.AdvancedQuantizationParameters(**ways),
    }
