"""Published CLIP checkpoints into the towers: which names they have, which of them are not parameters, what must fit.

Knows the layouts in use: open_clip's CLIP (text at the top level) and CustomTextCLIP (under "text."), the conversions
of OpenAI's files, and Multilingual-CLIP. Deliberately knows no files: tensors come from engines.weights.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from engines.errors import WeightsBroken
from engines.towers import PictureTower, Tower

# Of a whole CLIP model but of neither tower; OpenAI's files carry their sizes as tensors.
_OF_NEITHER = {"logit_scale", "logit_bias", "input_resolution", "context_length", "vocab_size"}
# Tables that the constructors compute, which older versions of open_clip and transformers saved as well, and the
# pooler that Multilingual-CLIP carries but never runs.
_COMPUTED = ("attn_mask", "position_ids", "token_type_ids", "embed_positions.weights")
_UNUSED = "transformer.pooler."
_MCLIP_PROJECTION = "LinearTransformation."
_SHOWN = 3  # misfits that an error names


class _WithoutRandom(TorchFunctionMode):
    """Leaves tensors as they were allocated where an initialiser would draw random numbers."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in _RANDOM:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


# By name: transformers puts functions of its own in the place of torch's while it initialises.
_RANDOM = {
    "normal_",
    "uniform_",
    "erfinv_",
    "trunc_normal_",
    "kaiming_normal_",
    "kaiming_uniform_",
    "xavier_normal_",
    "xavier_uniform_",
}


@contextmanager
def to_be_loaded() -> Iterator[None]:
    """Build a network in this context without its random initialisation, since `load` replaces every parameter.

    What constructors compute (masks, tables of positions) is computed as ever.
    """
    with _WithoutRandom():
        yield


def load(network: Tower, state: Mapping[str, Tensor], name: str) -> None:
    """Put the tensors of a checkpoint into `network`, as float32.

    `state` has the published keys, of the tower alone or of the whole model. Raises WeightsBroken, naming the model
    and the first keys, where a tensor is missing, too many or of another shape.
    """
    wanted = network.tower.state_dict()
    found = dict(_own(state, isinstance(network, PictureTower), wanted))
    missing = [key for key in wanted if key not in found]
    extra = [key for key in found if key not in wanted]
    shapes = [
        f"{key} is {tuple(found[key].shape)} where {tuple(tensor.shape)} is wanted"
        for key, tensor in wanted.items()
        if key in found and found[key].shape != tensor.shape
    ]
    if missing or extra or shapes:
        told = [
            f"{what}: {', '.join(keys[:_SHOWN])}{' and more' if len(keys) > _SHOWN else ''}"
            for what, keys in (("missing", missing), ("not wanted", extra), ("of another shape", shapes))
            if keys
        ]
        raise WeightsBroken(
            f"The weights of {name} do not fit its architecture ({'; '.join(told)}). "
            "Delete them from the cache folder, so that they are fetched anew."
        )
    # Copies: what was read may be views of the mapped file, and the network must outlive a change of that file.
    own = {
        key: tensor.to(torch.float32, copy=True) if tensor.is_floating_point() else tensor.clone()
        for key, tensor in found.items()
    }
    network.tower.load_state_dict(own, assign=True)


def _own(state: Mapping[str, Tensor], picture: bool, wanted: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for key, tensor in state.items():
        if key.startswith("visual.") != picture or key in _OF_NEITHER:
            continue
        own = key.removeprefix("visual.") if picture else key.removeprefix("text.")
        if own.startswith(_MCLIP_PROJECTION):
            own = "proj." + own.removeprefix(_MCLIP_PROJECTION)
        if own not in wanted and (own.endswith(_COMPUTED) or own.startswith(_UNUSED)):
            continue
        yield own, tensor
