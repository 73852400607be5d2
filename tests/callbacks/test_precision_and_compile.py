"""Every precision, compiled in every way or not at all: the same weights, and right readings."""

from __future__ import annotations

import shutil
from functools import cache
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from lightning_init import InitCallback
from tests.callbacks import nets
from tests.callbacks.nets import AtStart, Digits, mlp
from tests.callbacks.watching import fp16, losses, reading
from tests.conftest import Ran

HOW = ("", "the LightningModule", "a submodule", "in configure_model", "in place")
KEPT_IN = {
    "32-true": torch.float32,
    "bf16-mixed": torch.float32,
    "16-mixed": torch.float32,
    "bf16-true": torch.bfloat16,
    "16-true": torch.float16,
    "64-true": torch.float64,
}
EXACT = {"32-true": 1e-4, "64-true": 1e-4}  # else 8 or 11 bits of a sum of many


class Unlogged(Digits):
    """`self.log` inside of a compiled module fails without us, too."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.loss(batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class CompiledLate(Unlogged):
    def __init__(self, backend: str) -> None:
        super().__init__()
        self.backend = backend

    def configure_model(self) -> None:
        if not hasattr(self, "net"):
            self.net = torch.compile(mlp(), backend=self.backend)


def made(how: str, backend: str) -> Any:
    torch._dynamo.reset()
    if how == "in configure_model":
        return CompiledLate(backend)
    module: Any = Unlogged(mlp())
    if how == "the LightningModule":
        return torch.compile(module, backend=backend)
    if how == "a submodule":
        module.net = torch.compile(module.net, backend=backend)
    if how == "in place":
        module.net.compile(backend=backend)
    return module


def run(
    how: str, precision: str, *others: pl.Callback, backend: str = "eager", sanity: bool = False
) -> tuple[InitCallback, AtStart, pl.Trainer]:
    callback, start = InitCallback("orthogonal", seed=3), AtStart()
    given: dict[str, Any] = {"limit_val_batches": int(sanity)}
    given |= {"plugins": [fp16()]} if precision == "16-mixed" else {"precision": precision}
    trainer = nets.trainer(callback, start, *others, max_steps=3, **given)
    trainer.fit(made(how, backend), nets.ordered(), nets.ordered())
    assert nets.hooks(trainer.lightning_module) == []
    return callback, start, trainer


@cache
def plain() -> tuple[InitCallback, dict[str, Tensor]]:
    """In float32 and not compiled: what all others are held to."""
    callback, start, _ = run("", "32-true")
    return callback, start.weights


def agree(callback: InitCallback, start: AtStart, precision: str, how: str) -> None:
    """The weights are those of float32, cast; what was read is what float32 shows, within bits."""
    exact, weights = plain()
    cast = {key: value.to(KEPT_IN[precision]) for key, value in weights.items()}
    assert nets.same(start.weights, cast)
    assert callback.plan is not None
    assert exact.plan is not None
    assert callback.plan.to_dict() == exact.plan.to_dict()
    assert callback.report is not None
    assert callback.report.blind == ()
    assert callback.report.findings == ()
    near = EXACT.get(precision, 0.05)
    assert losses(callback) == pytest.approx(losses(exact), rel=near)
    assert len(losses(callback)) == 3
    # A compiled model's layers are read beside the training, at the third update.
    counts = [3, 0 if how else 3, 3]
    assert [len(step.layers) for step in callback.report.readings.steps] == counts
    for step in (0, 1, 2):
        one, two = reading(callback, step), reading(exact, step)
        for out, same in zip(one.layers, two.layers, strict=not how or step != 1):
            assert out.name == same.name
            assert out.rms == pytest.approx(same.rms, rel=near)
            assert out.grad_rms == pytest.approx(same.grad_rms, rel=near)
        for weight, other in zip(one.weights, two.weights, strict=True):
            assert weight.name == other.name
            assert weight.grad_rms == pytest.approx(other.grad_rms, rel=near)
            if precision in ("bf16-true", "16-true"):
                continue  # an update is a few of the last bits
            assert weight.update == pytest.approx(other.update, rel=near, nan_ok=True)


@pytest.mark.case(35)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("precision", KEPT_IN)
def test_every_precision_compiled_or_not(precision: str, how: str, ran: Ran) -> None:
    callback, start, trainer = run(how, precision)
    assert trainer.precision == precision
    agree(callback, start, precision, how)
    ran("single device", precision, how)


@pytest.mark.case(35)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("how", HOW[1:])
def test_compiled_before_the_first_step_by_a_sanity_check(how: str) -> None:
    """No hook fires that is put on a graph that is compiled: nothing may rely on one."""
    callback, start, _ = run(how, "32-true", sanity=True)
    agree(callback, start, "32-true", how)


@pytest.mark.slow
@pytest.mark.case(35)
@pytest.mark.filterwarnings("default")  # what a compiler warns of is not ours
@pytest.mark.skipif(not shutil.which("g++"), reason="the inductor needs a C++ compiler")
def test_the_real_compiler() -> None:
    how = "the LightningModule"
    callback, start, trainer = run(how, "32-true", backend="inductor")
    assert torch._dynamo.utils.counters["inductor"]
    agree(callback, start, "32-true", how)
    eager, _, other = run("", "32-true")
    trained = [nets.weights(each.lightning_module) for each in (trainer, other)]
    for one, two in zip(trained[0].values(), trained[1].values(), strict=True):
        assert torch.allclose(one, two, atol=1e-6)
    assert eager.fingerprint == callback.fingerprint
