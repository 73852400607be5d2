"""Any precision: the weights are those of float32 rounded once, and what is read is unscaled."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from lightning_init import InitCallback
from lightning_init.callbacks.watch import small_eps
from tests.callbacks import nets
from tests.callbacks.nets import AtStart, Digits, mlp
from tests.callbacks.watching import (
    Still,
    alone,
    by_name,
    first,
    fitted,
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


TRUE = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}
MADE = (lambda: Digits(mlp()), nets.BuiltInConfigureModel, nets.BuiltInThreePlaces)


@pytest.mark.case(26)
@pytest.mark.parametrize("precision", TRUE)
@pytest.mark.parametrize("make", MADE)
def test_any_true_precision_draws_in_float32_and_rounds_once(
    make: Callable[[], Digits], precision: str
) -> None:
    nets.fit(make(), exact := InitCallback("orthogonal", seed=3), at := AtStart(), max_steps=1)
    callback, start = InitCallback("orthogonal", seed=3), AtStart()
    nets.fit(make(), callback, start, max_steps=1, precision=precision)
    rounded = {key: value.to(TRUE[precision]) for key, value in at.weights.items()}
    assert nets.same(start.weights, rounded)
    assert callback.plan is not None
    assert exact.plan is not None
    assert callback.plan.to_dict() == exact.plan.to_dict()
    assert torch.get_default_dtype() is torch.float32


@pytest.mark.case(26)
@pytest.mark.parametrize("precision", TRUE)
@pytest.mark.parametrize("make", MADE[:2])
def test_a_calibration_sees_a_batch_in_the_precision_of_the_model(
    make: Callable[[], Digits], precision: str
) -> None:
    _, at = fitted(make(), InitCallback("lsuv", seed=3))
    callback, start = fitted(make(), InitCallback("lsuv", seed=3), precision=precision)
    assert callback.plan is not None
    assert callback.plan.traced
    assert "not calibrated" not in str(callback.plan.calibrations)
    step = torch.finfo(TRUE[precision]).eps  # each scaling of a rounded weight rounds anew
    for key, value in at.weights.items():
        far = (start.weights[key].double() - value.double()).norm() / (value.norm() + 1e-9)
        assert far < max(step, 1e-7)


@pytest.mark.case(26)
@pytest.mark.parametrize("precision", TRUE)
def test_what_the_trainer_has_cast_is_still_what_was_drawn(precision: str) -> None:
    """So the first batch of a stream calibrates it, and a rescue may draw it anew."""
    stream = DataLoader(nets.Stream(), 32)
    module = Digits(mlp())
    callback, start = fitted(
        module, InitCallback("lsuv", seed=3), loader=stream, precision=precision
    )
    assert callback.plan is not None
    assert callback.plan.traced
    x, _ = first(1)[0]
    out = F.linear(x, start.weights["net.0.weight"].float(), start.weights["net.0.bias"].float())
    assert float(out.var()) == pytest.approx(1, rel=0.03)
    callback = InitCallback(
        "normal", {"std": 1e-3}, seed=3, on_unhealthy="rescue", ladder=["orthogonal"]
    )
    _, start = fitted(Digits(nets.sick(12)), callback, precision=precision)
    _, drawn = fitted(Digits(nets.sick(12)), InitCallback("orthogonal", seed=3))
    rounded = {key: value.to(TRUE[precision]) for key, value in drawn.weights.items()}
    assert nets.same(start.weights, rounded)


@pytest.mark.case(27)
@pytest.mark.parametrize("precision", ["32-true", *TRUE])
@pytest.mark.parametrize("empty", [None, 0.0, math.nan, 6e4, 3e-40])
def test_a_module_that_the_trainer_made(precision: str, empty: float | None) -> None:
    """Memory that nobody wrote may hold anything; all of it is drawn, and said to be."""
    callback, start = InitCallback("orthogonal", seed=3), AtStart()
    trainer = nets.trainer(callback, start, max_steps=1, precision=precision)
    with trainer.init_module(empty_init=empty is not None):
        module = Digits(nets.noisy())
    if empty is not None:
        unwritten = [parameter for parameter in module.parameters() if not parameter._version]
        assert len(unwritten) == 4
        for parameter in unwritten:
            parameter.data.fill_(empty)  # which that counter does not see
    trainer.fit(module, nets.ordered())
    _, at = fitted(Digits(nets.noisy()), InitCallback("orthogonal", seed=3))
    dtype = TRUE.get(precision, torch.float32)
    assert nets.same(start.weights, {key: value.to(dtype) for key, value in at.weights.items()})
    assert callback.plan is not None
    assert [e.info.name for e in callback.plan if e.written] == list(at.weights)
    assert callback.report is not None
    assert callback.report.errors == ()


@pytest.mark.case(26)
def test_double_precision_trains_and_is_read() -> None:
    callback = InitCallback("orthogonal", monitor_steps=3)
    nets.fit(Digits(mlp()), callback, max_steps=3, precision="64-true")
    assert callback.report is not None
    assert callback.report.readings.steps[-1].weights[0].grad_rms > 0


@pytest.mark.case(28, 29)
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


@pytest.mark.case(28)
def test_a_step_that_the_scaler_skips_is_no_update_and_no_finding() -> None:
    callback, _ = watched(Digits(mlp()), plugins=[fp16(2.0**40)], max_steps=3)
    assert callback.report is not None
    for step in (1, 2):
        assert all(math.isnan(weight.update) for weight in reading(callback, step).weights)
    assert callback.report.errors == ()


@pytest.mark.case(28)
def test_losses_and_every_number_of_a_scaled_run_are_those_of_an_unscaled_one() -> None:
    callback, _ = watched(Still(mlp()), plugins=[fp16(2.0**12)], max_steps=4)
    plain, start = watched(Still(mlp()), max_steps=4)
    assert losses(callback) == pytest.approx(alone(start, first(4))[0], rel=0.01)
    assert callback.report is not None
    assert plain.report is not None
    both = zip(callback.report.readings.steps, plain.report.readings.steps, strict=True)
    for one, two in both:
        for scaled, exact in zip(one.weights, two.weights, strict=True):
            assert scaled.grad_rms == pytest.approx(exact.grad_rms, rel=0.02)
            assert scaled.twins == pytest.approx(exact.twins, nan_ok=True)


@pytest.mark.case(28)
def test_one_step_whose_gradients_overflow() -> None:
    class Overflows(Digits):
        def on_after_backward(self) -> None:
            if self.trainer.global_step == 2 and not self.done:
                self.done = True
                assert self.net[2].weight.grad is not None
                self.net[2].weight.grad[0, 0] = torch.inf

        done = False

    module = Overflows(mlp())
    callback, _ = watched(module, plugins=[fp16(64.0)], max_steps=6)
    assert module.done
    assert callback.report is not None
    assert callback.report.findings == ()
    moved = {
        step.step: [weight.update for weight in step.weights if len(weight.shape) > 1]
        for step in callback.report.readings.steps
    }
    assert all(math.isnan(update) for update in moved[2])
    assert all(update > 0 for step in (1, 5) for update in moved[step])


@pytest.mark.case(27)
@pytest.mark.parametrize("how", ["assigned", "copied"])
def test_weights_that_were_written_zero_times_but_hold_something_are_kept(how: str) -> None:
    """A module's own init counts as a write; a copy and an assigned checkpoint do not."""
    trained = Digits(mlp())
    nets.fit(trained, max_steps=30)
    with torch.no_grad():
        trained.net[4].weight.zero_()
    if how == "assigned":
        module = Digits(mlp())
        read = {key: value.clone() for key, value in trained.state_dict().items()}
        module.load_state_dict(read, assign=True)
    else:
        module = copy.deepcopy(trained)
        module.__dict__.pop("_lightning_init", None)
    assert all(parameter._version == 0 for parameter in module.parameters())
    _, start = fitted(module, InitCallback("orthogonal", seed=3, verbose=False))
    for name in ("net.0.weight", "net.2.weight", "net.2.bias"):
        assert torch.equal(start.weights[name], trained.state_dict()[name])


class WithEps(Digits):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3, eps=self.eps)


@pytest.mark.filterwarnings("ignore::lightning_init.callbacks.actions.UnhealthyWarning")
@pytest.mark.parametrize(("eps", "enough"), [(1e-8, False), (1e-4, True)])
def test_an_eps_too_small_for_float16_is_named(eps: float, enough: bool) -> None:
    module, callback = WithEps(mlp()), InitCallback("auto", seed=3)
    module.eps = eps
    nets.fit(module, callback, max_steps=10, precision="16-true")
    assert callback.report is not None
    errors = callback.report.errors
    assert [finding.causes[0] for finding in errors] == ([] if enough else ["precision"])
    assert all("AdamW(eps=1e-08) in float16" in finding.likely_cause for finding in errors)
    assert all("gradient of 1e-4 is 0" in finding.likely_cause for finding in errors)
    assert float(torch.tensor(1e-4, dtype=torch.float16) ** 2) == 0


@pytest.mark.parametrize(
    ("dtype", "eps", "said"),
    [
        (torch.float16, 6.0e-5, "Adam(eps=6e-05) in float16"),
        (torch.float16, 6.2e-5, ""),
        (torch.bfloat16, 1e-8, ""),
        (torch.float32, 1e-37, ""),
        (torch.float32, 1e-38, "Adam(eps=1e-38) in float32"),
    ],
)
def test_which_eps_is_too_small(dtype: torch.dtype, eps: float, said: str) -> None:
    weight = torch.nn.Parameter(torch.ones(1, dtype=dtype))
    assert small_eps([torch.optim.Adam([weight], eps=eps)]) == said
    assert small_eps([torch.optim.SGD([weight]), torch.optim.Adafactor([weight])]) == ""
