"""Ways to train: what is read stays right, and what cannot be read is said."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_init import InitCallback
from tests.callbacks import nets
from tests.callbacks.nets import AtStart, Digits, mlp
from tests.callbacks.watching import (
    Still,
    alone,
    by_name,
    first,
    losses,
    reading,
    watched,
)


@pytest.mark.case(30)
def test_accumulated_batches_show_their_own_loss_and_the_gradient_of_all() -> None:
    callback, start = watched(Still(mlp()), accumulate_grad_batches=3, max_steps=2)
    values, grad = alone(start, first(3))
    assert losses(callback)[:3] == pytest.approx(values, rel=1e-5)
    assert by_name(callback, 2)["net.2.weight"] == pytest.approx(float(grad), rel=1e-5)


@pytest.mark.case(31)
@pytest.mark.parametrize("how", ["norm", "value"])
def test_gradients_are_those_before_clipping(how: str) -> None:
    clip = {"gradient_clip_val": 1e-4, "gradient_clip_algorithm": how}
    callback, start = watched(Still(mlp()), **clip, max_steps=2)
    _, grad = alone(start, first(2)[1:])
    assert by_name(callback, 1)["net.2.weight"] == pytest.approx(float(grad), rel=1e-5)


@pytest.mark.case(33)
def test_lbfgs_calls_a_step_several_times() -> None:
    class Newton(Digits):
        def configure_optimizers(self) -> Any:
            return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)

    callback, start = watched(Newton(mlp()), max_steps=3)
    assert len(losses(callback)) == 3
    assert callback.report is not None
    (loss,) = callback.report.readings.steps[0].losses
    assert loss.value == pytest.approx(alone(start, first(1))[0][0], rel=1e-5)


@pytest.mark.case(33)
@pytest.mark.filterwarnings("ignore:`training_step` returned `None`:UserWarning")  # lightning
def test_a_step_may_return_a_mapping_or_nothing() -> None:
    class Maps(Still):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return {"loss": self.loss(batch), "extra": torch.zeros(3)}

    class Skips(Still):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None

    class NoIndex(Still):
        def training_step(self, batch: Any) -> Any:
            return self.loss(batch)

    for module in (Maps(mlp()), NoIndex(mlp())):
        callback, start = watched(module, max_steps=2)
        assert losses(callback) == pytest.approx(alone(start, first(2))[0], rel=1e-5)
        assert callback.report is not None
        assert callback.report.blind == ()
    callback, _ = watched(Skips(mlp()), max_steps=-1, max_epochs=1, limit_train_batches=4)
    assert callback.report is not None
    assert callback.report.blind == ("loss: this training_step returns none",)
    assert callback.report.findings == ()


class TwoPlayers(Digits):
    """Manual optimization: two optimizers that step in turn."""

    def __init__(self) -> None:
        super().__init__(mlp())
        self.judge = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 1))
        self.automatic_optimization = False
        self.stepped: list[str] = []

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, _ = batch
        maker, judge = self.optimizers()
        self.toggle_optimizer(judge)
        out = self.judge(self.net(x).detach())
        loss = F.binary_cross_entropy_with_logits(out, torch.zeros_like(out))
        self.log("judge_loss", loss)
        judge.zero_grad()
        self.manual_backward(loss)
        judge.step()
        self.untoggle_optimizer(judge)
        out = self.judge(self.net(x))
        maker.zero_grad()
        self.manual_backward(F.binary_cross_entropy_with_logits(out, torch.ones_like(out)))
        maker.step()
        for scheduler in self.lr_schedulers():
            scheduler.step()
        self.stepped.append("both")

    def configure_optimizers(self) -> Any:
        made = [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.net, self.judge)]
        return made, [torch.optim.lr_scheduler.StepLR(each, 2) for each in made]


@pytest.mark.case(32)
@pytest.mark.filterwarnings(
    "ignore:lightning_init. WARNING collapsed_samples"
)  # a new judge says one thing
def test_two_optimizers_by_hand() -> None:
    callback, module = InitCallback("orthogonal", seed=3), TwoPlayers()
    trainer = nets.fit(module, callback, start := AtStart(), max_steps=8)
    assert module.stepped == ["both"] * 4
    assert trainer.global_step == 8
    assert callback.report is not None
    assert [s.step for s in callback.report.readings.steps] == [0, 1, 2]
    assert callback.report.blind == ("loss: this training_step returns none",)
    kinds = [loss.kind for loss in callback.report.readings.steps[0].losses]
    assert kinds == ["binary cross-entropy with logits"] * 2
    for step in (0, 1, 2):
        assert all(grad > 0 for grad in by_name(callback, step).values())
    plain = TwoPlayers()
    plain.load_state_dict(start.weights)
    nets.fit(plain, max_steps=8)
    assert nets.same(nets.weights(plain), nets.weights(module))


@pytest.mark.case(30)
def test_under_accumulation_the_batches_that_step_are_read() -> None:
    module = Digits(mlp(), lr=0.01)
    callback, _ = watched(module, accumulate_grad_batches=4, max_steps=6)
    assert callback.report is not None
    readings = callback.report.readings
    assert [step.step for step in readings.steps] == [0, 3, 7, 11, 23]
    assert sorted(readings.loss) == list(range(24))
    for step in readings.steps[1:]:
        assert all(weight.update > 0 for weight in step.weights if len(weight.shape) > 1)
        assert all(weight.lr == 0.01 for weight in step.weights)
    assert set(readings.lr.values()) == {0.01}
    still, start = watched(Still(mlp()), accumulate_grad_batches=4, max_steps=2)
    batches = first(8)
    _, grad = alone(start, batches[4:])
    (read,) = [w for w in reading(still, 7).weights if w.name == "net.2.weight"]
    assert read.grad_rms == pytest.approx(float(grad), rel=1e-5)
    assert read.update == 0
    # The gradient of a layer's output is that of the batch's own loss.
    module = Digits(mlp())
    module.load_state_dict(start.weights)
    x, y = batches[7]
    out = module.net[0](x)
    (by_hand,) = torch.autograd.grad(F.cross_entropy(module.net[1:](out), y), out)
    layer = reading(still, 7).layers[0]
    assert layer.grad_rms == pytest.approx(float((by_hand**2).mean().sqrt()), rel=1e-4)


def test_the_update_is_what_the_optimizer_did() -> None:
    class Kept(Digits):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            self.before = self.net[2].weight.detach().clone()

    module = Kept(mlp())
    moved: list[float] = []

    class Looks(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            far = pl_module.net[2].weight.detach() - module.before
            moved.append(float(far.norm() / module.before.norm()))

    callback = InitCallback("orthogonal", seed=3)
    nets.fit(module, callback, Looks(), max_steps=3)
    for step in (1, 2):
        (read,) = [w for w in reading(callback, step).weights if w.name == "net.2.weight"]
        assert read.update == pytest.approx(moved[step], rel=1e-4)


@pytest.mark.case(34)
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_segments_are_read_once(reentrant: bool) -> None:
    class Segments(Still):
        def loss(self, batch: Any) -> torch.Tensor:
            x, y = batch
            hidden = checkpoint(self.net[:3], x.requires_grad_(), use_reentrant=reentrant)
            return F.cross_entropy(self.net[3:](hidden), y)

    callback, _ = watched(Segments(mlp()), max_steps=3)
    plain, _ = watched(Still(mlp()), max_steps=3)
    for step in (0, 1, 2):
        one, two = reading(callback, step), reading(plain, step)
        assert [layer.name for layer in one.layers] == [layer.name for layer in two.layers]
        for out, same in zip(one.layers, two.layers, strict=True):
            assert out.rms == pytest.approx(same.rms, rel=1e-5)
        for weight, other in zip(one.weights, two.weights, strict=True):
            if step or not reentrant:  # which an audit's backward pass does not go into
                assert weight.grad_rms == pytest.approx(other.grad_rms, rel=1e-5)


class Copies(Digits):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        trainer = self._trainer
        callbacks = [] if trainer is None else trainer.callbacks
        self._trainer = None  # which nobody can pickle
        net, data = copy.deepcopy(self.net), pickle.dumps(self.net)
        for twin in (net, pickle.loads(data)):
            assert torch.equal(twin(batch[0]), self.net(batch[0]))
        for callback in callbacks:
            if isinstance(callback, InitCallback) and batch_idx:
                again = pickle.loads(pickle.dumps(callback))
                assert again.report.to_dict() == callback.report.to_dict()
                assert again.plan.to_dict() == callback.plan.to_dict()
                copy.deepcopy(callback)
        self._trainer = trainer
        return loss


def test_copies_can_be_made_at_any_time() -> None:
    callback, _ = watched(Copies(mlp()), max_steps=4)
    assert callback.report is not None
    assert [len(step.layers) for step in callback.report.readings.steps] == [3, 3, 3]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
@pytest.mark.parametrize("where", ["training_step", "on_before_optimizer_step"])
def test_an_exception_inside_of_a_sampled_step_leaves_nothing(error: Any, where: str) -> None:
    class Fails(Digits):
        def fail(self, name: str, batch_idx: int) -> None:
            if name == where and batch_idx == 2:
                raise error("stop")

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.number = batch_idx
            loss = self.loss(batch)
            self.fail("training_step", batch_idx)
            return loss

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.fail("on_before_optimizer_step", self.number)

    module = Fails(mlp())
    with pytest.raises((error, SystemExit)):
        nets.fit(module, InitCallback("orthogonal"), max_steps=10)
    assert nets.hooks(module) == []
    assert torch._C._len_torch_function_stack() == 0


class Idle(Digits):
    """Leaves out every other batch, the first one too."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx % 2 == 0:
            return None
        return {"loss": super().training_step(batch, batch_idx), "more": 1}


@pytest.mark.case(33)
def test_a_first_batch_that_is_left_out_is_not_all_that_is_read() -> None:
    callback = InitCallback("orthogonal", seed=3, verbose=False)
    nets.fit(module := Idle(mlp()), callback, max_epochs=1, max_steps=-1, limit_train_batches=8)
    report = callback.report
    assert report is not None
    assert [layer.name for layer in report.layers] == ["net.0", "net.2", "net.4"]
    assert "healthy: 3 layers read, loss" in report.verdict()
    assert report.blind == ("first batch: its training_step returned no loss",)
    assert sorted(report.readings.loss) == [1, 3, 5, 7]
    assert nets.hooks(module) == []
