"""Parameters that a forward pass writes to, copied right before the first write.

Few forward passes write parameters (some clip or average them), so a copy of all of them would
cost the memory of a second model for nothing.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_init.architecture.calls import tensors
from lightning_init.architecture.state import Undo, keep_tensor

_SMALL = 2**14  # elements; what is smaller is copied beforehand, which costs nothing
# Besides calls whose names end in one underscore: those that hand the memory itself out.
_WRITERS = {"__setitem__", "__set__", "numpy", "__array__", "__dlpack__", "data_ptr"}
_WRITERS |= {"untyped_storage", "storage"}
_RENORMS = (F.embedding, F.embedding_bag)  # their fourth argument, max_norm, rescales the table


class Guard:
    """Large plain parameters, by where their values lie.

    Args:
        parameters: Of the model that is going to run.

    Example:
        >>> weight = nn.Parameter(torch.ones(200, 200))
        >>> guard = Guard([weight])
        >>> with torch.no_grad(), guard.watching():
        ...     guard.before(torch.Tensor.mul_, (weight, 2), {})
        ...     _ = weight.mul_(2)
        >>> bool((weight == 1).all())
        True
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.parameters = [
            p
            for p in parameters
            if type(p) in (Tensor, nn.Parameter)
            and not (is_lazy(p) or p.is_meta)
            and p.layout is torch.strided
            and p.numel() > _SMALL
        ]
        self._at: dict[int, list[Tensor]] = defaultdict(list)
        for parameter in self.parameters:
            self._at[parameter.untyped_storage().data_ptr()].append(parameter)
        self._undo: list[Undo] = []
        self._versions = [parameter._version for parameter in self.parameters]

    def before(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """Copy the parameters that a call is about to write to."""
        if not self._at or not _writes(func, args, kwargs):
            return
        for tensor in tensors((args, kwargs)):
            if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout is not torch.strided:
                continue
            for parameter in self._at.pop(tensor.untyped_storage().data_ptr(), ()):
                if (restore := keep_tensor(parameter)) is not None:
                    self._undo.append(restore)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Put back what was copied inside of the block."""
        try:
            yield
        finally:
            with torch.no_grad():
                for restore in self._undo:
                    restore()
            left = {id(parameter) for found in self._at.values() for parameter in found}
            written = sum(
                id(parameter) in left and parameter._version != version
                for parameter, version in zip(self.parameters, self._versions, strict=True)
            )
            if written:
                warnings.warn(
                    f"the forward pass changed {written} parameters otherwise than by calls of "
                    "PyTorch: they could not be put back",
                    stacklevel=3,
                )


def _writes(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    name = getattr(func, "__name__", "")
    if (name.endswith("_") and not name.endswith("__")) or name in _WRITERS:
        return True
    if name.startswith("__i") or kwargs.get("out") is not None or kwargs.get("inplace"):
        return True
    if func in _RENORMS:
        return (args[3] if len(args) > 3 else kwargs.get("max_norm")) is not None
    return False
