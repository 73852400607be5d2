"""When weights may change inside a Trainer.

`Callback.setup` comes before the module's own `setup` and `configure_model` and before a
checkpoint is restored. So weights are written there, and again right after the module has built
the rest, through a wrapper that removes itself; a checkpoint is restored later and wins.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn

from lightning_init.architecture.names import named_tensors, unwrap
from lightning_init.architecture.provenance import record_of


def builds_later(module: pl.LightningModule) -> str | None:
    """The hook of the module that runs after `Callback.setup` and may build layers."""
    for name in ("configure_model", "setup"):
        if is_overridden(name, module):
            return name
    return None


def after(module: pl.LightningModule, name: str, then: Callable[[], None]) -> Callable[[], None]:
    """Run `then` once, right after the module's own hook `name`.

    Args:
        module: The module; a wrapper is put into its `__dict__` and removes itself when called.
        name: `setup` or `configure_model`.
        then: What to do.

    Returns:
        A call that removes the wrapper if it has not run.
    """
    had = module.__dict__.get(name)
    original = getattr(module, name)

    def remove() -> None:
        if module.__dict__.get(name) is wrapper:
            del module.__dict__[name]
            if had is not None:
                module.__dict__[name] = had

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        remove()
        result = original(*args, **kwargs)
        then()
        return result

    module.__dict__[name] = wrapper
    return remove


def was_rewritten(model: nn.Module) -> bool:
    """Whether a tensor that we wrote has been written again since, as a checkpoint does."""
    model = unwrap(model)
    written = record_of(model).written
    return any(written.get(names[0], t._version) != t._version for names, t in named_tensors(model))
