"""When weights are written: the same ones wherever the layers are built, before anyone reads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.tuner import Tuner
from torch import nn
from torch.utils.data import DataLoader, default_collate

from lightning_init import InitCallback, initialize_
from lightning_init.strategies.distributions import Distribution, Normal
from tests.callbacks import nets
from tests.callbacks.nets import (
    AtStart,
    BuiltInConfigureModel,
    BuiltInSetup,
    BuiltInThreePlaces,
    Digits,
    Rows,
    Stream,
    Validated,
    digits,
    mlp,
    noisy,
)

STRATEGIES = ["auto", "xavier_uniform", "orthogonal", "gpt2", "lsuv"]
LATE: dict[str, Callable[[], Digits]] = {
    "setup": BuiltInSetup,
    "configure_model": BuiltInConfigureModel,
    "three_places": BuiltInThreePlaces,
}


def spaced(rows: int = 32) -> Any:
    """The batch that the callback takes before training: rows spread evenly over the data."""
    data = digits()
    return default_collate([data[i * len(data) // rows] for i in range(rows)])


def direct(net: nn.Module, strategy: Any, batch: Any = None, seed: int = 3) -> Digits:
    module = Digits(net)
    given = spaced() if batch is None else batch
    initialize_(module, strategy, seed=seed, forward=lambda: module.loss(given))
    return module


def quiet(strategy: Any, **arguments: Any) -> InitCallback:
    """Unwatched: weights, not their health, are looked at here."""
    return InitCallback(strategy, **{"seed": 3, "monitor_steps": 0, "loss_steps": 0, **arguments})


def started(module: Digits, *callbacks: pl.Callback, **arguments: Any) -> dict[str, torch.Tensor]:
    start = AtStart()
    nets.fit(module, *callbacks, start, **{"max_steps": 1, **arguments})
    return start.weights


@pytest.mark.case(1)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("net", [mlp, noisy, Rows])
def test_weights_at_the_start_are_those_of_initialize(
    strategy: str, net: Callable[[], nn.Module]
) -> None:
    expected = nets.weights(direct(net(), strategy))
    assert nets.same(started(Digits(net()), quiet(strategy)), expected)


@pytest.mark.case(2, 3, 4)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("late", LATE)
def test_layers_built_later_get_the_same_weights(strategy: str, late: str) -> None:
    module = LATE[late]()
    found = started(module, quiet(strategy))
    assert nets.same(found, nets.weights(direct(mlp(), strategy)))
    assert not nets.hooks(module)


@pytest.mark.case(4)
def test_overrides_and_scope_may_name_layers_built_later() -> None:
    overrides = {"net.4.weight": "constant"}
    found = started(BuiltInThreePlaces(), quiet("orthogonal", overrides=overrides))
    assert (found["net.4.weight"] == 0).all()
    found = started(BuiltInThreePlaces(), quiet("constant", scope=["net.4.*"]))
    assert (found["net.4.weight"] == 0).all()
    assert (found["net.2.weight"] != 0).any()


def test_a_pattern_that_matches_nothing_is_an_error_even_if_layers_come_later() -> None:
    for module in (Digits(mlp()), BuiltInThreePlaces()):
        with pytest.raises(ValueError, match=r"'nett\.\*' matches no parameter"):
            nets.fit(module, InitCallback("orthogonal", scope=["nett.*"]))
        assert not nets.hooks(module)


def test_a_function_as_strategy() -> None:
    def tiny(info: Any) -> Distribution:
        return Normal(0.001)

    found = started(Digits(mlp()), quiet(tiny))
    assert nets.same(found, nets.weights(direct(mlp(), tiny)))


def test_lsuv_gives_unit_outputs_on_the_batch_it_took() -> None:
    module = Digits(mlp())
    start = started(module, quiet("lsuv"))
    net = mlp()
    net.load_state_dict({key.removeprefix("net."): value for key, value in start.items()})
    hidden = net[:3](spaced()[0])
    assert float(hidden.detach().std(correction=0)) == pytest.approx(1, rel=1e-4)


def test_a_stream_calibrates_on_its_first_batch(said: list[str]) -> None:
    callback, module, stream = quiet("lsuv"), Digits(mlp()), Stream()
    start = AtStart()
    nets.fit(module, callback, start, loader=DataLoader(stream, 48), max_steps=1)
    first = next(iter(DataLoader(Stream(), 48)))
    assert nets.same(start.weights, nets.weights(direct(mlp(), "lsuv", first)))
    assert callback.plan is not None
    assert callback.plan.calibrate_ is None
    assert "calibrated" in "\n".join(said)
    assert "not calibrated" not in "\n".join(said)


@pytest.mark.case(12)
def test_validation_before_fit_changes_nothing_and_fit_still_initializes() -> None:
    module, callback = Validated(mlp()), quiet("orthogonal")
    before, data = nets.weights(module), DataLoader(digits(), 600)
    trainer = nets.trainer(callback, start := AtStart(), max_steps=1)
    trainer.validate(module, data, verbose=False)
    trainer.test(module, data, verbose=False)
    trainer.predict(module, data)
    assert nets.same(nets.weights(module), before)
    assert callback.plan is None
    trainer.fit(module, nets.ordered(), data)
    assert nets.same(start.weights, nets.weights(direct(mlp(), "orthogonal")))
    after = nets.weights(module)
    trainer.validate(module, data, verbose=False)
    assert nets.same(nets.weights(module), after)


@pytest.mark.case(13)
@pytest.mark.parametrize("strategy", ["orthogonal", "auto"])
def test_tuner_then_fit_starts_from_our_weights(strategy: str) -> None:
    module, callback = Digits(noisy()), quiet(strategy)
    trainer = nets.trainer(callback, start := AtStart(), max_steps=2)
    tried: list[torch.Tensor] = []
    watch = module.net[0].register_forward_hook(
        lambda m, *_: tried.append(m.weight.detach().clone())
    )
    Tuner(trainer).lr_find(module, nets.ordered(), num_training=8, min_lr=1e-4, max_lr=1e-2)
    watch.remove()
    expected = nets.weights(direct(noisy(), strategy))
    assert torch.equal(tried[-8], expected["net.0.weight"])  # the first of the finder's steps
    assert not nets.hooks(module)
    start.weights = {}
    trainer.fit(module, nets.ordered())
    assert nets.same(start.weights, expected)
    assert callback.plan is not None
    assert callback.fingerprint is not None


@pytest.mark.case(14)
def test_a_learning_rate_finder_in_the_run_is_neither_watched_nor_taken_for_a_resume() -> None:
    module, callback, start = Digits(noisy()), InitCallback("orthogonal", seed=3), AtStart()
    finder = LearningRateFinder(num_training_steps=8, min_lr=1e-4, max_lr=1e-2)
    trainer = nets.fit(module, callback, start, finder, max_steps=3)
    assert ".lr_find" in str(trainer.ckpt_path)
    assert nets.same(start.weights, nets.weights(direct(noisy(), "orthogonal")))
    assert callback.report is not None
    assert sorted(callback.report.readings.loss) == [0, 1, 2]
    assert callback.plan is not None
    assert not nets.hooks(module)


class Frozen(Digits):
    def __init__(self) -> None:
        super().__init__(mlp())
        self.net[0].requires_grad_(False)
        self.table = nn.Embedding(10, 32)
        self.out = nn.Linear(32, 10, bias=False)
        self.out.weight = self.table.weight

    def loss(self, batch: Any) -> torch.Tensor:
        x, y = batch
        hidden = self.net[:4](x) + self.table(y * 0)
        return nn.functional.cross_entropy(self.out(hidden) + self.net[4](hidden), y)


@pytest.mark.case(17, 37)
def test_frozen_weights_are_kept_and_ties_stay_ties() -> None:
    module = Frozen()
    before, tied = nets.weights(module), module.table.weight
    callback = quiet("xavier_uniform")
    found = started(module, callback)
    assert nets.same(found["net.0.weight"], before["net.0.weight"])
    assert not nets.same(found["net.2.weight"], before["net.2.weight"])
    assert module.out.weight is module.table.weight is tied
    assert not nets.same(found["table.weight"], before["table.weight"])
    again = Frozen()
    again.load_state_dict({**again.state_dict(), **before, "out.weight": before["table.weight"]})
    expected = Frozen()
    initialize_(expected, "xavier_uniform", seed=3, forward=lambda: expected.loss(spaced()))
    assert nets.same(found["table.weight"], nets.weights(expected)["table.weight"])


@pytest.mark.case(38)
def test_an_optimizer_made_before_keeps_its_tensors() -> None:
    module = Digits(mlp())
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module.configure_optimizers = lambda: optimizer  # as LightningCLI does
    owned = [id(p) for p in optimizer.param_groups[0]["params"]]
    start = started(module, quiet("orthogonal"))
    assert [id(p) for p in module.parameters()] == owned
    assert nets.same(start, nets.weights(direct(mlp(), "orthogonal")))
    assert not nets.same(nets.weights(module), start)
