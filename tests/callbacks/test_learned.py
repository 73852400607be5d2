"""metainit and gradinit inside of a Trainer: the loss is that of training_step."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset, default_collate

from lightning_init import InitCallback, InitSpec, initialize_
from lightning_init.strategies.needs import UnsuitableError
from tests.callbacks.nets import AtStart, Digits, digits, mlp, noisy, ordered
from tests.zoo import ids

SCHEMES = ["metainit", "gradinit"]
by_name = pytest.mark.parametrize("scheme", SCHEMES)
PARAMS = {"steps": 5, "lr": 0.01, "accept": "always"}


def fit(module: pl.LightningModule, scheme: str, data: Any = None, **arguments: Any) -> Any:
    callback = InitCallback(scheme, PARAMS, seed=3, monitor_steps=0, loss_steps=0, verbose=False)
    start = AtStart()
    trainer = pl.Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[callback, start],
        **arguments,
    )  # fmt: skip
    trainer.fit(module, ordered() if data is None else data)
    return callback, start


@by_name
def test_training_starts_from_what_the_direct_call_gives(scheme):
    callback, start = fit(Digits(mlp()), scheme)
    (done,) = callback.plan.calibrations
    assert done.after < done.before

    twin, data = Digits(mlp()), digits()
    batch = default_collate([data[i * len(data) // 32] for i in range(32)])
    initialize_(twin, InitSpec(scheme, PARAMS), seed=3, forward=lambda: twin.loss(batch))
    for name, value in twin.named_parameters():
        assert torch.equal(start.weights[name], value), name


@by_name
def test_dropout_and_batch_statistics(scheme):
    module = Digits(noisy())
    callback, _ = fit(module, scheme)
    (done,) = callback.plan.calibrations
    assert done.after < done.before
    assert int(module.net[1].num_batches_tracked) == 2, "the two steps of training"


@by_name
def test_mixed_precision_of_the_trainer_does_not_reach_the_objective(scheme):
    one, two = (fit(Digits(mlp()), scheme, precision=p)[0] for p in ("32-true", "bf16-mixed"))
    for a, b in zip(one.plan, two.plan, strict=True):
        assert a.distribution == b.distribution


@by_name
def test_a_step_without_a_loss_is_an_error_that_names_it(scheme):
    class Silent(Digits):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.loss(batch)

    module = Silent(mlp())
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    with pytest.raises(UnsuitableError, match=f"{scheme} needs a loss, one number.*gave None"):
        fit(module, scheme)
    assert all(torch.equal(p, before[n]) for n, p in module.named_parameters())


@by_name
def test_manual_optimization(scheme):
    class Manual(Digits):
        def __init__(self) -> None:
            super().__init__(mlp())
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()

    (done,) = fit(Manual(), scheme)[0].plan.calibrations
    assert done.after < done.before


@by_name
def test_a_tiny_gpt2(scheme):
    transformers = pytest.importorskip("transformers")

    class Language(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            config = transformers.GPT2Config(
                vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2,
                bos_token_id=0, eos_token_id=0, attn_implementation="sdpa",
            )  # fmt: skip
            self.gpt = transformers.GPT2LMHeadModel(config)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            logits = self.gpt(input_ids=batch[0]).logits[:, :-1]
            return F.cross_entropy(logits.flatten(0, 1), batch[0][:, 1:].flatten())

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    module = Language()
    callback, _ = fit(module, scheme, DataLoader(TensorDataset(ids(8, 12, below=50)), batch_size=4))
    (done,) = callback.plan.calibrations
    assert done.after < done.before
    assert module.gpt.lm_head.weight is module.gpt.transformer.wte.weight
