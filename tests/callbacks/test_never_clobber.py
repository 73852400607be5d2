"""Weights that were trained, loaded or restored are never written again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_init import InitCallback
from lightning_init.callbacks.actions import UnhealthyWarning
from tests.callbacks import nets
from tests.callbacks.nets import AtStart, Digits, Rows, mlp, noisy

NETS: dict[str, Callable[[], nn.Module]] = {"mlp": mlp, "batch_norm": noisy, "lstm": Rows}


class Saved(Digits):
    """Can be loaded from a checkpoint without arguments."""

    def __init__(self, kind: str = "mlp") -> None:
        super().__init__(NETS[kind](), lr=0.02)
        self.save_hyperparameters()


def trained(kind: str, *callbacks: pl.Callback, steps: int = 60, **arguments: Any) -> Any:
    module = Saved(kind)
    trainer = nets.fit(module, *callbacks, max_steps=steps, **arguments)
    return module, trainer


def checkpoint(kind: str, steps: int = 60) -> Path:
    _, trainer = trained(kind, steps=steps)
    trainer.save_checkpoint("last.ckpt")
    return Path("last.ckpt")


def weights_in(path: Path) -> dict[str, Tensor]:
    state = torch.load(path, weights_only=False)["state_dict"]
    return {
        key: value for key, value in state.items() if "running" not in key and "num_b" not in key
    }


@pytest.mark.case(6)
@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("strategy", ["orthogonal", "lsuv", "auto"])
def test_a_resumed_run_keeps_the_checkpoint(kind: str, strategy: str, said: list[str]) -> None:
    path = checkpoint(kind, steps=4)
    callback, start = InitCallback(strategy, seed=1), AtStart()
    module = Saved(kind)
    trainer = nets.trainer(callback, start, max_steps=6)
    trainer.fit(module, nets.ordered(), ckpt_path=path)
    assert trainer.global_step == 6
    assert nets.same(start.weights, weights_in(path))
    assert any("resumed: the checkpoint's weights are kept" in text for text in said)
    assert callback.plan is None
    assert callback.report is None
    assert not nets.hooks(module)
    assert not Path("init.json").exists()


class NewHead(Saved):
    """Has a layer that the checkpoint does not know."""

    def __init__(self) -> None:
        super().__init__("mlp")
        self.extra = nn.Linear(10, 10)
        self.strict_loading = False

    def loss(self, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(self.extra(self.net(batch[0])), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.net.parameters(), lr=0.01)


@pytest.mark.case(7)
def test_what_a_checkpoint_lacks_keeps_our_values() -> None:
    path, start = checkpoint("mlp", steps=4), AtStart()
    old = weights_in(path)
    trainer = nets.trainer(InitCallback("constant", {"value": 0.25}), start, max_steps=6)
    trainer.fit(NewHead(), nets.ordered(), ckpt_path=path)
    assert nets.same({key: start.weights[key] for key in old}, old)
    assert (start.weights["extra.weight"] == 0.25).all()


@pytest.mark.case(8, 9)
@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("watched", [True, False], ids=["watched_before", "never_seen"])
@pytest.mark.parametrize("how", ["new_trainer", "deepcopy", "load_from_checkpoint"])
def test_trained_weights_are_kept_in_a_new_trainer(
    kind: str, watched: bool, how: str, said: list[str]
) -> None:
    first = [InitCallback("orthogonal", seed=1)] if watched else []
    module, trainer = trained(kind, *first)
    before = nets.weights(module)
    if how == "load_from_checkpoint":
        trainer.save_checkpoint("trained.ckpt")
        module = Saved.load_from_checkpoint("trained.ckpt", weights_only=False)
    elif how == "deepcopy":
        module = copy.deepcopy(module)
    said.clear()
    nets.fit(module, InitCallback("constant"), start := AtStart(), max_steps=1)
    assert nets.same(start.weights, before)
    text = "\n".join(said)
    assert "left alone" in text or "0 tensors drawn" in text


@pytest.mark.case(8)
@pytest.mark.parametrize("watched", [True, False], ids=["watched_before", "never_seen"])
def test_a_second_fit_of_the_same_trainer_goes_on(watched: bool, said: list[str]) -> None:
    callback, start = InitCallback("orthogonal", seed=1), AtStart()
    module = Saved("mlp")
    trainer = nets.trainer(*([callback] if watched else []), max_steps=60)
    trainer.fit(module, nets.ordered())
    before = nets.weights(module)
    trainer.callbacks[:] = [InitCallback("constant"), start]
    trainer.fit_loop.epoch_loop.max_steps = 62
    trainer.fit(module, nets.ordered())
    assert nets.same(start.weights, before)
    assert trainer.global_step == 62


@pytest.mark.case(8)
def test_the_same_callback_in_a_second_fit_says_so_and_writes_nothing(said: list[str]) -> None:
    callback, module = InitCallback("orthogonal", seed=1), Saved("batch_norm")
    trainer = nets.trainer(callback, max_steps=2)
    trainer.fit(module, nets.ordered())
    before, fingerprint = nets.weights(module), callback.fingerprint
    assert fingerprint is not None
    trainer.fit_loop.epoch_loop.max_steps = 2
    trainer.fit(module, nets.ordered())
    assert nets.same(nets.weights(module), before)
    assert any("has been trained here before" in text for text in said)
    assert callback.plan is None


def test_a_bias_that_training_hardly_moved_is_kept_beside_its_trained_weight() -> None:
    module = copy.deepcopy(trained("mlp")[0])
    with torch.no_grad():
        module.net[4].bias.clamp_(-0.17, 0.17)  # the default's bound is 0.1768
    before = nets.weights(module)
    nets.fit(module, InitCallback("constant"), start := AtStart(), max_steps=1)
    assert nets.same(start.weights, before)


@pytest.mark.filterwarnings("ignore::lightning_init.callbacks.actions.UnhealthyWarning")  # zeros
def test_scope_all_writes_trained_weights() -> None:
    module, _ = trained("mlp")
    nets.fit(module, InitCallback("constant", scope="all"), start := AtStart(), max_steps=1)
    assert all((value == 0).all() for value in start.weights.values())


@pytest.mark.case(10)
def test_a_new_module_in_a_trainer_that_resumed_before_is_initialized_and_watched() -> None:
    path = checkpoint("batch_norm", steps=4)
    callback, start = InitCallback("orthogonal", seed=1), AtStart()
    trainer = nets.trainer(callback, max_steps=6)
    trainer.fit(Saved("batch_norm"), nets.ordered(), ckpt_path=path)
    trainer.callbacks.append(start)
    trainer.fit_loop.epoch_loop.max_steps = 9
    fresh = Saved("batch_norm")
    trainer.fit(fresh, nets.ordered())
    nets.fit(
        Saved("batch_norm"), InitCallback("orthogonal", seed=1), other := AtStart(), max_steps=1
    )
    assert nets.same(start.weights, other.weights)
    assert callback.plan is not None
    assert callback.report is not None
    assert sorted(callback.report.readings.loss) == [0, 1, 2]


@pytest.mark.case(9)
@pytest.mark.filterwarnings("ignore::lightning_init.callbacks.actions.UnhealthyWarning")  # zeros
@pytest.mark.parametrize("how", ["transformers_flag", "structure"])
def test_loaded_tensors_are_kept_by_what_marks_them(how: str) -> None:
    module = Digits(mlp(64))
    weight = module.net[2].weight
    if how == "transformers_flag":
        weight._is_hf_initialized = True
    else:  # what training leaves: one direction far above the noise
        with torch.no_grad():
            weight.add_(0.3 * torch.outer(torch.ones(64), torch.linspace(-1, 1, 64)))
    before = nets.weights(module)["net.2.weight"]
    nets.fit(module, InitCallback("constant"), start := AtStart(), max_steps=1)
    assert torch.equal(start.weights["net.2.weight"], before)


def test_what_is_written_after_setup_is_not_drawn_again_with_the_first_batch() -> None:
    class Loads(pl.Callback):
        def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            with torch.no_grad():
                next(pl_module.parameters()).fill_(0.125)

    module = Digits(mlp())
    trainer = nets.trainer(InitCallback("lsuv"), Loads(), start := AtStart(), max_steps=1)
    with pytest.warns(UnhealthyWarning, match="scheme_audit"):  # and it is told that it was
        trainer.fit(module, DataLoader(nets.Stream(), batch_size=32))
    first = next(name for name, _ in module.named_parameters())
    assert bool((start.weights[first] == 0.125).all())
