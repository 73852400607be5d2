"""Trains a model with one hidden layer beside the user's: same batches, loss and optimizer."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import replace
from functools import wraps
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.optim import Optimizer

from lightning_init.architecture.readings import BaselineReading
from lightning_init.health.overheard import Overhear
from lightning_init.health.report import Report
from lightning_init.health.shallow import MakeOptimizer, NoBaselineError, Twin, with_baseline


class ShallowBaseline(Callback):
    """Trains one hidden layer beside the module; `judged(report)` says which of them is worse.

    `training_step` runs as it always does; what it takes and the loss that it computes are
    overheard. The other model has the same kind of optimizer and the same learning rate at each
    step. The module, its training and the random state are not touched.

    Example:
        >>> ShallowBaseline().reading is None
        True
    """

    def __init__(self) -> None:
        self.blind: tuple[str, ...] = ()
        self._twin: Twin | None = None
        self._heard: Overhear | None = None
        self._step = -1

    @property
    def reading(self) -> BaselineReading | None:
        """Both losses so far; None before the first step, or where nothing could be heard."""
        if self._twin is None or self.blind:
            return None
        found = self._twin.reading()
        return found if found.deep else None

    def judged(self, report: Report) -> Report:
        """The report with both losses, and a finding if the module is worse."""
        if (reading := self.reading) is not None:
            return with_baseline(report, reading)
        return replace(report, blind=(*report.blind, *self.blind))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen to `training_step`."""
        self.blind, self._heard, self._step = (), None, -1
        chosen = trainer.optimizers[0] if trainer.optimizers else None
        self._twin = Twin(pl_module, _like(chosen))
        step = pl_module.training_step

        @wraps(step)
        def overheard(*args: Any, **kwargs: Any) -> Any:
            with Overhear() as self._heard:
                return step(*args, **kwargs)

        pl_module.__dict__["training_step"] = overheard

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Let the other model learn from what was overheard."""
        self._step += 1
        if self._twin is None or self._heard is None or self.blind:
            return
        groups = trainer.optimizers[0].param_groups if trainer.optimizers else []
        lr = float(groups[0]["lr"]) if groups else None
        try:
            self._twin.learn(self._step, self._heard, lr)
        except NoBaselineError as error:
            self.blind = (f"baseline: {error}",)
        self._heard = None

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the module as it was."""
        pl_module.__dict__.pop("training_step", None)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Leave the module as it was."""
        pl_module.__dict__.pop("training_step", None)


def _like(optimizer: Optimizer | None) -> MakeOptimizer:
    """An optimizer of the same class and settings; Adam where that cannot be made."""

    def make(parameters: Iterable[nn.Parameter]) -> Optimizer:
        every = list(parameters)
        wrapped: Any = getattr(optimizer, "optimizer", optimizer)  # LightningOptimizer wraps one
        kind: Any = type(wrapped)
        if optimizer is not None:
            legal = inspect.signature(kind).parameters
            first = optimizer.param_groups[0]
            settings = {key: first[key] for key in optimizer.defaults if key in legal}
            try:
                made: Optimizer = kind(every, **settings)
                return made
            except (TypeError, ValueError):
                pass
        lr = 1e-3 if optimizer is None else float(optimizer.param_groups[0]["lr"])
        return torch.optim.Adam(every, lr=lr)

    return make
