"""Reading beside a training: what sees all calls, and calls that nothing else gets to see."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)
for _key in ("AutocastCUDA", "AutocastXPU", "AutocastMPS", "AutocastPrivateUse1"):
    _KEYS = _KEYS | torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, _key))


class aside:
    """A block whose calls of PyTorch are nobody else's.

    No `TorchFunctionMode` sees them, autocast leaves their types alone, and dispatch modes, such
    as the cache of a selective checkpoint, which counts calls, miss them.

    Example:
        >>> with torch.autocast("cpu", dtype=torch.bfloat16), aside():
        ...     (torch.ones(2, 2) @ torch.ones(2)).dtype
        torch.float32
    """

    __slots__ = ("_guards",)

    def __enter__(self) -> None:
        self._guards = (
            torch._C.DisableTorchFunction(),
            torch._C._DisableTorchDispatch(),
            torch._C._ExcludeDispatchKeyGuard(_KEYS),
        )
        for guard in self._guards:
            guard.__enter__()

    def __exit__(self, *_: object) -> None:
        for guard in reversed(self._guards):
            guard.__exit__(None, None, None)


_push: Any = torch.overrides._push_mode
_pop: Any = torch.overrides._pop_mode
_entered: Any = torch.overrides._get_current_function_mode_stack


def enter(mode: TorchFunctionMode) -> None:
    """Let a mode see all calls, until it is left: in another place, so `with` does not serve."""
    _push(mode)


def leave(mode: TorchFunctionMode) -> None:
    """Leave a mode, whatever has been entered since and not left."""
    above = []
    stack = _entered()
    while mode in stack:
        top = _pop()
        stack.pop()
        if top is mode:
            break
        above.append(top)
    for other in reversed(above):
        _push(other)
