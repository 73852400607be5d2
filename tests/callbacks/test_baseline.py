"""One hidden layer beside a LightningModule: the module trains as without it."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from examples.digits import Batch, Digits, DigitsMLP
from lightning_init import HealthMonitor
from lightning_init.callbacks.baseline import ShallowBaseline


def trained(*callbacks: pl.Callback, module: type[DigitsMLP] = DigitsMLP, steps: int = 8) -> Any:
    pl.seed_everything(3, verbose=False)
    net = module(3, 32)
    trainer = pl.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=list(callbacks),
        limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(net, Digits())
    return net


def test_the_module_trains_bit_for_bit_as_without() -> None:
    twin = ShallowBaseline()
    plain, beside = trained(), trained(twin)
    for one, other in zip(plain.parameters(), beside.parameters(), strict=True):
        assert torch.equal(one, other)
    assert "training_step" not in beside.__dict__
    assert twin.reading is not None
    assert list(twin.reading.deep) == list(range(8))
    assert twin.reading.lr == 0.03


class ByHand(DigitsMLP):
    def training_step(self, batch: Batch) -> Tensor:
        return -self.net(batch[0]).log_softmax(1).gather(1, batch[1][:, None]).mean()


def test_a_loss_that_is_not_heard_is_said_and_training_goes_on() -> None:
    twin, monitor = ShallowBaseline(), HealthMonitor(5, 5, verbose=False)
    trained(twin, monitor, module=ByHand)
    assert twin.reading is None
    assert monitor.report is not None
    judged = twin.judged(monitor.report)
    assert any("baseline: the loss is not computed by one" in line for line in judged.blind)
    assert "baseline: the loss is not computed" in str(judged)


def test_an_interrupted_fit_leaves_the_module_as_it_was() -> None:
    class Fails(DigitsMLP):
        def on_train_batch_end(self, *args: object) -> None:
            raise RuntimeError("stop here")

    twin = ShallowBaseline()
    pl.seed_everything(3, verbose=False)
    net = Fails(3, 32)
    trainer = pl.Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[twin],
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="stop here"):
        trainer.fit(net, Digits())
    assert "training_step" not in net.__dict__
