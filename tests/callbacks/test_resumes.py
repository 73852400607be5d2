"""Runs that go on from a checkpoint that nobody named, or that say little of where they come from."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.plugins.environments import SLURMEnvironment
from torch import Tensor, nn

from lightning_init import InitCallback
from tests.callbacks import nets
from tests.callbacks.nets import AtStart, BuiltInConfigureModel, BuiltInSetup, Digits, mlp, noisy
from tests.callbacks.test_placement import direct, quiet

pytestmark = pytest.mark.filterwarnings(
    "ignore:Checkpoint directory:UserWarning",
    "ignore:.*was called without a model:UserWarning",
    "ignore:.*there is no last checkpoint available:UserWarning",  # before the first error
)

MODULES: dict[str, Any] = {
    "init": lambda: Digits(mlp()),
    "batch_norm": lambda: Digits(noisy()),
    "setup": BuiltInSetup,
    "configure_model": BuiltInConfigureModel,
}


class Trips(pl.Callback):
    """Fails after the third step."""

    def on_train_batch_end(self, trainer: pl.Trainer, *rest: Any) -> None:
        if trainer.global_step == 3:
            raise ArithmeticError


def tripped(kind: str, *callbacks: pl.Callback, **arguments: Any) -> dict[str, Tensor]:
    """Train for three steps that end in an error; the weights then."""
    module = MODULES[kind]()
    with pytest.raises(ArithmeticError):
        nets.fit(module, *callbacks, Trips(), max_steps=9, **arguments)
    return nets.weights(module)


@pytest.mark.case(11)
@pytest.mark.parametrize("kind", MODULES)
def test_a_fit_that_resumes_by_itself_after_an_error(kind: str, said: list[str]) -> None:
    def callbacks() -> list[pl.Callback]:
        return [InitCallback("orthogonal", seed=1), OnExceptionCheckpoint(".")]

    old = tripped(kind, *callbacks(), enable_checkpointing=True)
    assert Path("on_exception.ckpt").exists()
    said.clear()
    module, start, again = MODULES[kind](), AtStart(), callbacks()
    trainer = nets.trainer(*again, start, max_steps=5, enable_checkpointing=True)
    trainer.fit(module, nets.ordered(), weights_only=False)  # no path is named
    assert trainer.global_step == 5
    assert nets.same(start.weights, old)
    assert any("resumed: the checkpoint's weights are kept" in text for text in said)
    assert again[0].plan is None
    assert again[0].report is None
    assert not nets.hooks(module)


@pytest.mark.case(11)
@pytest.mark.parametrize("how", ["of the user", "last", "hpc", "slurm"])
@pytest.mark.parametrize("kind", MODULES)
def test_a_path_that_is_not_an_argument_of_fit(
    kind: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = MODULES[kind]()
    save = ModelCheckpoint(dirpath="saved", save_last=True, every_n_train_steps=1)
    first = nets.fit(module, save, max_steps=3, enable_checkpointing=True)
    first.save_checkpoint("hpc_ckpt_1.ckpt")
    old = nets.weights(module)
    module, start = MODULES[kind](), AtStart()
    trainer = nets.trainer(
        InitCallback("orthogonal", seed=1), start, save, max_steps=5, enable_checkpointing=True
    )
    path = {"last": "last", "hpc": "hpc"}.get(how)
    if how == "of the user":
        trainer.ckpt_path = "saved/last.ckpt"
    if how == "slurm":
        monkeypatch.setattr(SLURMEnvironment, "detect", staticmethod(lambda: True))
    trainer.fit(module, nets.ordered(), ckpt_path=path, weights_only=False)
    assert trainer.global_step == 5
    assert nets.same(start.weights, old)


class Extended(BuiltInConfigureModel):
    """Has a head that the checkpoint lacks, built as late as the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.strict_loading = False

    def configure_model(self) -> None:
        if not hasattr(self, "net"):
            self.net = mlp()
            self.net.append(nn.Linear(10, 10))


@pytest.mark.case(7)
@pytest.mark.parametrize("strategy", ["orthogonal", "lsuv", "auto"])
def test_what_a_checkpoint_lacks_is_drawn_and_what_it_has_is_kept(strategy: str) -> None:
    first = BuiltInConfigureModel()
    nets.fit(first, max_steps=3).save_checkpoint("first.ckpt")
    old, start, fresh = nets.weights(first), AtStart(), AtStart()
    nets.fit(Extended(), InitCallback(strategy, seed=2, monitor_steps=0), fresh, max_steps=1)
    trainer = nets.trainer(InitCallback(strategy, seed=2), start, max_steps=5)

    class FewerStates(Extended):
        """The optimizer goes on with what it knows."""

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.net[:5].parameters(), lr=0.01)

    trainer.fit(FewerStates(), nets.ordered(), ckpt_path="first.ckpt", weights_only=False)
    assert nets.same({name: start.weights[name] for name in old}, old)
    for name in ("net.5.weight", "net.5.bias"):
        assert torch.equal(start.weights[name], fresh.weights[name])


@pytest.mark.case(8)
@pytest.mark.parametrize("how", ["same trainer", "new trainer", "deep copy", "pickled copy"])
@pytest.mark.parametrize("kind", MODULES)
def test_a_second_fit_without_a_step_changes_nothing(how: str, kind: str) -> None:
    module = MODULES[kind]()
    callback = quiet("orthogonal")
    trainer = nets.fit(module, callback, max_steps=2)
    before = nets.weights(module)
    if how == "deep copy":
        module = copy.deepcopy(module)
    if how == "pickled copy":
        torch.save(module, "whole.pt")
        module = torch.load("whole.pt", weights_only=False)
    if how == "same trainer":
        trainer.callbacks[:] = [quiet("constant", scope="untrained")]
        trainer.fit(module, nets.ordered())
    else:
        nets.fit(module, quiet("constant"), max_steps=-1, max_epochs=0)
    assert nets.same(nets.weights(module), before)
    assert not nets.hooks(module)


@pytest.mark.case(4)
def test_a_head_that_exists_at_setup_is_drawn_there_and_not_otherwise_later() -> None:
    """Callbacks that copy the module in their `setup` copy what training starts from."""

    class AtSetup(AtStart):
        def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
            self.early = nets.weights(pl_module)

    notes, module = AtSetup(), nets.BuiltInThreePlaces()
    built = nets.weights(module)
    nets.fit(module, quiet("orthogonal"), notes, max_steps=1)
    assert list(notes.early) == list(built) == ["net.0.weight", "net.0.bias"]
    assert not nets.same(notes.early, built)
    assert nets.same(notes.early, {name: notes.weights[name] for name in notes.early})


@pytest.mark.case(12)
@pytest.mark.parametrize("what", ["validate", "test", "predict"])
@pytest.mark.parametrize("kind", ["init", "setup", "configure_model"])
def test_only_fit_initializes(what: str, kind: str) -> None:
    class Late(nets.Validated):
        def setup(self, stage: str) -> None:
            if kind == "setup" and not hasattr(self, "net"):
                self.net = mlp()

        def configure_model(self) -> None:
            if kind == "configure_model" and not hasattr(self, "net"):
                self.net = mlp()

    module = Late(mlp() if kind == "init" else None)
    data, callback, start = nets.ordered(600), quiet("orthogonal"), AtStart()
    trainer = nets.trainer(callback, start, max_steps=1, limit_val_batches=1)
    run = getattr(trainer, what)
    nets.seed_all()
    run(module, data, **({} if what == "predict" else {"verbose": False}))
    before = nets.weights(module)
    if kind != "init":  # built there, with torch's own values
        nets.seed_all()
        assert nets.same(before, nets.weights(Digits(mlp())))
    assert callback.plan is None
    trainer.fit(module, nets.ordered(), data)
    assert nets.same(start.weights, nets.weights(direct(mlp(), "orthogonal")))
    after = nets.weights(module)
    run(module, data, **({} if what == "predict" else {"verbose": False}))
    assert nets.same(nets.weights(module), after)
    assert not nets.hooks(module)
