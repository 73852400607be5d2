"""Trials of a LightningCLI configuration: each is a short fit of a fresh model."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_init.architecture.arguments import unknown
from lightning_init.callbacks.init import InitCallback
from lightning_init.health.findings import Finding
from lightning_init.search.job import SHORT, ConfigError, Job, interruptible, validates
from lightning_init.search.trial import Outcome, Report, Trial
from lightning_init.strategies.apply import fingerprint
from lightning_init.strategies.needs import UnsuitableError
from lightning_init.strategies.spec import InitSpec

_REPORTS = 20  # losses reported per trial
_FATAL_LOSS = 5.0  # times chance: a start that high ends a trial, a lower one may still train
TRAIN_LOSS = "train_loss_end"  # the monitor of a model that logs no validation metric


@dataclass
class JobEvaluate:
    """Trials of a LightningCLI configuration.

    Args:
        config: The resolved configuration, `Job.plain()`.
        monitor: Name of the metric, as the module logs it; `train_loss_end` for the mean training
            loss of the last tenth of the steps.
    """

    config: dict[str, Any]
    monitor: str
    _job: Job | None = field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_job": None}

    def __call__(self, trial: Trial, report: Report) -> Outcome:
        """Fit a fresh model for a few steps and read its metric."""
        if self._job is None:
            self._job = Job(self.config)
        began = time.perf_counter()
        gate = InitCallback.from_spec(
            InitSpec(trial.spec.strategy, trial.spec.params, trial.spec.overrides),
            on_unhealthy="warn",
            verbose=False,
            monitor_steps=min(100, trial.steps),
            loss_steps=trial.steps,
        )
        curve = _Curve(trial, gate, report)
        model, data, trainer = self._job.build(
            trial.seed,
            trial.config,
            [gate, curve],
            **SHORT,
            max_steps=trial.steps,
        )
        with interruptible():
            try:
                trainer.fit(model, datamodule=data)
            except UnsuitableError as error:  # no crash: the same again would end the same
                return Outcome(None, (), str(error), time.perf_counter() - began)
            reason = curve.reason
            metric = None if reason else self._metric(trainer, model, data, curve)
        if metric is not None and not math.isfinite(metric):
            reason, metric = f"{self.monitor} is {metric}", None
        info = {
            "init_fingerprint": gate.fingerprint,
            "final_fingerprint": fingerprint(model),
            "threads": torch.get_num_threads(),
            "steps": trainer.global_step,
            "findings": [f.to_dict() for f in gate.report.findings] if gate.report else [],
        }
        return Outcome(metric, curve.points, reason, time.perf_counter() - began, info)

    def _metric(
        self,
        trainer: pl.Trainer,
        model: pl.LightningModule,
        data: pl.LightningDataModule | None,
        curve: _Curve,
    ) -> float:
        if self.monitor == TRAIN_LOSS:
            return curve.end()
        metrics: dict[str, Any] = dict(trainer.callback_metrics)
        if validates(model, data):
            for found in trainer.validate(model, datamodule=data, verbose=False):
                metrics.update(found)
        if self.monitor not in metrics:
            raise ConfigError(
                f"--monitor: {unknown('metric', self.monitor, metrics)} (logged by the module)"
            )
        return float(metrics[self.monitor])


class _Curve(pl.Callback):
    """Collects the training loss, reports it now and then, ends an unhealthy trial."""

    def __init__(self, trial: Trial, gate: InitCallback, report: Report) -> None:
        self.trial, self.gate, self.report = trial, gate, report
        self.every = max(1, trial.steps // _REPORTS)
        self.reason = ""
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
        value = float(self._losses[-1])
        bad = fatal(self.gate)
        if self.trial.gated and bad is not None:
            self.reason = f"{bad.detector} at {bad.where}, step {bad.step}: {bad.message}"
        elif math.isfinite(value) and self.report(len(self._losses), value):
            self.reason = "pruned"
        if self.reason:
            trainer.should_stop = True

    @property
    def points(self) -> tuple[tuple[int, float], ...]:
        """(step, loss) of every loss seen, steps from 1."""
        if not self._losses:
            return ()
        return tuple(enumerate(torch.stack(self._losses).tolist(), start=1))

    def end(self) -> float:
        """Mean of the last tenth of the losses."""
        values = [loss for _, loss in self.points]
        last = values[-max(1, len(values) // 10) :]
        return sum(last) / len(last) if last else math.nan


def fatal(gate: InitCallback) -> Finding | None:
    """The finding that ends a trial, if any: errors, but for a start loss that may still train."""
    for finding in gate.report.errors if gate.report else ():
        if finding.detector != "initial_loss" or not finding.value < _FATAL_LOSS:
            return finding
    return None
