"""Objectives and facts, read off a fit: which steps they need, and what they come to."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_init.architecture.arguments import unknown
from lightning_init.architecture.params import Architecture
from lightning_init.callbacks.init import InitCallback
from lightning_init.search.marks import Metrics, validate
from lightning_init.search.measures import Distance, pruned
from lightning_init.search.mistakes import ConfigError, one_line
from lightning_init.search.objectives import TRAIN_LOSS as TRAIN_LOSS, Objective
from lightning_init.search.trial import Trial

_AREA, _STEPS_TO = 10, 20  # marks over the steps

Found = Sequence[tuple[int, Metrics]]


class Readout(pl.Callback):
    """Reads what the objectives of a trial need; the metrics on the way come from `Marks`.

    Args:
        trial: What is tried.
        objectives: What is read.
        gate: Initializes the model; it knows what its parameters are.

    Attributes:
        info: Facts for `Outcome.info`, after the fit.
        together: Metrics of ensembles by their size, for the caller to put in.
    """

    def __init__(self, trial: Trial, objectives: Sequence[Objective], gate: InitCallback) -> None:
        self._trial, self._objectives, self._gate = trial, tuple(objectives), gate
        self._distance: Distance | None = None
        self._training: Metrics = {}
        self._pruned: dict[float, Metrics] = {}
        self.info: dict[str, Any] = {}
        self.together: dict[int, Mapping[str, float]] = {}

    @property
    def steps(self) -> set[int]:
        """Where metrics are wanted before the end."""
        last, found = self._trial.steps, set(self._trial.marks)
        for objective in self._objectives:
            count = {"area": _AREA, "steps_to": _STEPS_TO}.get(objective.kind, 0)
            found |= set(_even(last, count))
        return {step for step in found if 0 < step < last}

    def on_train_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Remember where the weights start, once they are initialized."""
        if self._trial.measured and self._distance is None and trainer.global_step == 0:
            self._distance = Distance(pl_module)

    def end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Read what needs the model after its last step."""
        kinds = {objective.kind for objective in self._objectives}
        if self._distance is not None:
            self.info["distance"] = self._distance(module)
        if "gap" in kinds:
            self._training = _on_training_data(trainer, module)
        elif self._trial.measured:
            try:
                self._training = validate(trainer, module, on_training_data=True)
            except Exception:  # validation_step may want batches of another kind: no gap then
                self._training = {}
        for objective in self._objectives:
            if objective.kind == "pruned" and objective.value is not None:
                plan = self._gate.plan
                known = None if plan is None else Architecture(tuple(e.info for e in plan))
                with pruned(module, objective.value, known):
                    self._pruned[objective.value] = validate(trainer, module)

    def values(self, found: Found) -> tuple[list[float], str]:
        """Every objective in order; none and a reason if one of them has no finite value."""
        first, last = self._objectives[0], found[-1][1]
        alike = _of_one_loader(first.monitor, self._training)
        if self._trial.measured and alike in self._training and first.monitor in last:
            self.info["gap"] = _gap(first, last[first.monitor], self._training[alike])
        values: list[float] = []
        for objective in self._objectives:
            value, reason = self._value(objective, found)
            if not reason and not math.isfinite(value):
                reason = f"{objective.name} is {value}"
            if reason:
                return [], reason
            values.append(value)
        return values, ""

    def readings(self, found: Found) -> tuple[tuple[int, float], ...]:
        """(step, first monitored metric) on the way and at the end, where finite."""
        return tuple(point for point in _course(self._objectives[0], found) if _finite(point))

    def _value(self, objective: Objective, found: Found) -> tuple[float, str]:
        name, last = objective.monitor, found[-1][1]
        course = _course(objective, found)
        match objective.kind:
            case "last":
                return _metric(name, last), ""
            case "area":
                _metric(name, last)
                wanted = {*_even(self._trial.steps, _AREA)}
                values = [value for step, value in course[:-1] if step in wanted]
                values.append(course[-1][1])
                return sum(values) / len(values), ""
            case "steps_to":
                _metric(name, last)
                return self._steps_to(objective, course)
            case "gap":
                alike = _of_one_loader(name, self._training)
                return _gap(objective, _metric(name, last), _metric(alike, self._training)), ""
            case "pruned":
                return _metric(name, self._pruned[objective.value or 0.0]), ""
            case "ensemble":
                return _metric(name, self.together[int(objective.value or 0)]), ""

    def _steps_to(
        self, objective: Objective, course: Sequence[tuple[int, float]]
    ) -> tuple[float, str]:
        target = 0.0 if objective.value is None else objective.value
        sign = 1 if objective.mode == "max" else -1
        for step, value in course:
            if sign * value >= sign * target:
                return float(step), ""
        values = [value for point in course if _finite(point) for value in point[1:]]
        best = (max if sign > 0 else min)(values, default=math.nan)
        where = f"{objective.monitor} {target:g}"
        return math.nan, f"{where} not reached in {self._trial.steps} steps, best {best:.3g}"


def _on_training_data(trainer: pl.Trainer, module: pl.LightningModule) -> Metrics:
    try:
        return validate(trainer, module, on_training_data=True)
    except (ConfigError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ConfigError(
            f"objective gap: validation_step fails on batches of the training data "
            f"({type(error).__name__}: {one_line(error)}); it must take both alike"
        ) from error


def _of_one_loader(name: str, metrics: Metrics) -> str:
    """What is logged for one of several validation loaders has a plain name on training data."""
    return name if name in metrics else re.sub(r"/dataloader_idx_\d+$", "", name)


def _course(objective: Objective, found: Found) -> list[tuple[int, float]]:
    name = objective.monitor
    return [(step, metrics[name]) for step, metrics in found if name in metrics]


def _metric(name: str, metrics: Mapping[str, float]) -> float:
    if name not in metrics:
        known = [known for known in metrics if known != TRAIN_LOSS]
        raise ConfigError(f"--monitor: {unknown('metric', name, known)} (logged by the module)")
    return metrics[name]


def _gap(objective: Objective, validation: float, training: float) -> float:
    """How much better the metric is on training data: positive where it is."""
    return validation - training if objective.mode == "min" else training - validation


def _even(last: int, count: int) -> list[int]:
    """Evenly spaced steps, the last among them."""
    return [round(last * index / count) for index in range(1, count + 1)]


def _finite(point: tuple[int, float]) -> bool:
    return math.isfinite(point[1])
