"""What the arguments of an InitCallback mean."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from lightning_init.strategies.spec import InitSpec


def spec_of(
    strategy: Any, params: Mapping[str, Any] | None, overrides: Mapping[str, Any] | None, seed: Any
) -> InitSpec | None:
    """The spec of an InitCallback's arguments, None for a strategy that is not a name or a spec.

    Raises:
        ValueError: If an argument is not legal.
    """
    if isinstance(strategy, str):
        return InitSpec(strategy, params or {}, overrides or {}, seed)
    if params or overrides:
        raise ValueError(
            "params and overrides go with a strategy's name; put them into the InitSpec instead"
        )
    if isinstance(strategy, InitSpec):
        if seed is None:
            return strategy
        return InitSpec(strategy.strategy, strategy.params, strategy.overrides, seed)
    InitSpec(seed=seed)  # a seed is checked alike for all kinds of strategies
    return None


def check_count(name: str, value: object) -> int:
    """A number of things, if it is one.

    Raises:
        ValueError: Unless it is a whole number from 0.

    Example:
        >>> check_count("steps", 3)
        3
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"`{name} >= 0` must hold, but got {name}={value!r}")
    return value


# What a run that starts again does not take over from the one before: it has its own.
_OWN = ("self", "strategy", "params", "overrides", "on_unhealthy", "ladder")


def changed(kind: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that are not the default, as plain data for a file, but for those of the spec.

    Args:
        kind: What is called.
        given: Its arguments by name.

    Example:
        >>> changed(lambda scope="all", loss_steps=9: None, {"scope": "all", "loss_steps": 3})
        {'loss_steps': 3}
    """
    defaults = inspect.signature(kind).parameters
    return {
        name: _plain(value)
        for name, value in given.items()
        if name in defaults and name not in _OWN and value != defaults[name].default
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple, set)) else value


def callbacks_of(trainer: pl.Trainer) -> list[Any]:
    """A Trainer's callbacks in their order; Lightning's stubs do not know the attribute."""
    return list(trainer.callbacks)  # type: ignore[attr-defined]
