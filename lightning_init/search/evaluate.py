"""Trials of a LightningCLI configuration: each is a short fit of a fresh model."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_init.search.fit import Made, short_fit
from lightning_init.search.isolated import isolated
from lightning_init.search.job import Job
from lightning_init.search.objectives import Objective
from lightning_init.search.own_cli import Recipe
from lightning_init.search.prepared import Prepared
from lightning_init.search.readout import TRAIN_LOSS
from lightning_init.search.trial import Outcome, Report, Trial

__all__ = ["TRAIN_LOSS", "JobEvaluate"]


@dataclass
class JobEvaluate:
    """Trials of a LightningCLI configuration.

    Args:
        config: The resolved configuration, `Job.plain()`.
        objectives: What to read off each trial; the first is the metric. The monitor
            `train_loss_end` is the mean training loss of the last tenth of the steps.
        cli: The user's own LightningCLI: `module:function`, or how it is made; `""` for none.
        ready: Data whose `prepare_data` has been run, `Look.ready`: it runs once in all.
    """

    config: dict[str, Any]
    objectives: tuple[Objective, ...]
    cli: str | Recipe = ""
    ready: tuple[str, ...] = ()
    _job: Job | None = field(default=None, repr=False, compare=False)
    _prepared: Prepared | None = field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_job": None, "_prepared": None}

    def __call__(self, trial: Trial, report: Report) -> Outcome:
        """Fit a fresh model for a few steps and read its objectives."""
        job = self._job = self._job or Job(self.config, cli=self.cli)
        prepared = self._prepared = self._prepared or Prepared(self.ready)

        def build(seed: int, callbacks: Sequence[pl.Callback], settings: Mapping[str, Any]) -> Made:
            made = job.build(seed, trial.config, callbacks, **settings)
            prepared.take(made[1], seed)
            return made

        with isolated():
            try:
                return short_fit(build, trial, report, self.objectives)
            except torch.OutOfMemoryError as error:
                # The frames hold model and optimizer: the next trial needs their memory.
                traceback.clear_frames(error.__traceback__)
                text = str(error)
            finally:
                prepared.settle()
                _free()
        raise torch.OutOfMemoryError(text)


def _free() -> None:
    """Give a device's memory back; a Trainer and its loops refer to each other."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        gc.collect()
        torch.cuda.empty_cache()
