"""Keys of a space as attributes and hyperparameters of a model, as Lightning's finders look for them.

What lies in a list or a mapping is named by its place: `rates.0`, `optimizer.lr`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.parsing import (
    lightning_getattr,
    lightning_hasattr,
    lightning_setattr,
)

from lightning_init.architecture.arguments import unknown
from lightning_init.search.axis import Axis, around
from lightning_init.search.keys import every_item, unknown_key
from lightning_init.search.mistakes import ConfigError

_RATES = ("lr", "learning_rate")  # as Lightning's learning-rate finder looks for them


def check_keys(model: pl.LightningModule, keys: Iterable[str], what: str = "space") -> None:
    """Make sure that a model has what is to be set.

    Raises:
        ConfigError: If it has not; the closest that it has.
    """
    for key in keys:
        head = key.partition(".")[0]
        if not lightning_hasattr(model, head):
            known = [name for name in (*vars(model), *model.hparams) if name[0] != "_"]
            raise ConfigError(f"{what}: {unknown('attribute of the model', key, known)}")
        if head != key:
            held = {head: lightning_getattr(model, head)}
            if key not in dict(every_item(held)):
                said = unknown_key(key, held).replace("configuration key", "attribute of the model")
                raise ConfigError(f"{what}: {said}")


def value_of(model: pl.LightningModule, key: str) -> Any:
    """What a key of the model is now."""
    head, *path = key.split(".")
    value: Any = lightning_getattr(model, head)
    for part in path:
        value = value[int(part)] if isinstance(value, list) else value[part]
    return value


def put(model: pl.LightningModule, key: str, value: Any) -> None:
    """Set a key of a model; a list or a mapping that it lies in is copied first."""
    head, *path = key.split(".")
    if not path:
        lightning_setattr(model, head, value)
        return
    whole = copy.deepcopy(lightning_getattr(model, head))
    *above, last = path
    inner: Any = whole
    for part in above:
        inner = inner[int(part)] if isinstance(inner, list) else inner[part]
    inner[int(last) if isinstance(inner, list) else last] = value
    lightning_setattr(model, head, whole)


def rate_name(model: pl.LightningModule, name: str) -> str:
    """The key of the learning rate: the one that is named, else a usual one, `""` if there is none.

    Raises:
        ConfigError: If the model has not what is named.
    """
    if name:
        check_keys(model, [name], "lr_name")
        return name
    return next((each for each in _RATES if lightning_hasattr(model, each)), "")


def rate_axes(model: pl.LightningModule, name: str) -> dict[str, Axis]:
    """The axis of the learning rate, around what it is now; none if it is no number above 0."""
    rate = value_of(model, name) if name else None
    if not isinstance(rate, (int, float)) or isinstance(rate, bool) or rate <= 0:
        return {}
    return {name: around(float(rate))}
