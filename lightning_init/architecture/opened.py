"""Composite functions, opened: the same code, whose inner calls a mode can see.

`F.multi_head_attention_forward` hands itself over to a `TorchFunctionMode` as one call. Its body
begins with a question whether such a mode is active; asked in a copy of the function that always
hears "no", the body runs, and each call that it makes is seen.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F

_SILENT = {
    name: lambda *_: False
    for name in ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
}


def opened(function: Callable[..., Any]) -> Callable[..., Any]:
    """A copy of a Python function of `torch.nn.functional` that does not hand itself over.

    Example:
        >>> opened(F.normalize)(__import__("torch").tensor([3.0, 4.0]), dim=0)
        tensor([0.6000, 0.8000])
    """
    if not isinstance(function, types.FunctionType):
        raise TypeError(f"only Python functions can be opened, but got {function!r}")
    copy = types.FunctionType(
        function.__code__,
        {**function.__globals__, **_SILENT},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


OPENED: dict[Callable[..., Any], Callable[..., Any]] = {
    F.multi_head_attention_forward: opened(F.multi_head_attention_forward)
}
