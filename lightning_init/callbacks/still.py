"""Optimizers and schedulers that a step may ask and tell what it likes: nothing moves.

A `training_step` that is only looked at gets stand-ins for those of the Trainer. What it reaches in
another way (its own ones, `self.trainer.optimizers`) does step, and is put back at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import lightning.pytorch as pl
import torch
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from lightning_init.architecture.state import Undo, keep_state, keep_tensor


class Still:
    """An optimizer or scheduler that answers as the real one and does nothing when it is told to.

    Args:
        real: The real one, None where it cannot be had.

    Example:
        >>> real = torch.optim.SGD([torch.ones(1)], lr=0.1)
        >>> Still(real).step(), Still(real).param_groups[0]["lr"]
        (None, 0.1)
    """

    def __init__(self, real: Any = None) -> None:
        self._real = real
        groups = getattr(real, "param_groups", [{"lr": 0.0, "params": []}])
        self.param_groups: list[dict[str, Any]] = [dict(group) for group in groups]
        self.optimizer = self  # Lightning's wrapper, and a scheduler, name theirs so

    def step(self, closure: object = None, *args: Any, **kwargs: Any) -> None:
        """Call a closure; schedulers are given an epoch or a metric here."""
        if callable(closure):
            closure()

    def toggle_model(self, *args: Any, **kwargs: Any) -> AbstractContextManager[None]:
        """Nothing to switch off."""
        return nullcontext()

    def __getattr__(self, name: str) -> Any:
        known = getattr(self._real, name, None)
        asks = name.startswith("get_") or name == "state_dict"
        return known if known is not None and (asks or not callable(known)) else _nothing


def _nothing(*args: Any, **kwargs: Any) -> None:
    del args, kwargs


def stand_ins(module: pl.LightningModule) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """What `self.optimizers` and `self.lr_schedulers` are replaced by."""

    def found(index: int, nothing: Any) -> Any:
        still = [Still(real) for real in _real(module)[index]]
        return still[0] if len(still) == 1 else still or nothing

    return lambda *_, **__: found(0, []), lambda: found(1, None)


def _real(module: pl.LightningModule) -> tuple[list[Any], list[Any]]:
    """The Trainer's optimizers and schedulers; before they exist, those the module makes."""
    trainer = module._trainer
    strategy: Any = trainer.strategy if trainer is not None else None
    if attached := getattr(strategy, "optimizers", None):
        return list(attached), [config.scheduler for config in strategy.lr_scheduler_configs]
    try:
        made: Any = module.configure_optimizers()
    except Exception:
        return [None], [None]
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], (list, tuple)):
        return list(made[0]), [_scheduler(one) for one in made[1]]
    every = list(made) if isinstance(made, (list, tuple)) else [made]
    both = [one if isinstance(one, Mapping) else {"optimizer": one} for one in every]
    schedulers = [_scheduler(one["lr_scheduler"]) for one in both if one.get("lr_scheduler")]
    return [one.get("optimizer") for one in both], schedulers


def _scheduler(made: Any) -> Any:
    return made.get("scheduler") if isinstance(made, Mapping) else made


@contextmanager
def undone(module: pl.LightningModule) -> Iterator[None]:
    """Put weights and optimizers back after every step that one takes inside of the block."""
    before: list[Undo] = []

    def keep(optimizer: Optimizer, *_: Any) -> None:
        held = [keep_tensor(p) for group in optimizer.param_groups for p in group["params"]]
        before.extend([*keep_state([optimizer], 2**62), *filter(None, held)])

    def put_back(*_: Any) -> None:
        with torch.no_grad():
            while before:
                before.pop()()

    strategy: Any = getattr(module._trainer, "strategy", None)
    configs = getattr(strategy, "lr_scheduler_configs", ())
    schedules = keep_state([config.scheduler for config in configs])
    hooks = [register_optimizer_step_pre_hook(keep), register_optimizer_step_post_hook(put_back)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        put_back()  # of a step that failed
        for restore in schedules:
            restore()
