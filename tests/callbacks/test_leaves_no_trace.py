"""After the last watched step, and after any error, nothing of ours is left on the model."""

from __future__ import annotations

import copy
import pickle
import signal
from collections.abc import Callable, Iterator
from typing import Any

import lightning.pytorch as pl
import pytest

from lightning_init import HealthMonitor, InitCallback, InitSpec
from tests.callbacks import nets
from tests.callbacks.nets import (
    BuiltInConfigureModel,
    BuiltInSetup,
    BuiltInThreePlaces,
    Digits,
    Rows,
    mlp,
    noisy,
)

MODULES: dict[str, Callable[[], Digits]] = {
    "plain": lambda: Digits(noisy()),
    "lstm": lambda: Digits(Rows()),
    "setup": BuiltInSetup,
    "configure_model": BuiltInConfigureModel,
    "three_places": BuiltInThreePlaces,
}


class HooksByBatch(pl.Callback):
    def __init__(self) -> None:
        self.counts: list[int] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.counts.append(len(nets.hooks(pl_module)))


def test_hooks_are_there_during_sampled_batches_only() -> None:
    for made in (InitCallback("orthogonal", monitor_steps=5), HealthMonitor(monitor_steps=5)):
        seen = HooksByBatch()
        nets.fit(Digits(mlp()), seen, made, max_steps=7)  # listed first: sees them before they go
        assert [bool(count) for count in seen.counts] == [
            False,
            True,
            True,
            False,
            True,
            False,
            False,
        ]


def test_nothing_is_hooked_without_steps_to_monitor() -> None:
    seen = HooksByBatch()
    nets.fit(Digits(mlp()), InitCallback("orthogonal", monitor_steps=0), seen, max_steps=2)
    assert seen.counts == [0, 0]


@pytest.mark.case(2, 3)
@pytest.mark.parametrize("name", MODULES)
def test_nothing_is_left_after_a_fit(name: str) -> None:
    module = MODULES[name]()
    nets.fit(plain := MODULES[name](), max_steps=2)
    nets.fit(module, InitCallback("orthogonal", monitor_steps=50), max_steps=2)
    assert nets.hooks(module) == []
    assert set(vars(module)) - set(vars(plain)) == {"_lightning_init"}
    nets.fit(module, max_steps=1)


STAGES = [
    "setup",
    "configure_model",
    "configure_optimizers",
    "on_fit_start",
    "on_train_start",
    "on_train_batch_start",
    "training_step",
    "on_before_optimizer_step",
    "on_train_batch_end",
    "on_train_epoch_end",
    "on_train_end",
]


class Stumbles(Digits):
    """Fails in one hook, the training step only once training has begun."""

    def __init__(self, stage: str, error: type[BaseException]) -> None:
        super().__init__(mlp())

        def fail(*args: Any, **kwargs: Any) -> None:
            if stage != "training_step" or (self.trainer.training and self.seen_batches):
                raise error("on purpose")
            return self.loss(args[0])

        self.seen_batches = 0
        self.fail = fail
        self.stage = stage

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.seen_batches += 1
        if self.stage == "on_train_batch_start":
            self.fail()


def stumbling(stage: str, error: type[BaseException]) -> Digits:
    """Its class has the hook, as a user's would."""
    hook = {stage: lambda self, *args, **kwargs: self.fail(*args, **kwargs)}
    kind = Stumbles if stage == "on_train_batch_start" else type("Here", (Stumbles,), hook)
    return kind(stage, error)


@pytest.mark.case(36)
@pytest.mark.parametrize("stage", STAGES)
def test_nothing_is_left_after_an_error_anywhere(stage: str) -> None:
    module, callback = stumbling(stage, ArithmeticError), InitCallback("orthogonal")
    with pytest.raises(ArithmeticError, match="on purpose"):
        nets.fit(module, callback, max_steps=2)
    assert nets.hooks(module) == []


@pytest.fixture
def _interrupts() -> Iterator[None]:
    """Lightning ignores the signal after the first one."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.case(36)
@pytest.mark.usefixtures("_interrupts")
@pytest.mark.parametrize("stage", ["setup", "on_fit_start", "training_step"])
def test_nothing_is_left_after_an_interrupt(stage: str) -> None:
    module, callback = stumbling(stage, KeyboardInterrupt), InitCallback("orthogonal")
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        nets.fit(module, callback, max_steps=2)
    assert nets.hooks(module) == []


@pytest.mark.case(36)
def test_nothing_is_left_after_an_error_of_our_own() -> None:
    for module in (Digits(mlp()), BuiltInSetup(), BuiltInConfigureModel()):
        with pytest.raises(ValueError, match="matches no parameter"):
            nets.fit(module, InitCallback("auto", overrides={"head.weight": "normal"}))
        assert nets.hooks(module) == []


@pytest.mark.case(36)
def test_an_error_in_another_callback_before_the_layers_exist_leaves_the_hook_of_the_module() -> (
    None
):
    class Fails(pl.Callback):
        def setup(self, trainer, pl_module, stage) -> None:
            raise ArithmeticError

    module = BuiltInConfigureModel()
    with pytest.raises(ArithmeticError):
        nets.fit(module, InitCallback("orthogonal"), Fails())
    assert nets.hooks(module) == []
    nets.fit(module, InitCallback("orthogonal", seed=3), start := nets.AtStart(), max_steps=1)
    assert len(start.weights) == 6


@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
@pytest.mark.parametrize("when", ["new", "used"])
def test_a_copied_callback_does_the_same(how: str, when: str) -> None:
    spec = InitSpec("orthogonal", {"gain": 1.5}, {"role:bias": "normal"}, seed=4)
    callback = InitCallback(spec, monitor_steps=7, scope="all")
    if when == "used":
        nets.fit(Digits(mlp()), callback, max_steps=2)
    two = pickle.loads(pickle.dumps(callback)) if how == "pickle" else copy.deepcopy(callback)
    starts = []
    for each in (callback, two):
        nets.fit(Digits(mlp()), each, start := nets.AtStart(), max_steps=1)
        starts.append(start.weights)
        assert each.plan is not None
        assert each.report is not None
    assert nets.same(*starts)
    assert two.plan is not callback.plan
