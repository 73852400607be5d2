"""Readings in the Trainer's loggers: curves, histograms and the verdict, as far as each takes them.

Every logger is used by its own interface. They are called directly: what a module logs before
`log_every_n_steps` is lost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_init.architecture.readings import StepReading
from lightning_init.health.report import Report

NAME = "lightning_init"
_BINS = 30
# Tag -> its title in the charts that TensorBoard opens with, one curve per layer or tensor.
CHARTS = {
    "outputs": {"std of each output": "output_std", "dead units": "dead", "saturated": "saturated"},
    "gradients": {"of each output (rms)": "output_grad", "of each tensor (rms)": "weight_grad"},
    "updates": {"update over weight": "update", "std of each weight": "weight_std"},
    "attention": {"entropy, 1 is uniform": "attention_entropy"},
}


class Board:
    """What a fit writes to its loggers; the layout once, a verdict when it changes."""

    def __init__(self) -> None:
        self._laid_out = False
        self._verdict = ""

    def wants(self, trainer: pl.Trainer) -> bool:
        """Whether any logger takes histograms, on the process that writes."""
        return trainer.is_global_zero and any(
            _takes(each, "add_histogram") or _is(each, "WandbLogger") for each in trainer.loggers
        )

    def log_step(
        self, trainer: pl.Trainer, reading: StepReading, samples: Mapping[str, Tensor]
    ) -> None:
        """Write one step's readings.

        Args:
            trainer: Its loggers are used, with its own count of steps.
            reading: The step.
            samples: Tag -> values of a histogram.
        """
        known = {key: value for key, value in scalars(reading).items() if math.isfinite(value)}
        step = steps_of(trainer, reading.step)
        for logger in trainer.loggers:
            mark = logger.group_separator
            logger.log_metrics(
                {f"{NAME}{mark}{key.replace('/', mark)}": value for key, value in known.items()},
                step=step,
            )
        if not trainer.is_global_zero or not trainer.loggers:
            return
        values = {tag: one.detach().float().cpu() for tag, one in samples.items() if one.numel()}
        values = {tag: one for tag, one in values.items() if bool(torch.isfinite(one).all())}
        loggers: list[Any] = list(trainer.loggers)
        for logger in loggers:
            if _takes(logger, "add_custom_scalars") and not self._laid_out:
                logger.experiment.add_custom_scalars(layout(reading))
            if _takes(logger, "add_histogram"):
                for tag, one in values.items():
                    _log_histogram(logger.experiment, tag, one, step)
            elif _is(logger, "WandbLogger") and values:
                _log_to_wandb(logger, values, step)
        self._laid_out = True

    def log_verdict(self, trainer: pl.Trainer, report: Report) -> None:
        """Write what the report says, as text, where it has changed."""
        text = "\n".join([*report.blind, *map(str, report.attempts), report.verdict()])
        if not trainer.is_global_zero or text == self._verdict:
            return
        self._verdict = text
        step = steps_of(trainer, max(report.readings.loss, default=0))
        loggers: list[Any] = list(trainer.loggers)
        for logger in loggers:
            if _takes(logger, "add_text"):  # which is Markdown: indented lines stay as they are
                indented = "\n".join(f"    {line}" for line in text.splitlines())
                logger.experiment.add_text(f"{NAME}/verdict", indented, step)
            elif _is(logger, "WandbLogger"):
                logger.log_text(f"{NAME}/verdict", ["verdict"], [[text]], step=step)
            elif _is(logger, "MLFlowLogger"):
                logger.experiment.log_text(logger.run_id, text, f"{NAME}/verdict.txt")
                logger.experiment.log_dict(logger.run_id, report.to_dict(), f"{NAME}/health.json")


def scalars(reading: StepReading) -> dict[str, float]:
    """The curves of one step: `kind/layer` -> value; some are not numbers.

    Example:
        >>> scalars(StepReading(0))
        {}
    """
    values: dict[str, float] = {}
    for layer in reading.layers:
        values[f"output_std/{layer.name}"] = layer.std
        values[f"output_grad/{layer.name}"] = layer.grad_rms
        if layer.after is not None:
            values[f"dead/{layer.name}"] = layer.after.dead
            values[f"saturated/{layer.name}"] = layer.after.saturated
    for weight in reading.weights:
        values[f"weight_std/{weight.name}"] = weight.std
        values[f"weight_grad/{weight.name}"] = weight.grad_rms
        values[f"update/{weight.name}"] = weight.update
    for attention in reading.attentions:
        values[f"attention_entropy/{attention.name}"] = attention.entropy
    return values


def layout(first: StepReading) -> dict[str, dict[str, list[Any]]]:
    """TensorBoard's custom scalars: one chart per kind of reading, one curve per layer.

    Args:
        first: The first reading; what it does not have gets no chart.

    Example:
        >>> layout(StepReading(0))["lightning_init: updates"]
        {'update over weight': ['Multiline', ['lightning_init/update/.*']]}
    """
    kinds = {key.partition("/")[0] for key, value in scalars(first).items() if math.isfinite(value)}
    kinds.add("update")  # there is none before the first step
    found = {
        f"{NAME}: {group}": {
            title: ["Multiline", [f"{NAME}/{kind}/.*"]]
            for title, kind in charts.items()
            if kind in kinds
        }
        for group, charts in CHARTS.items()
    }
    return {group: charts for group, charts in found.items() if charts}


def steps_of(trainer: pl.Trainer, batch: int) -> int:
    """The step at which Lightning logs the current batch: updates, not batches."""
    loop = getattr(trainer.fit_loop, "epoch_loop", None)
    return int(getattr(loop, "_batches_that_stepped", batch))


def _log_histogram(experiment: Any, tag: str, values: Tensor, step: int) -> None:
    """Counted here: TensorBoard's own counting into a thousand bins takes three times as long."""
    if not _has(experiment, "add_histogram_raw"):
        experiment.add_histogram(tag, values, step)
        return
    counts, edges = torch.histogram(values.flatten(), _BINS)
    total, squares = float(values.sum()), float(values.square().sum())
    limits = edges.tolist()
    experiment.add_histogram_raw(
        tag,
        limits[0],
        limits[-1],
        values.numel(),
        total,
        squares,
        limits[1:],
        counts.tolist(),
        step,
    )


def _log_to_wandb(logger: Any, values: Mapping[str, Tensor], step: int) -> None:
    import wandb  # type: ignore[import-not-found, unused-ignore]

    data = {tag: wandb.Histogram(one.tolist()) for tag, one in values.items()}
    # As its log_metrics does: W&B's own count of steps goes on with every call.
    logger.experiment.log({**data, "trainer/global_step": step})


def _takes(logger: Any, method: str) -> bool:
    return _has(getattr(logger, "experiment", None), method)


def _has(experiment: Any, method: str) -> bool:
    return callable(getattr(type(experiment), method, None))


def _is(logger: Any, name: str) -> bool:
    return any(kind.__name__ == name for kind in type(logger).__mro__)
