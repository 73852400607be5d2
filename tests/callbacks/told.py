"""A fit all of whose hooks tell that they are called: of callbacks, module, data and strategy."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.core.hooks import CheckpointHooks, DataHooks, ModelHooks
from lightning.pytorch.strategies import SingleDeviceStrategy

from tests.callbacks import nets
from tests.callbacks.nets import Validated, mlp

Tell = Callable[[str, Any], None]


def public(*kinds: type) -> list[str]:
    """The methods that classes offer."""
    found = dict.fromkeys(
        name for kind in kinds for name, _ in inspect.getmembers(kind, inspect.isfunction)
    )
    return [name for name in found if not name.startswith("_")]


CALLBACK = public(pl.Callback)  # all that there are: a new one is covered
STEPS = [
    "configure_callbacks",
    "configure_optimizers",
    "configure_gradient_clipping",
    "optimizer_step",
    "optimizer_zero_grad",
    "lr_scheduler_step",
    "backward",
    "training_step",
    "validation_step",
    "test_step",
    "predict_step",
    "load_state_dict",
]
MODULE = [
    name
    for name in (*public(ModelHooks, DataHooks, CheckpointHooks), *STEPS)
    # The old name of configure_model; the data module has the loaders and moves the batches.
    if name != "configure_sharded_model" and not name.endswith(("dataloader", "transfer", "device"))
]
DATA = [*public(DataHooks), "state_dict", "load_state_dict", "on_exception"]
STRATEGY = [
    name
    for name in public(SingleDeviceStrategy)
    if name.startswith(("connect", "setup", "model_to", "load", "save", "teardown", "on_exc"))
]


def telling(kind: type, names: Iterable[str], title: str, tell: Tell) -> Any:
    """A subclass whose methods tell that they are called, then do what they do."""

    def method(name: str) -> Callable[..., Any]:
        original = getattr(kind, name)

        @functools.wraps(original)
        def told(self: Any, *args: Any, **kwargs: Any) -> Any:
            tell(f"{title}.{name}", self)
            return original(self, *args, **kwargs)

        del told.__wrapped__  # else Lightning takes it for a method that nobody overrides
        told.__signature__ = inspect.signature(original)
        return told

    return type(title, (kind,), {name: method(name) for name in names})


class Ear(pl.Callback):
    def state_dict(self) -> dict[str, Any]:
        return {"heard": 1}


class Data(pl.LightningDataModule):
    def state_dict(self) -> dict[str, Any]:
        return {"seen": 1}

    def train_dataloader(self) -> Any:
        return nets.ordered(600)

    def val_dataloader(self) -> Any:
        return nets.ordered(1800)

    test_dataloader = predict_dataloader = val_dataloader


class Scheduled(Validated):
    """Built in `__init__`, or as late as possible."""

    def __init__(self, late: str = "") -> None:
        super().__init__(None if late else mlp())
        self.late = late

    def setup(self, stage: str) -> None:
        if self.late == "setup":
            self.net = mlp()

    def configure_model(self) -> None:
        if self.late == "configure_model" and not hasattr(self, "net"):
            self.net = mlp()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


def run(
    tell: Tell,
    *callbacks: pl.Callback,
    kind: type = Scheduled,
    late: str = "",
    both_sides: bool = False,
    then: str = "fit",
    arguments: dict[str, Any] | None = None,
    **fit: Any,
) -> tuple[pl.Trainer, Any]:
    """Make all of it, and fit (or what else is asked for).

    Args:
        tell: Is called with the hook's name and its owner.
        callbacks: Beside the telling one, which comes first.
        kind: The module's class.
        late: Where the module builds its layers.
        both_sides: Whether another telling callback comes last.
        then: What the Trainer does.
        arguments: Of the Trainer.
        fit: Of `Trainer.fit`.
    """
    module = telling(kind, MODULE, "module", tell)(**({"late": late} if late else {}))
    data = telling(Data, DATA, "data", tell)()
    ear = telling(Ear, CALLBACK, "callback", tell)
    last = [telling(Ear, CALLBACK, "last", tell)()] if both_sides else []
    strategy = telling(SingleDeviceStrategy, STRATEGY, "strategy", tell)(device="cpu")
    quiet = {"max_epochs": 1, "max_steps": -1, "limit_train_batches": 2, **(arguments or {})}
    trainer = nets.trainer(ear(), *callbacks, *last, strategy=strategy, **quiet)
    trainer.module = module  # where a test finds it after an error
    getattr(trainer, then)(module, datamodule=data, **fit)
    return trainer, module
