"""What a module builds, and what other callbacks freeze or copy, after `Callback.setup`."""

from __future__ import annotations

import copy
import functools
import inspect
import weakref
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from lightning_utilities.core.overrides import is_overridden
from torch import nn

from lightning_init.architecture.unwritten import Unwritten
from lightning_init.callbacks.arguments import callbacks_of

_BUILD = ("configure_model", "setup")


def builds_later(module: pl.LightningModule) -> str | None:
    """The hook of the module that runs after `Callback.setup` and may build layers."""
    # That of `pytorch_lightning` is another class of the same name.
    parents = (kind for kind in type(module).__mro__ if kind.__name__ == "LightningModule")
    parent = next(parents, pl.LightningModule)
    for name in _BUILD:
        if is_overridden(name, module, parent):
            return name
    return None


def freezes_later(trainer: pl.Trainer) -> bool:
    """Whether a callback freezes layers in its `setup`, which may come after ours."""
    kinds = {kind.__name__ for each in callbacks_of(trainer) for kind in type(each).__mro__}
    return "BaseFinetuning" in kinds


class After:
    """Runs `then` right after a module's own hook, each time that it is called, until removed.

    It lies in the module's `__dict__`, where Lightning finds it before the class's method. A copy
    of the module, or one in another process, gets the module's own method.

    Args:
        module: The module.
        name: The hook, `setup` say.
        then: What to do.
        once: Whether it is removed as soon as it is called.
    """

    def __init__(
        self, module: pl.LightningModule, name: str, then: Callable[[], None], once: bool = False
    ) -> None:
        self._had = module.__dict__.get(name)
        self._original = getattr(module, name)
        # So that Lightning sees what it overrides, through one wrapper and no more.
        functools.update_wrapper(self, inspect.unwrap(self._original))
        self._module, self._name, self._then, self._once = module, name, then, once
        self._copies: list[weakref.ref[Any]] = []
        module.__dict__[name] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the module's own hook."""
        if self._once:
            self.remove()
        if self._name in _BUILD:
            with Unwritten() as seen:
                result = self._original(*args, **kwargs)
            seen.note(self._module)
        else:
            result = self._original(*args, **kwargs)
        self._then()
        return result

    def remove(self) -> None:
        """Put the module's own hook back, in its copies too."""
        held = self._module.__dict__.get(self._name)
        if held is self:
            del self._module.__dict__[self._name]
            if self._had is not None:
                self._module.__dict__[self._name] = self._had
        while isinstance(held, After):  # another callback's lies on top
            if held._had is self:
                held._had, held._original = self._had, self._original
            held = held._had
        for twin in filter(None, (each() for each in self._copies)):
            if self._had is None:
                twin.__dict__.pop(self._name, None)
        self._copies = []

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        self._copies.append(weakref.ref(copy.deepcopy(self._module, memo)))
        return copy.deepcopy(self._original, memo)

    def __reduce__(self) -> Any:
        return _itself, (self._original,)


def take_off(module: pl.LightningModule) -> None:
    """Remove what a fit has left that could not say goodbye."""
    for name in ("setup", "configure_model"):
        while isinstance(held := module.__dict__.get(name), After):
            held.remove()


def _itself(method: Any) -> Any:
    return method


def copies(trainer: pl.Trainer) -> dict[str, nn.Module]:
    """Averages of the weights, which callbacks copied in their `setup`, by the callback's name."""
    held = [(type(c).__name__, getattr(c, "_average_model", None)) for c in callbacks_of(trainer)]
    return {
        name: getattr(twin, "module", twin) for name, twin in held if isinstance(twin, nn.Module)
    }


def refresh_copies(trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """Give averages that callbacks hold the present weights.

    Warns:
        UserWarning: If such a copy has other layers than the module.
    """
    for name, inner in copies(trainer).items():
        theirs, ours = dict(inner.named_parameters()), dict(module.named_parameters())
        if {n: p.shape for n, p in theirs.items()} != {n: p.shape for n, p in ours.items()}:
            rank_zero_warn(
                f"lightning_init: the average of the weights in {name} is of "
                "other layers than the module's: build them in __init__ or configure_model"
            )
            continue
        with torch.no_grad():
            for key, parameter in theirs.items():
                parameter.copy_(ours[key])
