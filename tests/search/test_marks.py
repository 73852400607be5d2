"""Validation on the way is what a user would see, and the fit goes on as if nothing had been."""

import random

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric

from lightning_init.search.marks import Marks, validate
from lightning_init.strategies.apply import fingerprint

STEPS = 23
SHUFFLED = pytest.mark.filterwarnings(
    "ignore:Your `val_dataloader`:UserWarning", "ignore:ReduceLROnPlateau cond:RuntimeWarning"
)


def drawn() -> float:
    return float(np.random.rand())  # noqa: NPY002 (users draw from it)


class Restless(pl.LightningModule):
    """Draws from every random state, in training and in validation."""

    def __init__(self, accumulate: int = 1) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Tanh())
        self.head = nn.Linear(8, 1)
        self.seen = MeanMetric()
        self.calls, self.log_of = 0, []

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net(x))

    def loss(self, batch: list[Tensor]) -> Tensor:
        return (self(batch[0]) - batch[1]).square().mean()

    def training_step(self, batch: list[Tensor]) -> Tensor:
        loss = self.loss(batch) * (1 + 0.1 * random.random() + 0.1 * drawn())
        self.seen(loss.detach())
        self.log("train_seen", self.seen, on_step=False, on_epoch=True)
        self.log("train_loss", loss)
        self.log_of.append(float(loss.detach()) + 0.001 * self.calls)
        return loss + 0.001 * self.calls * self.head.bias.square().sum()

    def validation_step(self, batch: list[Tensor]) -> None:
        self.calls += 1
        random.random(), drawn(), torch.rand(3)
        self.seen(torch.tensor(7.0))
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.02)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "monitor": "val_loss", "strict": False},
        }


class Shuffled(pl.LightningDataModule):
    """One generator of its own for all loaders; the validation set is shuffled, too."""

    def __init__(self, own: bool = True) -> None:
        super().__init__()
        self.own = torch.Generator().manual_seed(5) if own else None
        x = torch.randn(48, 4, generator=torch.Generator().manual_seed(1))
        self.rows = TensorDataset(x, x.sum(1, keepdim=True).sin())
        self.asked = 0

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.rows, batch_size=8, shuffle=True, generator=self.own)

    def val_dataloader(self) -> DataLoader:
        self.asked += 1
        return DataLoader(self.rows, batch_size=16, shuffle=True, generator=self.own)


def settings(**more) -> dict:
    quiet = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    return {"accelerator": "cpu", "max_steps": STEPS, "num_sanity_val_steps": 0, **quiet, **more}


def fit(steps=(), own=True, end=None, **more):
    pl.seed_everything(3, verbose=False)
    data, model = Shuffled(own), Restless()
    callbacks = more.pop("callbacks", [])
    if steps or end is not None:
        marks = Marks(steps, dict, end or (lambda *_: None), lambda: False)
        callbacks = [*callbacks, marks]
    trainer = pl.Trainer(callbacks=callbacks, **settings(**more))
    trainer.fit(model, data)
    after = (torch.rand(1).item(), random.random(), drawn())
    state = trainer.optimizers[0].state_dict()["state"]
    facts = (
        *(fingerprint(model), model.log_of, model.calls, data.asked, after),
        {key: float(value) for key, value in trainer.callback_metrics.items()},
        [value["exp_avg"].tolist() for value in state.values()],
        trainer.optimizers[0].param_groups[0]["lr"],
        None if data.own is None else data.own.get_state().tolist(),
        trainer.fit_loop.epoch_loop.val_loop.batch_progress.total.completed,
        [module.training for module in model.modules()],
    )
    return facts, callbacks, model, trainer


@SHUFFLED
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"val_check_interval": 2},
        {"val_check_interval": 5, "check_val_every_n_epoch": None},
        {"accumulate_grad_batches": 2, "limit_val_batches": 1},
        {"reload_dataloaders_every_n_epochs": 1},
    ],
)
def test_the_fit_is_the_same_bit_for_bit_with_and_without(own, more):
    plain, *_ = fit((), own, **more)
    marked, callbacks, *_ = fit((1, 4, 7, 11, 22), own, **more)
    assert marked == plain
    assert [step for step, _ in callbacks[-1].found] == [1, 4, 7, 11, 22, STEPS]
    assert all(metrics["val_loss"] > 0 for _, metrics in callbacks[-1].found)


@SHUFFLED
def test_a_reading_is_what_stopping_there_and_validating_gives():
    _, callbacks, *_ = fit((4, 9))
    for step, metrics in callbacks[-1].found:
        pl.seed_everything(3, verbose=False)
        data, model = Shuffled(), Restless()
        trainer = pl.Trainer(**settings(max_steps=step))
        trainer.fit(model, data)
        logged = float(trainer.callback_metrics["train_loss"])
        [found] = trainer.validate(model, data, verbose=False)
        assert metrics["val_loss"] == pytest.approx(found["val_loss"], rel=1e-6)
        assert metrics["train_loss"] == logged


class Spoiler(pl.Callback):
    """What a user's callback may do in validation: log, count, stop."""

    def __init__(self) -> None:
        self.count = 0

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        self.count += 1
        pl_module.log("from_callback", float(self.count))
        trainer.should_stop = self.count > 1
        trainer.optimizers[0].param_groups[0]["lr"] *= 0.5


@SHUFFLED
def test_a_users_callbacks_are_heard_and_put_back():
    more = {"val_check_interval": 1.0, "check_val_every_n_epoch": 2}
    plain, [alone], *_ = fit(callbacks=[Spoiler()], **more)
    marked, [spoiler, marks], *_ = fit((2, 3, 4, 5), callbacks=[Spoiler()], **more)
    assert marked == plain
    assert spoiler.count == alone.count > 0
    assert [m["from_callback"] for _, m in marks.found[:4]] == [1.0] * 4


@SHUFFLED
def test_on_training_data_and_batches():
    found = {}

    def end(trainer, module) -> None:
        found["val"] = validate(trainer, module)
        found["one"] = validate(trainer, module, batches=1)
        found["train"] = validate(trainer, module, on_training_data=True)
        found["again"] = validate(trainer, module, on_training_data=True)

    plain, *_ = fit(())
    marked, *_ = fit((), end=end)
    assert marked == plain
    assert found["train"] == found["again"]
    assert found["one"] != found["val"], "16 of 48 rows"
    assert found["train"] != found["val"], "3 batches of 8, not all 48 rows"


def test_without_validation_what_training_logs_is_read(monkeypatch):
    monkeypatch.delattr(Restless, "validation_step")
    monkeypatch.setattr(
        Restless, "configure_optimizers", lambda self: torch.optim.SGD(self.parameters(), lr=0.1)
    )
    monkeypatch.delattr(Shuffled, "val_dataloader")
    plain, *_ = fit(())
    marked, callbacks, model, _ = fit((1, 4))
    assert marked == plain
    assert [m["train_loss"] for _, m in callbacks[-1].found[:2]] == [
        pytest.approx(model.log_of[0]),
        pytest.approx(model.log_of[3]),
    ]


def test_an_error_in_validation_leaves_everything_in_place(monkeypatch):
    monkeypatch.setattr(
        Restless, "configure_optimizers", lambda self: torch.optim.SGD(self.parameters(), lr=0.1)
    )

    def broken(self, batch):
        raise ZeroDivisionError

    def tried(trainer, module) -> None:
        with pytest.raises(ZeroDivisionError):
            validate(trainer, module)

    monkeypatch.setattr(Restless, "validation_step", broken)
    facts, *_ = fit((), limit_val_batches=0)

    class Tries(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args) -> None:
            trainer.limit_val_batches = 1
            tried(trainer, pl_module)
            trainer.limit_val_batches = 0

    tried_facts, *_ = fit((), callbacks=[Tries()], limit_val_batches=0)
    assert tried_facts == facts
