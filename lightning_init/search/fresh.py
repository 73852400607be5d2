"""Fresh modules like a given one: built again if nothing has touched it since, else copied.

Only a module that is built again has other weights on another seed. Whether that is the same module
is asked of the module: its hyperparameters must name every argument of its constructor, and what
they build must agree in modules, plain attributes, hooks, tensors and in how often each tensor was
written to (a loaded checkpoint, a frozen or trained layer, a changed attribute all differ).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_init.architecture.preserve import keep_rng
from lightning_init.architecture.provenance import checksum
from lightning_init.search.mistakes import ConfigError, one_line

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
# What a Trainer changes, and the hyperparameters as they once were: it is built by today's.
_PASSING = ("_trainer", "_fabric", "_log_hyperparams", "_hparams_name", "_hparams_initial")


class Fresh:
    """Makes modules like a given one.

    Args:
        model: Is only read.

    Attributes:
        why_copied: Why it is copied rather than built again, `""` if it is built.

    Raises:
        ConfigError: If it can be neither built again nor copied.
    """

    def __init__(self, model: pl.LightningModule) -> None:
        self._kind = type(model)
        self._arguments: Mapping[str, Any] = {}
        self._template: pl.LightningModule | None = None
        restore = keep_rng()
        try:
            self.why_copied = self._try(model)
        finally:
            restore()
        if self.why_copied:
            self._template = copied(model)

    def __call__(self) -> pl.LightningModule:
        """A fresh module; built again, its weights are drawn from the global random state."""
        if self._template is not None:
            return copy.deepcopy(self._template)
        return self._kind(**copy.deepcopy(dict(self._arguments)))

    def _try(self, model: pl.LightningModule) -> str:
        given = {k: v for k, v in dict(model.hparams).items() if not k.startswith("_")}
        parameters = list(inspect.signature(self._kind.__init__).parameters.values())[1:]
        loose = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        takes = [p.name for p in parameters if p.kind not in loose]
        if len(takes) < len(parameters) or set(takes) != set(given):
            missing = [name for name in takes if name not in given]
            names = ", ".join(missing) or "something else"
            return f"its hyperparameters do not say how it was built ({names})"
        if not all(_is_plain(value) for value in given.values()):
            return "its hyperparameters hold more than plain values"
        self._arguments = given
        try:
            again = self()
        except Exception as error:
            return f"it cannot be built again ({type(error).__name__}: {one_line(error)})"
        return _difference(model, again)


def _difference(model: nn.Module, again: nn.Module) -> str:
    """What of a module is not as it was built, `""` if all is."""
    mine, theirs = dict(model.named_modules()), dict(again.named_modules())
    if mine.keys() != theirs.keys():
        return "its layers are not those that it was built with"
    for name, module in mine.items():
        where = name or "the module"
        if type(module) is not type(theirs[name]):
            return f"{where} is another layer than it was built with"
        if _hooks(module) != _hooks(theirs[name]):
            return f"{where} has hooks"
        if _attributes(module) != _attributes(theirs[name]):
            return f"attributes of {where} were changed"
    built = dict(_tensors(again))
    own = dict(_tensors(model))
    if own.keys() != built.keys():
        return "its tensors are not those that it was built with"
    for name, tensor in own.items():
        other = built[name]
        if _facts(tensor) != _facts(other):
            return f"{name} was written or changed since it was built"
    return ""


def _facts(tensor: Tensor) -> tuple[object, ...]:
    shape = None if is_lazy(tensor) else tensor.shape
    return shape, tensor.dtype, tensor.device, tensor.requires_grad, tensor._version


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _attributes(module: nn.Module) -> dict[str, object]:
    """Plain attributes as they are, of others the type."""
    found: dict[str, object] = {}
    for name, value in vars(module).items():
        hidden = name in _PASSING or name in ("_parameters", "_buffers", "_modules")
        if hidden or name.endswith("_hooks") or "_hooks_" in name:
            continue
        if inspect.isroutine(value):
            found[name] = getattr(value, "__qualname__", type(value))
        elif _is_plain(value):
            found[name] = repr(value)
        else:
            found[name] = checksum(value) if isinstance(value, Tensor) else type(value)
    return found


def _hooks(module: nn.Module) -> int:
    return sum(len(v) for k, v in vars(module).items() if k.endswith("_hooks") and v)


def _is_plain(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(_is_plain(each) for each in value.values())
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(_is_plain(each) for each in value)
    return isinstance(value, (*_PLAIN, type)) or inspect.isroutine(value)


def copied(model: pl.LightningModule) -> pl.LightningModule:
    """A deep copy, without the Trainer that the module is attached to.

    Raises:
        ConfigError: If it cannot be copied.
    """
    with _detached(model):
        try:
            return copy.deepcopy(model)
        except Exception as error:
            raise ConfigError(
                f"{type(model).__name__} can be neither built again nor copied "
                f"({type(error).__name__}: {one_line(error)}): call self.save_hyperparameters() "
                "in its __init__, or delete the attribute that cannot be copied"
            ) from error


@contextmanager
def _detached(model: pl.LightningModule) -> Iterator[None]:
    """Without its Trainer, which a copy would copy too."""
    names = ("_trainer", "_fabric")
    parts = [part for part in model.modules() if isinstance(part, pl.LightningModule)]
    before = [(part, {name: vars(part).get(name) for name in names}) for part in parts]
    try:
        for part in parts:
            vars(part).update(dict.fromkeys(names))
        yield
    finally:
        for part, values in before:
            vars(part).update(values)
