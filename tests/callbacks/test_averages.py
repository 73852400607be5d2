"""Callbacks that copy or freeze weights in their own `setup`, listed before ours and after."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    EMAWeightAveraging,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch.utils.data import DataLoader

from tests.callbacks import nets
from tests.callbacks.nets import (
    AtStart,
    BuiltInConfigureModel,
    BuiltInSetup,
    Digits,
    Validated,
    mlp,
)
from tests.callbacks.test_placement import direct, quiet

pytestmark = pytest.mark.filterwarnings("ignore:You're using the WeightAveraging:UserWarning")


class NotYet(WeightAveraging):
    """Has not begun to average when the training ends."""

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return False


AVERAGES: dict[str, Callable[[], pl.Callback]] = {
    "WeightAveraging": WeightAveraging,
    "not begun": NotYet,
    "EMA": EMAWeightAveraging,
    "EMA not begun": lambda: EMAWeightAveraging(update_starting_at_step=100),
}


class AlsoSetsUp(BuiltInConfigureModel):
    """Three hooks, of which `configure_model` is called twice: by the average and by Lightning."""

    def __init__(self, lr: float = 0.01) -> None:
        super().__init__(lr=lr)
        self.calls = 0

    def setup(self, stage: str) -> None:
        self.set_up = True

    def configure_model(self) -> None:
        self.calls += 1
        super().configure_model()


class SetsUp(Digits):
    def setup(self, stage: str) -> None:
        self.set_up = True


MODELS: dict[str, Callable[..., Digits]] = {
    "init": lambda lr: Digits(mlp(), lr=lr),
    "setup": lambda lr: SetsUp(mlp(), lr=lr),
    "configure_model": BuiltInConfigureModel,
    "both": AlsoSetsUp,
}
ORDERS = ["ours first", "ours last"]


def both(callback: pl.Callback, other: pl.Callback, order: str) -> list[pl.Callback]:
    return [callback, other] if order == "ours first" else [other, callback]


def alike(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    """Up to the rounding of an average of equal numbers."""
    return all(torch.allclose(one[name], two[name], rtol=1e-6, atol=1e-8) for name in two)


@pytest.mark.case(5, 16)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("average", AVERAGES)
def test_an_average_of_the_weights_is_of_ours(average: str, model: str, order: str) -> None:
    other, module, start = AVERAGES[average](), MODELS[model](lr=0.0), AtStart()
    nets.fit(module, *both(quiet("orthogonal"), other, order), start, max_steps=2)
    expected = nets.weights(direct(mlp(), "orthogonal"))
    assert nets.same(start.weights, expected)
    assert alike(nets.weights(module), expected)
    assert not nets.hooks(module)
    if isinstance(module, AlsoSetsUp):
        assert module.calls == 2


@pytest.mark.case(16)
@pytest.mark.parametrize("order", ORDERS)
def test_an_average_of_layers_that_were_built_in_setup_is_of_none_of_them(order: str) -> None:
    """What Lightning's average copies has no layers yet: as without us, and said."""
    module = BuiltInSetup(lr=0.0)
    with pytest.warns(UserWarning, match="NotYet is of other layers than the module's"):
        nets.fit(module, *both(quiet("orthogonal"), NotYet(), order), max_steps=2)
    assert nets.same(nets.weights(module), nets.weights(direct(mlp(), "orthogonal")))


class Watches(pl.Callback):
    """What hooks are on the copy that an average holds."""

    def __init__(self, other: Any) -> None:
        self.other, self.left = other, ["nothing was seen"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        copy = self.other._average_model
        self.left = nets.hooks(getattr(copy, "module", copy))


@pytest.mark.case(16, 36)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("average", [NotYet, lambda: StochasticWeightAveraging(1e-3)])
def test_a_copy_of_the_module_has_no_hook_of_ours(model: str, average: Any) -> None:
    other, module = average(), MODELS[model](lr=0.0)
    if model in ("configure_model", "both") and not isinstance(other, NotYet):
        module.configure_model()
    seen = Watches(other)
    nets.fit(module, quiet("orthogonal"), other, seen, max_epochs=1, limit_train_batches=2)
    assert seen.left == []


@pytest.mark.case(16)
@pytest.mark.parametrize("order", ORDERS)
def test_an_average_in_the_sanity_check_is_of_ours(order: str) -> None:
    """Lightning swaps the average in for validation."""

    class Checked(Validated):
        checked: list[dict[str, torch.Tensor]]

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.checked = [*getattr(self, "checked", []), nets.weights(self)]

    module, loader = Checked(mlp(), lr=0.0), nets.ordered(600)
    trainer = nets.trainer(*both(quiet("orthogonal"), NotYet(), order), max_steps=2)
    trainer.fit(module, nets.ordered(), loader)
    assert nets.same(module.checked[0], nets.weights(direct(mlp(), "orthogonal")))


@pytest.mark.case(6, 16)
@pytest.mark.parametrize("order", ORDERS)
def test_a_resumed_average_is_that_of_the_checkpoint(order: str) -> None:
    class Saves(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *rest: Any) -> None:
            if trainer.global_step == 20:
                trainer.save_checkpoint("last.ckpt")

    nets.fit(Digits(mlp()), EMAWeightAveraging(decay=0.9), Saves(), max_steps=21)
    state = torch.load("last.ckpt", weights_only=False)
    current, average = state["current_model_state"], state["state_dict"]
    assert not torch.equal(current["net.0.weight"], average["net.0.weight"])
    other = EMAWeightAveraging(decay=0.9, update_starting_at_step=100)
    module, start = Digits(mlp(), lr=0.0), AtStart()
    callbacks = both(quiet("orthogonal"), other, order)
    trainer = nets.trainer(*callbacks, start, max_steps=22)
    trainer.fit(module, nets.ordered(), ckpt_path="last.ckpt", weights_only=False)
    assert nets.same(start.weights, dict(current))
    assert nets.same(nets.weights(module), dict(average))


@pytest.mark.case(16)
@pytest.mark.parametrize("order", ORDERS)
def test_what_waits_for_the_first_batch_reaches_the_average(order: str) -> None:
    module, start = Digits(mlp(), lr=0.0), AtStart()
    callbacks = both(quiet("lsuv"), NotYet(), order)
    loader = DataLoader(nets.Stream(), batch_size=32)
    nets.fit(module, *callbacks, start, loader=loader, max_steps=2)
    assert not nets.same(start.weights, nets.weights(direct(mlp(), "orthogonal")))
    assert nets.same(nets.weights(module), start.weights)


@pytest.mark.case(17)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("model", MODELS)
def test_stochastic_averaging_begins_with_ours(model: str, order: str) -> None:
    found = []
    for callback in (quiet("orthogonal"), None):
        other = StochasticWeightAveraging(0.01, swa_epoch_start=1)
        module = MODELS[model](lr=0.01)
        module.configure_model()
        if callback is None:  # the same weights by hand, and Lightning alone
            expected = direct(mlp(), "orthogonal")
            module.load_state_dict(expected.state_dict()) if hasattr(module, "net") else None
        callbacks = [other] if callback is None else both(callback, other, order)
        nets.fit(module, *callbacks, max_steps=-1, max_epochs=3, limit_train_batches=3)
        found.append(nets.weights(module))
        assert not nets.hooks(module)
    assert nets.same(*found)


class Freezes(BaseFinetuning):
    """A documented subclass: the feature extractor is frozen for two epochs."""

    def freeze_before_training(self, pl_module: pl.LightningModule) -> None:
        self.freeze(pl_module.net[:3])

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
        if epoch == 2:
            self.unfreeze_and_add_param_group(pl_module.net[:3], optimizer)


class Trainable(Digits):
    """As Lightning's documentation asks of a module that layers of which are frozen."""

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=self.lr)


class TrainableWithSetup(Trainable):
    def setup(self, stage: str) -> None:
        self.set_up = True


class TrainableLater(Trainable):
    def configure_model(self) -> None:
        self.configured = True


@pytest.mark.case(17)
@pytest.mark.parametrize("kind", [Trainable, TrainableWithSetup, TrainableLater])
@pytest.mark.parametrize("third", [None, NotYet])
def test_layers_that_a_callback_freezes_are_kept_in_any_order(kind: Any, third: Any) -> None:
    starts, before = [], {}
    for order in ORDERS:
        nets.seed_all()
        module, start = kind(mlp()), AtStart()
        before = nets.weights(module)
        callbacks = both(quiet("orthogonal"), Freezes(), order)
        callbacks[1:1] = [third()] if third else []
        nets.fit(module, *callbacks, start, max_steps=-1, max_epochs=3, limit_train_batches=2)
        starts.append(start.weights)
        assert not nets.hooks(module)
        assert nets.same(nets.weights(module), start.weights) is bool(third)
    assert nets.same(*starts)
    expected = nets.weights(direct(mlp(), "orthogonal"))
    for name in before:
        frozen = name.startswith(("net.0", "net.2"))
        assert torch.equal(starts[0][name], before[name] if frozen else expected[name]), name
