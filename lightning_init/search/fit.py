"""One short fit of a fresh model: what a trial is, whoever brings model, data and Trainer.

A fit reports its training loss about twenty times, ends where it is told to or where its start is
not healthy, and is read off at its end. It trains as it would without being watched: weights, data
order and random state are those of a plain `Trainer.fit`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_init.architecture.arguments import unknown
from lightning_init.callbacks.init import InitCallback
from lightning_init.search.curve import Curve
from lightning_init.search.job import SHORT, ConfigError, interruptible, validates
from lightning_init.search.objectives import Objective
from lightning_init.search.trial import Outcome, Report, Trial
from lightning_init.strategies.apply import fingerprint
from lightning_init.strategies.needs import UnsuitableError
from lightning_init.strategies.spec import InitSpec

TRAIN_LOSS = "train_loss_end"  # the monitor of a model that logs no validation metric

Made = tuple[pl.LightningModule, pl.LightningDataModule | None, pl.Trainer]
Build = Callable[[int, Sequence[pl.Callback], Mapping[str, Any]], Made]


def short_fit(
    build: Build, trial: Trial, report: Report, objectives: Sequence[Objective]
) -> Outcome:
    """Fit a fresh model for a few steps and read its objectives.

    Args:
        build: `build(seed, callbacks, settings)` seeds everything and makes model, data module
            and Trainer, with these callbacks last and these Trainer arguments.
        trial: What to try; `build` knows its configuration.
        report: `report(step, training loss)` says whether to stop.
        objectives: What to read; the first is `Outcome.metric`.

    Returns:
        The outcome; one without a metric has a reason.

    Raises:
        ConfigError: If a monitored metric is not logged.
    """
    began = time.perf_counter()
    gate = InitCallback.from_spec(
        InitSpec(trial.spec.strategy, trial.spec.params, trial.spec.overrides),
        on_unhealthy="warn",
        verbose=False,
        monitor_steps=min(100, trial.steps),
        loss_steps=trial.steps,
    )
    curve = Curve(trial, gate, report)
    settings = {**SHORT, "max_steps": trial.steps}
    model, data, trainer = build(trial.seed, [gate, curve], settings)
    with interruptible():
        try:
            trainer.fit(model, datamodule=data)
        except UnsuitableError as error:  # no crash: the same again would end the same
            return Outcome(None, (), str(error), time.perf_counter() - began)
        reason = curve.reason
        metric = None if reason else _metric(objectives[0].monitor, trainer, model, data, curve)
    info = {
        "init_fingerprint": gate.fingerprint,
        "final_fingerprint": fingerprint(model),
        "threads": torch.get_num_threads(),
        "steps": trainer.global_step,
        "findings": [f.to_dict() for f in gate.report.findings] if gate.report else [],
        "lr": [list(point) for point in curve.rates],
        "calibration": _calibration(gate),
    }
    outcome = Outcome(metric, curve.points, reason, time.perf_counter() - began, info)
    if metric is not None and outcome.metric is None:
        return Outcome(
            *(None, curve.points, f"{objectives[0].monitor} is {metric}"),
            *(time.perf_counter() - began, info),
        )
    return outcome


def _metric(
    monitor: str,
    trainer: pl.Trainer,
    model: pl.LightningModule,
    data: pl.LightningDataModule | None,
    curve: Curve,
) -> float:
    if monitor == TRAIN_LOSS:
        return curve.end()
    metrics: dict[str, Any] = dict(trainer.callback_metrics)
    if validates(model, data):
        for found in trainer.validate(model, datamodule=data, verbose=False):
            metrics.update(found)
    if monitor not in metrics:
        raise ConfigError(
            f"--monitor: {unknown('metric', monitor, metrics)} (logged by the module)"
        )
    return float(metrics[monitor])


def _calibration(gate: InitCallback) -> str:
    """What a data-dependent scheme took back, in words; `""` if its result stands."""
    found = gate.plan.calibrations if gate.plan is not None else ()
    return "; ".join(f"{one.scheme} taken back: {one.why}" for one in found if not one.accepted)
