"""One batch of the user's own job, thrown away: what it logs, what it is, what its schedule does."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import lightning.pytorch as pl

from lightning_init.architecture.analyze import analyze
from lightning_init.architecture.params import Architecture
from lightning_init.callbacks.forward import training_forward
from lightning_init.search.isolated import isolated
from lightning_init.search.job import SHORT, Job, interruptible, require_data
from lightning_init.search.marks import validate
from lightning_init.search.parsed import Built
from lightning_init.search.prepared import Prepared

_LENGTHS = ("estimated_stepping_batches", "max_steps", "max_epochs")

Schedule = Literal["", "cut", "compressed"]


@dataclass(frozen=True)
class Look:
    """What one batch of a job shows.

    Attributes:
        metrics: Names of what the module logs in training and validation.
        architecture: The model, traced on the batch.
        schedule: What becomes of the learning-rate schedule in a shorter run: `compressed` where
            the module asks the Trainer for the number of steps, `cut` where its length is fixed,
            `""` where there is none.
        schedulers: Names of the schedulers' classes.
        job_steps: Optimizer steps of the job itself, None if it has no end or none is known.
        loss: Whether a training step gives a loss, which manual optimization need not.
        ready: The data whose `prepare_data` has been run here, as `Prepared` knows it.
    """

    metrics: tuple[str, ...]
    architecture: Architecture
    schedule: Schedule = ""
    schedulers: tuple[str, ...] = ()
    job_steps: int | None = None
    ready: tuple[str, ...] = ()
    loss: bool = True

    def sentence(self, steps: int) -> str:
        """What trials of some steps are, for the first line of output.

        Example:
            >>> look = Look(("val_loss",), Architecture(()), "cut", ("StepLR",), 5000)
            >>> look.sentence(200)
            '200 steps (of your 5000), your schedule (StepLR) cut there'
        """
        several = f"your schedule ({', '.join(dict.fromkeys(self.schedulers))})"
        schedule = {
            "": "no learning-rate schedule",
            "cut": f"{several} cut there",
            "compressed": f"{several} compressed to them",
        }
        if self.job_steps == steps:
            return f"{steps} steps, as many as your job's"
        job = "" if self.job_steps is None else f" (of your {self.job_steps})"
        return f"{steps} steps{job}, {schedule[self.schedule]}"


def look(job: Job) -> Look:
    """Train and validate one batch of a throw-away model.

    Args:
        job: The configuration.

    Returns:
        What was seen. Random states and all that is global are as before.

    Raises:
        ConfigError: If there is no training data.
    """
    limits = job.config.get("trainer.limit_val_batches")
    return look_at(lambda callbacks, short: job.build(0, {}, callbacks, **short), limits)


def look_at(build: Callable[[Sequence[pl.Callback], dict[str, Any]], Built], limits: Any) -> Look:
    """Train and validate one batch of whatever is built, see `look`.

    Args:
        build: `build(callbacks, settings)` makes model, data module and Trainer.
        limits: The user's `limit_val_batches`.
    """
    seen = _Eye()
    settings: dict[str, Any] = {
        **{**SHORT, "min_steps": None, "min_epochs": None},
        "limit_val_batches": limits if limits == 0 else 1,
    }
    with isolated(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, data, trainer = build([seen], settings)
        require_data(model, data)
        prepared = Prepared()
        prepared.take(data, 0)
        with interruptible():
            trainer.fit(model, datamodule=data)
    return replace(seen.found(), ready=tuple(sorted(prepared.ready)))


class _Eye(pl.Callback):
    def __init__(self) -> None:
        self.metrics: dict[str, None] = {}
        self.asked: set[str] = set()
        self.architecture = Architecture(())
        self.schedulers: tuple[str, ...] = ()
        self.steps: int | None = None
        self.loss = True

    def found(self) -> Look:
        schedule: Schedule = "cut" if self.schedulers else ""
        # A short run has fewer steps, but its Trainer is given as many epochs as yours.
        if schedule and self.asked - {"max_epochs"}:
            schedule = "compressed"
        seen = (tuple(self.metrics), self.architecture, schedule, self.schedulers, self.steps)
        return Look(*seen, loss=self.loss)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Listen to what the module asks the Trainer while it makes its optimizers."""
        del stage
        original = pl_module.configure_optimizers

        @functools.wraps(original)
        def configure() -> Any:
            kind = type(trainer)
            trainer.__class__ = _listening(kind, self.asked)
            try:
                return original()
            finally:
                trainer.__class__ = kind

        vars(pl_module)["configure_optimizers"] = configure

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Trace the model on the first batch."""
        del trainer, batch_idx
        try:
            self.architecture = analyze(pl_module, training_forward(pl_module, batch))
        except Exception:  # the step may need what only training provides
            self.architecture = analyze(pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *details: Any
    ) -> None:
        """One batch is enough."""
        del details
        self.loss = pl_module.automatic_optimization or bool(outputs and "loss" in outputs)
        self.schedulers = tuple(type(c.scheduler).__name__ for c in trainer.lr_scheduler_configs)
        self.steps = _job_steps(trainer)
        trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validate one batch, too."""
        self.metrics.update(dict.fromkeys(map(str, trainer.callback_metrics)))
        self.metrics.update(dict.fromkeys(validate(trainer, pl_module, batches=1)))


def _listening(kind: type[pl.Trainer], asked: set[str]) -> type[pl.Trainer]:
    """A kind of Trainer that notes when it is asked how long it trains."""

    def noted(name: str) -> property:
        def get(self: pl.Trainer) -> Any:
            asked.add(name)
            return getattr(kind, name).__get__(self)

        return property(get)

    return type(kind.__name__, (kind,), {name: noted(name) for name in _LENGTHS})


def _job_steps(trainer: pl.Trainer) -> int | None:
    """Optimizer steps until the Trainer's own limits."""
    limits = []
    if trainer.max_steps >= 0:
        limits.append(float(trainer.max_steps))
    epochs = trainer.max_epochs
    if epochs is not None and epochs >= 0:
        batches = trainer.num_training_batches
        if math.isfinite(batches):
            limits.append(epochs * math.ceil(batches / _accumulated(trainer)))
    return int(min(limits)) if limits else None


def _accumulated(trainer: pl.Trainer) -> int:
    return trainer.accumulate_grad_batches if trainer.lightning_module.automatic_optimization else 1
