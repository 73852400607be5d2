"""Reading beside a training: calls that no mode, no autocast and no cache gets to see."""

from __future__ import annotations

import torch

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
