"""What Lightning does when: the order of its hooks, and what is set in each of them.

Where weights may change rests on all of this. If a test here fails under a new Lightning while
those of the callback pass, read what has moved, and whether `callbacks/` still does the right thing.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import (
    EarlyStopping,
    LearningRateFinder,
    ModelCheckpoint,
    OnExceptionCheckpoint,
)
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_init.callbacks.later import After
from tests.callbacks import nets
from tests.callbacks.nets import Digits, mlp
from tests.callbacks.told import run

SETUP = """
strategy.connect module.configure_callbacks strategy.setup_environment
data.prepare_data module.prepare_data data.setup callback.setup module.setup module.configure_model
"""
RESTORE = """
strategy.load_checkpoint module.on_load_checkpoint strategy.load_model_state_dict
module.load_state_dict data.load_state_dict callback.on_load_checkpoint callback.load_state_dict
"""
TO_DEVICE = "strategy.setup strategy.model_to_device"
OPTIMIZERS = "strategy.setup_optimizers module.configure_optimizers"
PRECISION = "strategy.setup_precision_plugin"
FIT_START = "callback.on_fit_start module.on_fit_start"
TRANSFER = """
data.on_before_batch_transfer data.transfer_batch_to_device data.on_after_batch_transfer
"""
EVALUATED = f"""
module.on_STAGE_model_eval callback.on_STAGE_start module.on_STAGE_start
callback.on_STAGE_epoch_start module.on_STAGE_epoch_start {TRANSFER}
callback.on_STAGE_batch_start module.on_STAGE_batch_start module.STEP
callback.on_STAGE_batch_end module.on_STAGE_batch_end
callback.on_STAGE_epoch_end module.on_STAGE_epoch_end callback.on_STAGE_end module.on_STAGE_end
"""


def evaluated(stage: str, step: str) -> str:
    return EVALUATED.replace("STAGE", stage).replace("STEP", step)


VALIDATED = f"{evaluated('validation', 'validation_step')} module.on_validation_model_train"
SANITY = f"""
callback.on_sanity_check_start data.val_dataloader {VALIDATED} callback.on_sanity_check_end
"""
BATCH = f"""
{TRANSFER} callback.on_train_batch_start module.on_train_batch_start
module.optimizer_step module.training_step
callback.on_before_zero_grad module.on_before_zero_grad module.optimizer_zero_grad
callback.on_before_backward module.on_before_backward module.backward
callback.on_after_backward module.on_after_backward
callback.on_before_optimizer_step module.on_before_optimizer_step
module.configure_gradient_clipping LAST callback.on_train_batch_end module.on_train_batch_end
"""
EPOCH = f"""
data.train_dataloader callback.on_train_start module.on_train_start
callback.on_train_epoch_start module.on_train_epoch_start
{BATCH.replace("LAST", "")} {BATCH.replace("LAST", "module.lr_scheduler_step")}
module.on_validation_model_zero_grad {VALIDATED}
callback.on_train_epoch_end module.on_train_epoch_end
"""
SAVE = """
callback.state_dict data.state_dict callback.on_save_checkpoint module.on_save_checkpoint
strategy.save_checkpoint
"""
ON_EXCEPTION = """
callback.on_exception last.on_exception data.on_exception strategy.on_exception strategy.teardown
"""
TRAIN_END = "callback.on_train_end module.on_train_end"
END = "data.teardown callback.teardown module.teardown"
FIT_END = f"strategy.teardown callback.on_fit_end module.on_fit_end {END}"


def heard(*callbacks: pl.Callback, **arguments: Any) -> list[str]:
    names: list[str] = []
    run(lambda name, _: names.append(name), *callbacks, **arguments)
    return names


def test_the_order_of_hooks_in_fit() -> None:
    checkpoint = ModelCheckpoint(dirpath="saved")
    found = heard(checkpoint, arguments={"enable_checkpointing": True})
    parts = (SETUP, TO_DEVICE, OPTIMIZERS, PRECISION, FIT_START, SANITY, EPOCH, SAVE, TRAIN_END)
    assert found == " ".join((*parts, FIT_END)).split()


def test_the_order_of_hooks_in_a_resumed_fit() -> None:
    first, _ = run(lambda *_: None)
    first.save_checkpoint("first.ckpt")
    found = heard(ckpt_path="first.ckpt", weights_only=False, arguments={"max_epochs": 2})
    parts = (SETUP, RESTORE, TO_DEVICE, OPTIMIZERS, PRECISION, FIT_START)
    states = "strategy.load_optimizer_state_dict"
    assert found == " ".join((*parts, states, SANITY, EPOCH, TRAIN_END, FIT_END)).split()


@pytest.mark.parametrize(
    ("what", "stage", "step", "loader"),
    [
        ("validate", "validation", "validation_step", "val_dataloader"),
        ("test", "test", "test_step", "test_dataloader"),
        ("predict", "predict", "predict_step", "predict_dataloader"),
    ],
)
def test_the_order_of_hooks_elsewhere(what: str, stage: str, step: str, loader: str) -> None:
    last = "" if what == "predict" else f"module.on_{stage}_model_train"
    parts = (SETUP, TO_DEVICE, PRECISION, f"data.{loader}", evaluated(stage, step), last)
    assert heard(then=what) == " ".join((*parts, "strategy.teardown", END)).split()


def test_after_an_error_only_on_exception_comes() -> None:
    names: list[str] = []

    def tell(name: str, owner: Any) -> None:
        names.append(name)
        if name == "module.on_after_backward":
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        run(tell, both_sides=True)
    where = names.index("module.on_after_backward") + 1
    assert names[where:] == ON_EXCEPTION.split()


def test_the_order_of_callbacks() -> None:
    """Finders first, checkpoints last; all of a hook before the next hook."""
    names = heard(both_sides=True)
    first, last = names.index("callback.setup"), names.index("last.setup")
    assert last == first + 1
    mine, finder = pl.Callback(), LearningRateFinder()
    save, stop = ModelCheckpoint(), EarlyStopping("train_loss")
    rescue = OnExceptionCheckpoint(".")
    made = nets.trainer(save, rescue, mine, stop, finder, enable_checkpointing=True)
    assert made.callbacks[:3] == [finder, mine, stop]
    assert made.callbacks[3:] == [save, rescue]


class State(pl.Callback):
    """What is set in each hook, when it comes first."""

    def __init__(self) -> None:
        self.at: dict[str, dict[str, Any]] = {}

    def tell(self, name: str, owner: Any) -> None:
        trainer = getattr(owner, "_trainer", None) or getattr(owner, "trainer", None)
        if name.startswith("module.") and trainer is not None:
            self.note(name, trainer, owner)

    def note(self, name: str, trainer: Any, module: Any) -> None:
        parameters = list(module.parameters())
        self.at.setdefault(
            name,
            {
                "ckpt_path": trainer.ckpt_path,
                "step": trainer.global_step,
                "optimizers": len(trainer.optimizers),
                "dtypes": {p.dtype for p in parameters},
                "count": len(parameters),
                "grad": [p.requires_grad for p in parameters],
                "loader": trainer.train_dataloader is not None,
                "training": module.training,
                "values": nets.weights(module),
                "stage": trainer.state.fn,
                "inference": torch.is_inference_mode_enabled(),
                "recording": torch.is_grad_enabled(),
                "restarting": trainer.fit_loop.restarting,
            },
        )

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.stage = stage
        self.note("callback.setup", trainer, pl_module)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.note("callback.on_fit_start", trainer, pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.note("callback.on_train_start", trainer, pl_module)

    def __getitem__(self, place: str) -> dict[str, Any]:
        return self.at[place]


@pytest.mark.parametrize("late", ["", "setup", "configure_model"])
def test_what_exists_at_setup(late: str) -> None:
    state = State()
    run(state.tell, state, late=late)
    at = state["callback.setup"]
    assert (at["ckpt_path"], at["step"], at["optimizers"], at["loader"]) == (None, 0, 0, False)
    assert at["count"] == (0 if late else 6)
    assert state["callback.on_fit_start"]["count"] == 6
    assert state["callback.on_fit_start"]["optimizers"] == 1
    assert not state["callback.on_fit_start"]["loader"]
    assert not state["module.validation_step"]["loader"]  # in the sanity check
    assert not state["module.validation_step"]["training"]
    assert not state["module.validation_step"]["recording"]
    assert not state["module.validation_step"]["inference"]
    assert state["callback.on_train_start"]["loader"]
    assert state["callback.on_train_start"]["training"]
    # A str and an enum: it equals "fit", and does not print so.
    assert state.stage == "fit"
    assert isinstance(state.stage, TrainerFn)


def test_what_a_checkpoint_has_restored_and_when() -> None:
    first, trained = run(lambda *_: None)
    first.save_checkpoint("first.ckpt")
    state, old = State(), nets.weights(trained)
    run(
        state.tell,
        state,
        ckpt_path="first.ckpt",
        weights_only=False,
        arguments={"max_epochs": 2},
    )
    at = state["callback.setup"]
    assert (at["ckpt_path"], at["step"]) == (None, 0)  # nothing tells that this run is resumed
    assert not nets.same(at["values"], old)
    at = state["callback.on_fit_start"]
    assert (at["ckpt_path"], at["step"]) == ("first.ckpt", 0)  # weights, and no more
    assert nets.same(at["values"], old)
    at = state["callback.on_train_start"]
    assert (at["ckpt_path"], at["step"]) == ("first.ckpt", 2)


def test_a_path_of_an_earlier_run_is_there_in_the_next() -> None:
    first = nets.fit(Digits(mlp()), max_steps=2)
    first.save_checkpoint("first.ckpt")
    state = State()
    trainer = nets.trainer(state, max_steps=3)
    trainer.fit(Digits(mlp()), nets.ordered(), ckpt_path="first.ckpt", weights_only=False)
    trainer.fit_loop.epoch_loop.max_steps = 4
    state.at = {}
    trainer.fit(Digits(mlp()), nets.ordered())
    assert str(state["callback.setup"]["ckpt_path"]) == "first.ckpt"
    assert state["callback.on_train_start"]["step"] == 3


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("32-true", torch.float32),
        ("bf16-mixed", torch.float32),
        ("bf16-true", torch.bfloat16),
        ("16-true", torch.float16),
        ("64-true", torch.float64),
    ],
)
def test_precision_comes_after_setup(precision: Any, dtype: torch.dtype) -> None:
    state = State()
    module = Digits(mlp())
    trainer = nets.trainer(state, precision=precision, limit_train_batches=0)
    trainer.fit(module, nets.ordered())
    assert state["callback.setup"]["dtypes"] == {torch.float32}
    assert state["callback.on_fit_start"]["dtypes"] == {dtype}


def test_the_default_type_in_configure_model_is_that_of_the_precision() -> None:
    found = []

    class Builds(Digits):
        def configure_model(self) -> None:
            found.append(torch.empty(1).dtype)

    nets.fit(Builds(mlp()), precision="bf16-true", limit_train_batches=0)
    assert found == [torch.bfloat16]


def test_a_learning_rate_finder_leaves_the_marks_of_a_resume() -> None:
    state = State()
    finder = LearningRateFinder(num_training_steps=4, min_lr=1e-4, max_lr=1e-2)
    trainer = nets.trainer(state, finder, max_steps=1)
    trainer.fit(Digits(mlp()), nets.ordered())
    assert ".lr_find" in str(state["callback.on_fit_start"]["ckpt_path"])
    assert state["callback.on_train_start"]["step"] == 0
    assert state["callback.on_fit_start"]["restarting"]


def test_a_wrapped_hook_still_counts_as_overridden() -> None:
    class Plain(Digits):
        pass

    class Builds(Digits):
        def configure_model(self) -> None: ...

    plain, builds = Plain(mlp()), Builds(mlp())
    hooks = [After(builds, "configure_model", lambda: None), After(plain, "setup", lambda: None)]
    assert is_overridden("configure_model", builds)
    assert not is_overridden("setup", plain)
    for hook in hooks:
        hook.remove()
    assert not nets.hooks(plain) + nets.hooks(builds)


def test_steps_are_counted_over_all_optimizers() -> None:
    class Two(Digits):
        def __init__(self) -> None:
            super().__init__(mlp())
            self.automatic_optimization = False

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(self.parameters(), 0.1) for _ in range(2)]

        def training_step(self, batch: Any, batch_idx: int) -> None:
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(self.loss(batch))
                optimizer.step()

    trainer = nets.fit(Two(), max_steps=-1, max_epochs=1, limit_train_batches=3)
    assert trainer.global_step == 6
