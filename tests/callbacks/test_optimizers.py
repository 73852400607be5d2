"""Accumulation, clipping, several optimizers, optimizers of one's own: read unscaled, and once."""

from __future__ import annotations

import copy
import math
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import Tensor, nn
from torch.optim.optimizer import _global_optimizer_pre_hooks

from lightning_init import InitCallback
from lightning_init.architecture.probe import Probe
from tests.callbacks import nets
from tests.callbacks.nets import AtStart, Digits, mlp
from tests.callbacks.watching import Still, alone, by_name, first, fp16, losses, reading, watched

SAME = pytest.approx


@pytest.mark.case(30)
@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_a_last_window_that_is_not_full(precision: str) -> None:
    """Three batches, two to a window: Lightning steps after the second and the third."""
    run = {"plugins": [fp16()]} if precision == "16-mixed" else {}
    exact = 1e-5 if precision == "32-true" else 0.02
    callback, start = watched(
        Still(mlp()), accumulate_grad_batches=2, limit_train_batches=3, max_steps=4, **run
    )
    batches = first(3)
    values, _ = alone(start, batches)
    assert losses(callback) == SAME(values * 2, rel=exact)
    assert callback.report is not None
    assert [step.step for step in callback.report.readings.steps] == [0, 1, 2, 4]
    _, both = alone(start, batches[:2])
    for step in (1, 4):
        assert by_name(callback, step)["net.2.weight"] == SAME(float(both), rel=exact)
    # Its one batch is divided by two all the same: half of the gradient is what arrives.
    _, last = alone(start, batches[2:])
    assert by_name(callback, 2)["net.2.weight"] == SAME(float(last) / 2, rel=exact)
    (x, y) = batches[2]
    module = Digits(mlp())
    module.load_state_dict(start.weights)
    out = module.net[0](x)
    (grad,) = torch.autograd.grad(F.cross_entropy(module.net[1:](out), y), out)
    assert reading(callback, 2).layers[0].grad_rms == SAME(
        float((grad**2).mean().sqrt()), rel=exact
    )


@pytest.mark.case(30)
def test_windows_that_grow_with_the_epochs() -> None:
    scheduler = GradientAccumulationScheduler({0: 1, 1: 2})
    callback, start = InitCallback("orthogonal", seed=3), AtStart()
    nets.fit(
        Still(mlp()), callback, start, scheduler, limit_train_batches=4, max_steps=-1, max_epochs=2
    )
    batches = first(4)
    values, _ = alone(start, batches)
    assert losses(callback) == SAME(values * 2, rel=1e-5)
    assert callback.report is not None
    assert [step.step for step in callback.report.readings.steps] == [0, 1, 2, 7]
    _, alone_ = alone(start, batches[1:2])
    assert by_name(callback, 1)["net.2.weight"] == SAME(float(alone_), rel=1e-5)
    _, both = alone(start, batches[2:])
    assert by_name(callback, 7)["net.2.weight"] == SAME(float(both), rel=1e-5)


@pytest.mark.case(31)
@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_gradients_are_those_before_a_clipping_of_ones_own(precision: str) -> None:
    class Clips(Still):
        clipped = 0

        def configure_gradient_clipping(self, optimizer: Any, *given: Any, **named: Any) -> None:
            self.clip_gradients(optimizer, 1e-4, "norm")
            self.clipped += 1

    run = {"plugins": [fp16()]} if precision == "16-mixed" else {}
    module = Clips(mlp())
    callback, start = watched(module, max_steps=2, **run)
    assert module.clipped == 2
    norm = torch.stack([p.grad.norm() for p in module.parameters() if p.grad is not None]).norm()
    assert float(norm) == SAME(1e-4, rel=1e-2)
    _, grad = alone(start, first(2)[1:])
    exact = 1e-5 if precision == "32-true" else 0.02
    assert by_name(callback, 1)["net.2.weight"] == SAME(float(grad), rel=exact)


class Rivals(Digits):
    """A generator and a critic; nothing keeps the generator's loss from the critic's gradients."""

    def __init__(self, every: int = 1) -> None:
        super().__init__(mlp())
        self.critic = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 1))
        self.automatic_optimization = False
        self.every = every

    def against(self, x: Tensor) -> Tensor:
        return self.critic(self.net(x).detach()).square().mean()

    def together(self, x: Tensor) -> Tensor:
        return (self.critic(self.net(x)) - 1).square().mean()

    def training_step(self, batch: Any, batch_idx: int) -> None:
        maker, critic = self.optimizers()
        critic.zero_grad()
        self.manual_backward(self.against(batch[0]))
        critic.step()
        if batch_idx % self.every == 0:
            maker.zero_grad()
            self.manual_backward(self.together(batch[0]))
            maker.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(part.parameters(), lr=0.0) for part in (self.net, self.critic)]


@pytest.mark.case(32)
def test_each_of_two_optimizers_is_read_at_its_own_step() -> None:
    module = Rivals(every=2)
    callback, start = InitCallback("orthogonal", seed=3), AtStart()
    trainer = nets.fit(module, callback, start, max_steps=-1, max_epochs=1, limit_train_batches=6)
    assert trainer.global_step == 9
    assert callback.report is not None
    assert [step.step for step in callback.report.readings.steps] == [0, 1, 2, 5]
    assert sorted(callback.report.readings.lr) == list(range(6))  # batches, not steps
    twin = Rivals()
    twin.load_state_dict(start.weights)
    batches = first(6)
    for step in (1, 2, 5):
        x, _ = batches[step]
        (critic,) = torch.autograd.grad(twin.against(x), twin.critic[0].weight)
        (maker,) = torch.autograd.grad(twin.together(x), twin.net[2].weight)
        read = by_name(callback, step)
        assert read["critic.0.weight"] == SAME(float((critic**2).mean().sqrt()), rel=1e-5)
        if step % 2:  # in which it does not step
            assert math.isnan(read["net.2.weight"])
        else:
            assert read["net.2.weight"] == SAME(float((maker**2).mean().sqrt()), rel=1e-5)


class Raw(Digits):
    """Steps an optimizer that Lightning does not know."""

    def __init__(self, kind: str = "Adam", where: str = "init") -> None:
        super().__init__(mlp())
        self.automatic_optimization = False
        self.kind, self.where = kind, where
        self.raw: Any = self.make() if where == "init" else None
        self.values: list[float] = []

    def make(self) -> Any:
        made = getattr(torch.optim, self.kind)(self.net.parameters(), lr=1e-3)
        self.schedule = torch.optim.lr_scheduler.StepLR(made, 2, 0.5)
        return made

    def configure_optimizers(self) -> Any:
        return self.make() if self.where == "unwrapped" else None

    def on_train_start(self) -> None:
        if self.where == "train_start":
            self.raw = self.make()

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.seen.append(float(batch[0].double().sum()))
        if self.where == "unwrapped":
            self.raw = self.optimizers(use_pl_optimizer=False)

        def closure() -> Tensor:
            self.raw.zero_grad()
            loss = self.loss(batch)
            loss.backward()
            self.values.append(float(loss.detach()))
            return loss

        if self.kind == "LBFGS":
            self.raw.step(closure)
        else:
            closure()
            self.raw.step()
        if self.where != "unwrapped":
            self.schedule.step()


@pytest.mark.case(33)
@pytest.mark.filterwarnings("ignore:`LightningModule.configure_optimizers` returned `None`")
@pytest.mark.parametrize("where", ["init", "train_start", "unwrapped"])
@pytest.mark.parametrize("kind", ["Adam", "LBFGS"])
def test_optimizers_that_lightning_does_not_see(kind: str, where: str) -> None:
    def run(*callbacks: pl.Callback) -> Raw:
        nets.seed_all(1)
        module = Raw(kind, where)
        trainer = nets.fit(module, *callbacks, max_steps=-1, max_epochs=1, limit_train_batches=6)
        assert trainer.global_step == 0
        return module

    plain, module = run(), run(callback := InitCallback("keep", seed=3))
    assert plain.values == module.values
    assert nets.same(nets.weights(plain), nets.weights(module))
    states = [copy.deepcopy(each.raw.state_dict()) for each in (plain, module)]
    assert nets.same(*states)
    assert plain.schedule.state_dict() == module.schedule.state_dict()
    assert callback.report is not None
    said = ["loss: this training_step returns none"]
    if kind == "LBFGS":
        said += ["gradients after the first batch: no optimizer steps where they are seen"]
    assert list(callback.report.blind) == said
    steps = [step.step for step in callback.report.readings.steps]
    assert steps == [0, 1, 2, 5]
    if kind == "Adam":
        twin = Digits(mlp())
        nets.seed_all(1)
        start = {key: value.clone() for key, value in Raw(kind, where).state_dict().items()}
        twin.load_state_dict(start)
        optimizer = torch.optim.Adam(twin.parameters(), lr=1e-3)
        twin.loss(first(1)[0]).backward()
        optimizer.step()
        (grad,) = torch.autograd.grad(twin.loss(first(2)[1]), twin.net[2].weight)
        read = by_name(callback, 1)["net.2.weight"]
        assert read == SAME(float((grad**2).mean().sqrt()), rel=1e-4)
        lr = 0.001 if where == "unwrapped" else 0.00025
        last = [weight for weight in reading(callback, 5).weights if len(weight.shape) > 1]
        assert all(weight.update > 0 and weight.lr == lr for weight in last)
    assert not _global_optimizer_pre_hooks
    assert nets.hooks(module) == []


@pytest.mark.case(33)
def test_lbfgs_is_read_once_in_a_batch() -> None:
    class Newton(Digits):
        def configure_optimizers(self) -> Any:
            return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)

    before: list[dict[str, Tensor]] = []

    class Looks(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            before.append(nets.weights(pl_module))

    callback = InitCallback("orthogonal", seed=3)
    nets.fit(Newton(mlp()), callback, Looks(), max_steps=3)
    for step in (1, 2):  # at the first of its calls, where the weights are those of the start
        start = AtStart()
        start.weights = before[step]
        _, grad = alone(start, first(3)[step : step + 1])
        assert by_name(callback, step)["net.2.weight"] == SAME(float(grad), rel=1e-4)


@pytest.mark.case(33)
def test_a_gradient_that_cannot_be_read_does_not_end_a_training(monkeypatch: Any) -> None:
    def fails(*args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("no norm of this")

    callback = InitCallback("orthogonal", seed=3, monitor_steps=3)
    monkeypatch.setattr(Probe, "gradients", fails)
    nets.fit(Digits(mlp()), callback, max_steps=3)
    assert callback.report is not None
    assert callback.report.blind == tuple(
        f"step {step}: not all was read (no norm of this)" for step in (1, 2)
    )
