"""A stand-in for torch-tensorrt, made from the signatures of the real one, which lie beside this file.

It binds what it is given as Python would, and runs the exported program instead of a plan.
"""

import ast
import inspect
import json
import warnings
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

from scripts.check_tensorrt import pinned, record_of

RECORD: dict[str, Any] = json.loads(record_of(pinned()).read_text(encoding="utf-8"))
CONVERT = "torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine"


def signature(public: str) -> inspect.Signature:
    """Return the recorded signature; a **kwargs in it takes the recorded keywords alone."""
    entry = RECORD["signatures"][public]
    arguments = ast.parse(f"def f({entry['parameters']}): ...").body[0].args  # type: ignore[attr-defined]
    plain = [*arguments.posonlyargs, *arguments.args]
    needed = len(plain) - len(arguments.defaults)
    kinds = inspect.Parameter
    parameters = [
        kinds(argument.arg, kinds.POSITIONAL_OR_KEYWORD, default=kinds.empty if i < needed else None)
        for i, argument in enumerate(plain)
    ]
    if arguments.vararg:
        parameters.append(kinds(arguments.vararg.arg, kinds.VAR_POSITIONAL))
    parameters += [kinds(argument.arg, kinds.KEYWORD_ONLY, default=None) for argument in arguments.kwonlyargs]
    parameters += [kinds(keyword, kinds.KEYWORD_ONLY, default=None) for keyword in entry["keywords"]]
    return inspect.Signature(parameters)


class Stub:
    """Stands in for the package. `given` has what each function was last called with."""

    def __init__(self) -> None:
        self.given: dict[str, dict[str, Any]] = {}
        self.program: Any = None
        package: Any = ModuleType("torch_tensorrt")
        package.dynamo, package.runtime = SimpleNamespace(), SimpleNamespace()
        self.package = package
        for public in RECORD["signatures"]:
            *path, name = public.split(".")[1:]
            place = getattr(self.package, path[0]) if path else self.package
            setattr(place, name, self._bound(public))
        self.package.dynamo.convert_exported_program_to_serialized_trt_engine = self._convert
        self.package.runtime.TorchTensorRTModule = self._run

    def _bound(self, public: str) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            self.given[public] = signature(public).bind(*args, **kwargs).arguments
            return SimpleNamespace(**self.given[public])

        return called

    def _convert(self, *args: Any, **kwargs: Any) -> bytes:
        self._bound(CONVERT)(*args, **kwargs)
        warnings.warn("`use_explicit_typing` is deprecated. It is on by default.", DeprecationWarning, stacklevel=2)
        self.program = self.given[CONVERT]["exported_program"]
        return b"a plan"

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        self._bound("torch_tensorrt.runtime.TorchTensorRTModule")(*args, **kwargs)
        return unfolded(self.program)


def unfolded(program: Any) -> Any:
    """Return what the package makes of a program before it converts it: without guards and all else without users."""
    module = program.module()
    for node in reversed(module.graph.nodes):
        if node.op != "output" and not node.users and node.all_input_nodes:
            module.graph.erase_node(node)
    module.recompile()
    return module
