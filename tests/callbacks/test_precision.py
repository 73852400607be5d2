"""Any precision: the weights are those of float32 rounded once, and what is read is unscaled."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lightning_init import InitCallback
from tests.callbacks import nets
from tests.callbacks.nets import Digits, mlp
from tests.callbacks.watching import (
    Still,
    alone,
    by_name,
    first,
    fp16,
    losses,
    reading,
    watched,
)


def test_bf16_mixed() -> None:
    callback, start = watched(Still(mlp()), precision="bf16-mixed", max_steps=2)
    values, grad = alone(start, first(2))
    assert losses(callback) == pytest.approx(values, rel=0.02)
    _, grad = alone(start, first(2)[1:])
    assert by_name(callback, 1)["net.2.weight"] == pytest.approx(float(grad), rel=0.05)
    assert start.weights["net.0.weight"].dtype == torch.float32


def test_bf16_true_draws_in_float32_and_rounds_once() -> None:
    _, start = watched(Still(mlp()), precision="bf16-true", max_steps=2)
    _, exact = watched(Still(mlp()), max_steps=1)
    rounded = {key: value.bfloat16() for key, value in exact.weights.items()}
    assert nets.same(start.weights, rounded)


def test_double_precision_trains_and_is_read() -> None:
    callback = InitCallback("orthogonal", monitor_steps=3)
    nets.fit(Digits(mlp()), callback, max_steps=3, precision="64-true")
    assert callback.report is not None
    assert callback.report.readings.steps[-1].weights[0].grad_rms > 0


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_and_updates_under_a_gradient_scaler(fused: bool) -> None:
    class Fused(Digits):
        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=1e-3, fused=fused)

    callback, start = watched(Fused(mlp()), plugins=[fp16()], max_steps=3)
    plain, again = watched(Fused(mlp()), max_steps=3)
    assert nets.same(start.weights, again.weights)
    for step in (1, 2):
        scaled, exact = reading(callback, step), reading(plain, step)
        for one, two in zip(scaled.weights, exact.weights, strict=True):
            assert one.grad_rms == pytest.approx(two.grad_rms, rel=0.05)
            assert one.update == pytest.approx(two.update, rel=0.1, nan_ok=True)
        for out, same in zip(scaled.layers, exact.layers, strict=True):
            assert out.grad_rms == pytest.approx(same.grad_rms, rel=0.05)


def test_a_step_that_the_scaler_skips_is_no_update_and_no_finding() -> None:
    callback, _ = watched(Digits(mlp()), plugins=[fp16(2.0**40)], max_steps=3)
    assert callback.report is not None
    for step in (1, 2):
        assert all(math.isnan(weight.update) for weight in reading(callback, step).weights)
    assert callback.report.errors == ()
