"""A `training_step` that is looked at before it trains: its optimizers answer and do not step."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_init import InitCallback
from tests.callbacks import nets
from tests.callbacks.nets import Digits, mlp


class Asks(Digits):
    """Reads what optimizers and schedulers know, and hands schedulers an epoch and a metric."""

    def __init__(self, manual: bool) -> None:
        super().__init__(mlp())
        self.automatic_optimization = not manual

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        optimizer, (restarts, plateau) = self.optimizers(), self.lr_schedulers()
        assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)
        assert sum(p.numel() for p in optimizer.optimizer.param_groups[0]["params"]) > 0
        assert 0 < restarts.get_last_lr()[0] <= self.lr
        loss = self.loss(batch)
        if not self.automatic_optimization:
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            restarts.step(self.current_epoch + batch_idx / 10)
            plateau.step(loss.detach())
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        made = torch.optim.Adam(self.net.parameters(), lr=self.lr)
        kinds = torch.optim.lr_scheduler
        plateau = kinds.ReduceLROnPlateau(made)
        restarts = kinds.CosineAnnealingWarmRestarts(made, 5)
        manual = not self.automatic_optimization
        return [made], [
            restarts,
            plateau if manual else {"scheduler": plateau, "monitor": "train_loss"},
        ]


@pytest.mark.case(33)
@pytest.mark.parametrize("manual", [False, True])
@pytest.mark.filterwarnings("ignore:lightning_init")
def test_a_step_may_ask_its_optimizers_and_schedulers(manual: bool) -> None:
    callback = InitCallback("lsuv", seed=3, monitor_steps=2)
    nets.fit(Asks(manual), callback, max_steps=3)
    assert callback.report is not None
    assert callback.report.blind == ()
    assert callback.plan is not None
    assert callback.plan.calibrations


class Reaches(Digits):
    """Steps the Trainer's own optimizer and scheduler, past Lightning."""

    def __init__(self) -> None:
        super().__init__(mlp())
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.trainer.optimizers[0]
        optimizer.zero_grad()
        self.loss(batch).backward()
        optimizer.step()
        self.trainer.lr_scheduler_configs[0].scheduler.step()

    def configure_optimizers(self) -> Any:
        made = torch.optim.Adam(self.net.parameters(), lr=self.lr)
        return [made], [torch.optim.lr_scheduler.ExponentialLR(made, 0.5)]


@pytest.mark.case(33, 41)
@pytest.mark.parametrize("strategy", ["keep", "orthogonal"])
def test_a_step_that_reaches_for_the_optimizers_of_the_trainer(strategy: str) -> None:
    def run(*callbacks: Any, start: Any = None) -> Any:
        nets.seed_all(1)
        module = Reaches()
        if start is not None:
            module.load_state_dict(start)
        trainer = nets.fit(module, *callbacks, max_steps=-1, max_epochs=1, limit_train_batches=3)
        return nets.weights(module), copy.deepcopy(trainer.optimizers[0].state_dict())

    callback, start = InitCallback(strategy, seed=3), nets.AtStart()
    watched = run(callback, start)
    assert nets.same(watched, run(start=start.weights))
    assert callback.report is not None
    # What was drawn is what the audit weighs: the step that it looked at moved nothing.
    assert [one.detector for one in callback.report.findings] == []


class Sharpness(Digits):
    """Climbs along the gradients of a first pass (SAM), then steps with those of a second."""

    def __init__(self) -> None:
        super().__init__(mlp())
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer, weights = self.optimizers(), list(self.net.parameters())
        self.manual_backward(self.loss(batch))
        climb = [0.05 * each.grad / each.grad.norm() for each in weights]
        torch._foreach_add_([each.data for each in weights], climb)
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        torch._foreach_sub_([each.data for each in weights], climb)
        optimizer.step()


@pytest.mark.case(32)
@pytest.mark.filterwarnings("ignore:lightning_init")
def test_a_step_that_uses_gradients_is_seen_up_to_there() -> None:
    callback, start = InitCallback("lsuv", seed=3, monitor_steps=2), nets.AtStart()
    nets.fit(module := Sharpness(), callback, start, max_steps=3)
    assert callback.plan is not None
    assert callback.plan.calibrations
    assert callback.report is not None
    assert callback.report.blind == ("loss: this training_step returns none",)
    plain = Sharpness()
    plain.load_state_dict(start.weights)
    nets.fit(plain, max_steps=3)
    assert nets.same(nets.weights(plain), nets.weights(module))
