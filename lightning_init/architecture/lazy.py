"""Lazy layers: shapes from one forward pass, which leaves nothing else behind."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any, TypeGuard

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy

from lightning_init.architecture.preserve import keep_module, keep_rng, preserved
from lightning_init.architecture.state import Undo, keep_tensor


def has_lazy(model: nn.Module) -> bool:
    """Whether a layer has yet to learn its shape; loaded values alone do not tell it.

    Example:
        >>> has_lazy(nn.LazyLinear(2)), has_lazy(nn.Linear(2, 2))
        (True, False)
    """
    waiting = any(map(_waits, model.modules()))
    return waiting or any(map(is_lazy, chain(model.parameters(), model.buffers())))


def materialize_(model: nn.Module, forward: Callable[[], object]) -> None:
    """Let lazy layers become what one forward pass makes of them; all else stays as it is.

    Layers that the pass does not reach stay lazy. The global random state does not move.

    Args:
        model: Any module.
        forward: A call without arguments that runs the model once.

    Example:
        >>> model = nn.LazyLinear(2)
        >>> materialize_(model, lambda: model(torch.ones(1, 3)))
        >>> tuple(model.weight.shape)
        (2, 3)
    """
    calls: list[tuple[nn.Module, Any, Any]] = []

    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        calls.append((module, args, kwargs))

    with preserved(model):
        for module in model.modules():
            if _waits(module):
                module.register_forward_pre_hook(note, prepend=True, with_kwargs=True)
        forward()
    restore = keep_rng()
    try:
        for module, args, kwargs in calls:
            if _waits(module):  # not if it was called twice
                module._infer_parameters(module, args, kwargs)  # what the layer's own hook does
    finally:
        restore()


def keep_lazy(model: nn.Module) -> list[Undo]:
    """How to make the layers of a model lazy again that are lazy now."""
    lazy = [module for module in model.modules() if _waits(module)]
    tensors = [t for t in chain(model.parameters(), model.buffers()) if is_lazy(t)]
    undo = [keep_module(module) for module in lazy]
    return undo + [restore for restore in map(keep_tensor, tensors) if restore is not None]


def _waits(module: nn.Module) -> TypeGuard[Any]:
    return isinstance(module, LazyModuleMixin) and hasattr(module, "_initialize_hook")
