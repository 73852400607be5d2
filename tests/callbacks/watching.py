"""Fits that are watched, what they read, and the same computed alone."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.precision import MixedPrecision

from lightning_init import InitCallback
from tests.callbacks import nets
from tests.callbacks.nets import AtStart, Digits, mlp


def fitted(
    module: pl.LightningModule, callback: InitCallback, **arguments: Any
) -> tuple[InitCallback, AtStart]:
    start = AtStart()
    nets.fit(module, callback, start, **{"max_steps": 1, **arguments})
    return callback, start


def watched(module: Digits, **arguments: Any) -> tuple[InitCallback, AtStart]:
    callback, start = InitCallback("orthogonal", seed=3), AtStart()
    nets.fit(module, callback, start, **{"max_steps": 6, **arguments})
    assert callback.report is not None
    assert nets.hooks(module) == []
    return callback, start


def by_name(callback: InitCallback, step: int) -> dict[str, float]:
    assert callback.report is not None
    (reading,) = [s for s in callback.report.readings.steps if s.step == step]
    return {weight.name: weight.grad_rms for weight in reading.weights}


def losses(callback: InitCallback) -> list[float]:
    assert callback.report is not None
    return [loss for _, loss in sorted(callback.report.readings.loss.items())]


class Still(Digits):
    """Its weights do not move: every batch has the loss and gradient one can compute alone."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def alone(start: AtStart, batches: list[Any]) -> tuple[list[float], torch.Tensor]:
    module = Digits(mlp())
    module.load_state_dict(start.weights)
    values = [module.loss(batch) for batch in batches]
    (grad,) = torch.autograd.grad(sum(values) / len(values), module.net[2].weight)
    return [float(value.detach()) for value in values], (grad**2).mean().sqrt()


def first(count: int) -> list[Any]:
    loader = iter(nets.ordered())
    return [next(loader) for _ in range(count)]


class Scaler(torch.amp.GradScaler):
    """Notes what it multiplied by."""

    def __init__(self, scale: float) -> None:
        super().__init__("cpu", init_scale=scale, growth_interval=2)


def fp16(scale: float = 1024.0) -> MixedPrecision:
    return MixedPrecision("16-mixed", "cpu", Scaler(scale))


def reading(callback: InitCallback, step: int) -> Any:
    assert callback.report is not None
    (found,) = [one for one in callback.report.readings.steps if one.step == step]
    return found
