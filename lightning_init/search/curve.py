"""What is seen of a short fit while it runs: its training loss, its learning rate, its health."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_init.callbacks.init import InitCallback
from lightning_init.health.findings import Finding
from lightning_init.search.trial import Report, Trial

_REPORTS = 20  # losses reported per trial
_FATAL_LOSS = 5.0  # times chance: a start that high ends a trial, a lower one may still train


class Curve(pl.Callback):
    """Collects the training loss, reports it now and then, ends an unhealthy trial.

    Args:
        trial: What is tried.
        gate: Watches the health of the fit.
        report: `report(step, loss)` says whether to stop.

    Attributes:
        reason: Why the fit was ended early, `""` if it was not.
        rates: (step, learning rate) at the reports where it has changed.
    """

    def __init__(self, trial: Trial, gate: InitCallback, report: Report) -> None:
        self.trial, self.gate, self.report = trial, gate, report
        self.every = max(1, trial.steps // _REPORTS)
        self.reason = ""
        self.rates: list[tuple[int, float]] = []
        self._losses: list[Tensor] = []

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002
        outputs: Any,
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Keep the loss; every twentieth of the way look at it."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor) and loss.numel() == 1:
            self._losses.append(loss.detach().float() * trainer.accumulate_grad_batches)
        if not self._losses or (len(self._losses) - 1) % self.every:
            return
        self._note_rate(trainer)
        value = float(self._losses[-1])
        bad = fatal(self.gate)
        if self.trial.gated and bad is not None:
            self.reason = f"{bad.detector} at {bad.where}, step {bad.step}: {bad.message}"
        elif math.isfinite(value) and self.report(len(self._losses), value):
            self.reason = "pruned"
        if self.reason:
            trainer.should_stop = True

    def _note_rate(self, trainer: pl.Trainer) -> None:
        if not trainer.optimizers or not trainer.optimizers[0].param_groups:
            return
        rate = float(trainer.optimizers[0].param_groups[0].get("lr", math.nan))
        if math.isfinite(rate) and (not self.rates or self.rates[-1][1] != rate):
            self.rates.append((trainer.global_step, rate))

    @property
    def points(self) -> tuple[tuple[int, float], ...]:
        """(step, loss) of every loss seen, steps from 1."""
        if not self._losses:
            return ()
        return tuple(enumerate(torch.stack(self._losses).tolist(), start=1))

    def end(self) -> float:
        """Mean of the last tenth of the losses, NaN if there are none."""
        last = self._losses[-max(1, len(self._losses) // 10) :]
        values = [float(loss) for loss in last]
        return sum(values) / len(values) if values else math.nan


def fatal(gate: InitCallback) -> Finding | None:
    """The finding that ends a trial, if any: errors, but for a start loss that may still train."""
    for finding in gate.report.errors if gate.report else ():
        if finding.detector != "initial_loss" or not finding.value < _FATAL_LOSS:
            return finding
    return None
