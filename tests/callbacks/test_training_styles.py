"""Ways to train: what is read stays right, and what cannot be read is said."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_init import InitCallback
from tests.callbacks import nets
from tests.callbacks.nets import AtStart, Digits, mlp


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


def test_accumulated_batches_show_their_own_loss_and_the_gradient_of_all() -> None:
    callback, start = watched(Still(mlp()), accumulate_grad_batches=3, max_steps=2)
    values, grad = alone(start, first(3))
    assert losses(callback)[:3] == pytest.approx(values, rel=1e-5)
    assert by_name(callback, 2)["net.2.weight"] == pytest.approx(float(grad), rel=1e-5)


@pytest.mark.parametrize("how", ["norm", "value"])
def test_gradients_are_those_before_clipping(how: str) -> None:
    clip = {"gradient_clip_val": 1e-4, "gradient_clip_algorithm": how}
    callback, start = watched(Still(mlp()), **clip, max_steps=2)
    _, grad = alone(start, first(2)[1:])
    assert by_name(callback, 1)["net.2.weight"] == pytest.approx(float(grad), rel=1e-5)


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


def test_lbfgs_calls_a_step_several_times() -> None:
    class Newton(Digits):
        def configure_optimizers(self) -> Any:
            return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)

    callback, start = watched(Newton(mlp()), max_steps=3)
    assert len(losses(callback)) == 3
    assert callback.report is not None
    (loss,) = callback.report.readings.steps[0].losses
    assert loss.value == pytest.approx(alone(start, first(1))[0][0], rel=1e-5)


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`:UserWarning")  # lightning
def test_a_step_may_return_a_mapping_or_nothing() -> None:
    class Maps(Still):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return {"loss": self.loss(batch), "extra": torch.zeros(3)}

    class Skips(Still):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None

    class NoIndex(Still):
        def training_step(self, batch: Any) -> Any:
            return self.loss(batch)

    for module in (Maps(mlp()), NoIndex(mlp())):
        callback, start = watched(module, max_steps=2)
        assert losses(callback) == pytest.approx(alone(start, first(2))[0], rel=1e-5)
        assert callback.report is not None
        assert callback.report.blind == ()
    callback, _ = watched(Skips(mlp()), max_steps=-1, max_epochs=1, limit_train_batches=4)
    assert callback.report is not None
    assert callback.report.blind == ("loss: this training_step returns none",)
    assert callback.report.findings == ()


class TwoPlayers(Digits):
    """Manual optimization: two optimizers that step in turn."""

    def __init__(self) -> None:
        super().__init__(mlp())
        self.judge = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 1))
        self.automatic_optimization = False
        self.stepped: list[str] = []

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, _ = batch
        maker, judge = self.optimizers()
        self.toggle_optimizer(judge)
        out = self.judge(self.net(x).detach())
        loss = F.binary_cross_entropy_with_logits(out, torch.zeros_like(out))
        self.log("judge_loss", loss)
        judge.zero_grad()
        self.manual_backward(loss)
        judge.step()
        self.untoggle_optimizer(judge)
        out = self.judge(self.net(x))
        maker.zero_grad()
        self.manual_backward(F.binary_cross_entropy_with_logits(out, torch.ones_like(out)))
        maker.step()
        for scheduler in self.lr_schedulers():
            scheduler.step()
        self.stepped.append("both")

    def configure_optimizers(self) -> Any:
        made = [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.net, self.judge)]
        return made, [torch.optim.lr_scheduler.StepLR(each, 2) for each in made]


@pytest.mark.filterwarnings(
    "ignore:lightning_init. WARNING collapsed_samples"
)  # a new judge says one thing
def test_two_optimizers_by_hand() -> None:
    callback, module = InitCallback("orthogonal", seed=3), TwoPlayers()
    trainer = nets.fit(module, callback, start := AtStart(), max_steps=8)
    assert module.stepped == ["both"] * 4
    assert trainer.global_step == 8
    assert callback.report is not None
    assert [s.step for s in callback.report.readings.steps] == [0, 1, 2]
    assert callback.report.blind == ("loss: this training_step returns none",)
    kinds = [loss.kind for loss in callback.report.readings.steps[0].losses]
    assert kinds == ["binary cross-entropy with logits"] * 2
    for step in (0, 1, 2):
        assert all(grad > 0 for grad in by_name(callback, step).values())
    plain = TwoPlayers()
    plain.load_state_dict(start.weights)
    nets.fit(plain, max_steps=8)
    assert nets.same(nets.weights(plain), nets.weights(module))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("how", ["module", "child", "configure_model", "in_place"])
def test_compiled_models(how: str) -> None:
    class Late(Digits):
        def configure_model(self) -> None:
            if not hasattr(self, "net"):
                self.net = torch.compile(mlp(), backend="eager")

    class Unlogged(Digits):  # self.log inside a compiled module fails without us too
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.loss(batch)

    module: Any = Late() if how == "configure_model" else Unlogged(mlp())
    if how == "child":
        module.net = torch.compile(module.net, backend="eager")
    if how == "in_place":
        module.net.compile(backend="eager")
    fitted = torch.compile(module, backend="eager") if how == "module" else module
    callback, start = InitCallback("orthogonal", seed=3), AtStart()
    nets.fit(fitted, callback, start, max_steps=3)
    nets.fit(Digits(mlp()), InitCallback("orthogonal", seed=3), plain := AtStart(), max_steps=1)
    assert nets.same(start.weights, plain.weights)
    assert callback.plan is not None
    names = [entry.info.name for entry in callback.plan]
    assert names == list(plain.weights)
    assert callback.report is not None
    assert not [why for why in callback.report.blind if "activations" in why]
    assert [len(step.layers) for step in callback.report.readings.steps] == [3, 0, 3]
    assert len(losses(callback)) == 3
    assert all(grad > 0 for grad in by_name(callback, 2).values())
    assert nets.hooks(module) == []


def test_double_precision_trains_and_is_read() -> None:
    callback = InitCallback("orthogonal", monitor_steps=3)
    nets.fit(Digits(mlp()), callback, max_steps=3, precision="64-true")
    assert callback.report is not None
    assert callback.report.readings.steps[-1].weights[0].grad_rms > 0
