"""Layers without shapes or memory at `setup`, and parametrized ones, inside a Trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from safetensors.torch import load_file
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader

from lightning_init import InitCallback, initialize_
from tests.callbacks import nets
from tests.callbacks.nets import AtStart, Digits, Stream, Validated, digits, mlp, noisy
from tests.callbacks.test_placement import STRATEGIES, direct, quiet, started
from tests.zoo_parametrized import EXACT, INEXACT


def lazy(width: int = 32) -> nn.Sequential:
    return nn.Sequential(
        nn.LazyLinear(width), nn.ReLU(), nn.LazyLinear(width), nn.ReLU(), nn.LazyLinear(10)
    )


class LazyInConfigureModel(Digits):
    def configure_model(self) -> None:
        if not hasattr(self, "net"):
            self.net = lazy()


def first(rows: int = 32) -> Any:
    return next(iter(nets.ordered(rows)))


@pytest.mark.case(40)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("build", [lambda: Digits(lazy()), LazyInConfigureModel])
def test_lazy_layers_get_the_weights_of_eager_ones(
    strategy: str, build: Callable[[], Digits]
) -> None:
    module = build()
    found = started(module, quiet(strategy))
    assert nets.same(found, nets.weights(direct(mlp(), strategy)))
    assert not nets.same(nets.weights(module), found)  # one step has been made
    assert [type(layer) for layer in module.net] == [type(layer) for layer in mlp()]
    assert not nets.hooks(module)


@pytest.mark.case(40)
def test_lazy_norms_too() -> None:
    net = noisy()
    net[0], net[1], net[4] = nn.LazyLinear(32), nn.LazyBatchNorm1d(), nn.LazyLinear(10)
    found = started(Digits(net), quiet("orthogonal"))
    assert nets.same(found, nets.weights(direct(noisy(), "orthogonal")))


@pytest.mark.case(40)
@pytest.mark.parametrize("strategy", ["auto", "orthogonal", "lsuv"])
@pytest.mark.parametrize("kind", [Digits, Validated])
def test_a_stream_gives_the_shapes_with_its_first_batch(strategy: str, kind: type[Digits]) -> None:
    module = kind(lazy())
    callback, start = quiet(strategy), AtStart()
    run = nets.trainer(callback, start, max_steps=1)
    validated = [nets.ordered()] if kind is Validated else []
    run.fit(module, DataLoader(Stream(), batch_size=32), *validated)
    expected = direct(mlp(), strategy, first())
    assert nets.same(start.weights, nets.weights(expected))
    assert callback.plan is not None
    assert callback.plan.traced
    assert not nets.same(nets.weights(module), start.weights)


@pytest.mark.case(6, 40)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("lr", [1e-9, 0.01])
def test_a_restored_checkpoint_wins(stream: bool, lr: float) -> None:
    """Also where its weights still look as a constructor draws them."""
    trained = Digits(lazy(), lr)
    run = nets.fit(trained, max_steps=2)
    run.save_checkpoint("last.ckpt")
    module, callback, start = Digits(lazy(), lr), quiet("orthogonal"), AtStart()
    loader = DataLoader(Stream() if stream else digits(), batch_size=32)
    nets.trainer(callback, start, max_steps=3).fit(module, loader, ckpt_path="last.ckpt")
    assert nets.same(start.weights, nets.weights(trained))


@pytest.mark.case(40)
def test_keep_leaves_lazy_layers_to_lightning() -> None:
    found = []
    for callbacks in ([], [InitCallback("keep", verbose=False)]):
        nets.seed_all()
        module = Digits(lazy())
        nets.fit(module, *callbacks, max_steps=3)
        found.append(nets.weights(module))
    assert nets.same(*found)


@pytest.mark.case(39)
@pytest.mark.parametrize("kind", ["weight_norm", "old weight_norm", "spectral_norm", "pruning"])
@pytest.mark.parametrize("strategy", ["auto", "orthogonal"])
def test_parametrized_layers(kind: str, strategy: str) -> None:
    def net() -> nn.Sequential:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # for the masks of pruning
            made = mlp()
            for layer in made[::2]:
                (EXACT | INEXACT)[kind](layer)
            return made

    module = Digits(net())
    found = started(module, quiet(strategy))
    assert nets.same(found, nets.weights(direct(net(), strategy)))
    changed = [not torch.equal(p, found[name]) for name, p in module.named_parameters()]
    assert all(changed)


@pytest.mark.case(39)
@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "orthogonal", "pruning"])
def test_healthy_parametrized_layers_cause_no_findings(kind: str) -> None:
    net = mlp()
    for layer in net[::2]:
        (EXACT | INEXACT)[kind](layer)
    callback = InitCallback("kaiming_normal", seed=0, monitor_steps=3, verbose=False)
    nets.fit(Digits(net), callback, max_steps=5)
    assert callback.report is not None
    assert [str(f) for f in callback.report.findings if f.detector == "scheme_audit"] == []


class Late(SingleDeviceStrategy):
    """Takes the memory when the model goes to its device, as sharded strategies do."""

    def model_to_device(self) -> None:
        self.model.to_empty(device=self.root_device)


def test_memory_taken_by_the_strategy() -> None:
    with torch.device("meta"):
        net = mlp()
    found = started(Digits(net), quiet("orthogonal"), strategy=Late(device="cpu"))
    expected = Digits(mlp())
    initialize_(expected, "orthogonal", seed=3)
    assert nets.same(found, nets.weights(expected))


@pytest.mark.case(27)
def test_a_module_made_without_values_by_the_trainer() -> None:
    run = nets.trainer(quiet("orthogonal", scope="all"), start := AtStart(), max_steps=1)
    with run.init_module(empty_init=True):
        module = Digits(mlp())
    run.fit(module, nets.ordered())
    assert nets.same(start.weights, nets.weights(direct(mlp(), "orthogonal")))


@pytest.mark.case(39)
@pytest.mark.parametrize("kind", ["weight_norm", "old weight_norm", "spectral_norm"])
def test_saved_weights_have_the_names_of_the_state_dict(kind: str) -> None:
    def module() -> Digits:
        net = mlp()
        (EXACT | INEXACT)[kind](net[0])
        return Digits(net)

    start = AtStart()
    nets.fit(module(), quiet("orthogonal", save_init="init.safetensors"), start, max_steps=1)
    twin = module()
    left = twin.load_state_dict(load_file("init.safetensors"), strict=False)
    assert not left.unexpected_keys
    assert nets.same(nets.weights(twin), start.weights)


@pytest.mark.case(40)
def test_a_stream_into_lazy_layers_is_watched_from_the_first_batch() -> None:
    callback = InitCallback("kaiming_normal", seed=0, monitor_steps=2, verbose=False)
    nets.fit(Digits(lazy()), callback, loader=DataLoader(Stream(), batch_size=32), max_steps=3)
    assert callback.report is not None
    assert "lazy" not in str(callback.report)
    assert callback.fingerprint is not None


class NetAtStart(AtStart):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        super().on_train_batch_start(trainer, pl_module.net, batch, batch_idx)


@pytest.mark.case(40)
def test_a_lazy_layer_that_is_never_used_stays_lazy() -> None:
    module = Digits(lazy())
    module.spare = nn.LazyLinear(3)
    callback, start = quiet("orthogonal", scope="net.*", save_init="init.safetensors"), NetAtStart()
    nets.fit(module, callback, start, max_steps=1)
    assert nets.same(start.weights, nets.weights(direct(mlp(), "orthogonal").net))
    assert set(load_file("init.safetensors")) == {f"net.{name}" for name in start.weights}
    assert is_lazy(module.spare.weight)
