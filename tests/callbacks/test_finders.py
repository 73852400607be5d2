"""Finders of learning rates and batch sizes train on our weights, and are not taken for training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.tuner import Tuner
from torch.utils.data import DataLoader

from lightning_init import InitCallback
from tests.callbacks import nets
from tests.callbacks.nets import AtStart, BuiltInConfigureModel, BuiltInSetup, Digits, mlp, noisy
from tests.callbacks.test_placement import direct

pytestmark = pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")


class Data(pl.LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        self.batch_size = 4
        self.sizes: list[int] = []

    def train_dataloader(self) -> Any:
        self.sizes.append(self.batch_size)
        return DataLoader(nets.digits(), batch_size=self.batch_size)


class Tried(Digits):
    """Notes its weights at every training step."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.trainer.training:
            self.__dict__.setdefault("tried", []).append(nets.weights(self))
        return super().training_step(batch, batch_idx)


class TriedInSetup(Tried, BuiltInSetup):
    pass


class TriedInConfigureModel(Tried, BuiltInConfigureModel):
    pass


MODULES: dict[str, Callable[[], Any]] = {
    "init": lambda: Tried(mlp()),
    "batch_norm": lambda: Tried(noisy()),
    "setup": TriedInSetup,
    "configure_model": TriedInConfigureModel,
}


def lr_finder(**arguments: Any) -> LearningRateFinder:
    return LearningRateFinder(
        **{"num_training_steps": 6, "min_lr": 1e-4, "max_lr": 1e-2, **arguments}
    )


def watched(callback: InitCallback) -> list[int]:
    assert callback.report is not None
    return sorted(callback.report.readings.loss)


@pytest.mark.case(14)
@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("finders", ["rate", "size", "both"])
def test_finders_as_callbacks(finders: str, kind: str) -> None:
    module, data, start = MODULES[kind](), Data(), AtStart()
    callback = InitCallback("orthogonal", seed=3)
    found: list[pl.Callback] = []
    found += [BatchSizeFinder(max_trials=3, steps_per_trial=2)] if finders != "rate" else []
    found += [lr_finder()] if finders != "size" else []
    trainer = nets.trainer(callback, start, *found, max_steps=3)
    trainer.fit(module, datamodule=data)
    net = noisy() if kind == "batch_norm" else mlp()
    expected = nets.weights(direct(net, "orthogonal"))
    assert nets.same(start.weights, expected)
    assert nets.same(module.tried[0], expected)  # the first step of the first finder
    assert len(module.tried) > 6  # so they have really trained
    assert watched(callback) == [0, 1, 2]  # without the finders' steps
    assert callback.plan is not None
    assert callback.fingerprint is not None
    assert not nets.hooks(module)
    if finders != "rate":
        assert data.batch_size > 4


class FineTune(LearningRateFinder):
    """Of Lightning's documentation: the rate is looked for again at some epochs."""

    def __init__(self, milestones: tuple[int, ...], **arguments: Any) -> None:
        super().__init__(**arguments)
        self.milestones = milestones
        self.looked: list[int] = []

    def on_fit_start(self, *args: Any, **kwargs: Any) -> None:
        return

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch in self.milestones or trainer.current_epoch == 0:
            self.looked.append(len(pl_module.tried) if hasattr(pl_module, "tried") else 0)
            self.lr_find(trainer, pl_module)


@pytest.mark.case(15)
@pytest.mark.parametrize("kind", MODULES)
def test_a_finder_at_a_later_epoch(kind: str) -> None:
    module, start, callback = MODULES[kind](), AtStart(), InitCallback("orthogonal", seed=3)
    finder = FineTune((1,), num_training_steps=6, min_lr=1e-4, max_lr=1e-2)
    trainer = nets.trainer(callback, start, finder, max_epochs=2, max_steps=-1)
    trainer.fit(module, DataLoader(torch.utils.data.Subset(nets.digits(), range(128)), 32))
    net = noisy() if kind == "batch_norm" else mlp()
    expected = nets.weights(direct(net, "orthogonal"))
    assert nets.same(start.weights, expected)
    assert finder.looked == [0, 10]  # six tries and four steps lie between
    assert watched(callback) == list(range(8))
    readings = callback.report.readings
    assert {one.step for one in readings.steps} <= set(range(8))
    assert trainer.global_step == 8
    assert not nets.hooks(module)


@pytest.mark.case(13)
@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("what", ["lr_find", "scale_batch_size"])
def test_a_tuner_before_fit(what: str, kind: str) -> None:
    module, data, start = MODULES[kind](), Data(), AtStart()
    callback = InitCallback("orthogonal", seed=3)
    trainer = nets.trainer(callback, start, max_steps=3)
    if what == "lr_find":
        given = {"num_training": 6, "min_lr": 1e-4, "max_lr": 1e-2}
    else:
        given = {"max_trials": 3, "steps_per_trial": 2}
    getattr(Tuner(trainer), what)(module, datamodule=data, **given)
    net = noisy() if kind == "batch_norm" else mlp()
    expected = nets.weights(direct(net, "orthogonal"))
    assert nets.same(module.tried[0], expected)
    assert not nets.same(module.tried[-1], expected)
    assert nets.same(nets.weights(module), expected)  # Lightning puts them back
    assert not nets.hooks(module)
    start.weights = {}
    trainer.fit(module, datamodule=data)
    assert nets.same(start.weights, expected)
    assert watched(callback) == [0, 1, 2]


@pytest.mark.case(13, 14, 36)
@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("first", [False, True], ids=["in_fit", "before_fit"])
def test_nothing_is_left_when_a_finder_fails(kind: str, first: bool) -> None:
    """Lightning has put its own callbacks in the place of ours by then."""
    module = MODULES[kind]()
    module.loss = fails = lambda batch: (_ for _ in ()).throw(ArithmeticError("on purpose"))
    trainer = nets.trainer(InitCallback("orthogonal"), *([] if first else [lr_finder()]))
    run = Tuner(trainer).lr_find if first else trainer.fit
    with pytest.raises(ArithmeticError, match="on purpose"):
        run(module, nets.ordered())
    assert module.loss is fails
    assert not nets.hooks(module)
