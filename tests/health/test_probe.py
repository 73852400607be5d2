"""What a probe reads is what one computes by hand; then it is gone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_init import audit, make_plan
from lightning_init.architecture.calls import tensors
from lightning_init.architecture.preserve import preserved
from lightning_init.architecture.probe import Probe
from lightning_init.architecture.readings import StepReading, WeightReading
from lightning_init.architecture.watched import watched
from tests.zoo import ZOO


def close(value: float) -> Any:
    return pytest.approx(value, rel=1e-5)


def hooked(model: nn.Module) -> int:
    return sum(len(v) for m in model.modules() for k, v in vars(m).items() if k.endswith("_hooks"))


def weights(model: nn.Module, plan: Any = None) -> tuple[WeightReading, ...]:
    probe = Probe(model, plan)
    probe.gradients(model.parameters())
    return probe.step(0).weights


class Net(nn.Module):
    """Keeps its outputs, so that autograd can be asked for their gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(1, 6, 3)
        self.two = nn.Linear(216, 20)
        self.out = nn.Linear(20, 5)
        self.outputs: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        one = self.one(x)
        two = self.two(F.relu(one).flatten(1))
        out = self.out(F.hardtanh(two, 0.0, 1.0))
        self.outputs = {"one": one, "two": two, "out": out}
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_against_a_computation_by_hand(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, x = Net().to(dtype), torch.randn(24, 1, 8, 8).to(dtype)
    y = torch.arange(24) % 5
    with torch.no_grad():
        model.two.weight[:5] = 0
        model.two.bias[:5] = 0  # a quarter of the outputs is exactly zero
        model.two.bias[5:] += 0.5
    report = audit(model, lambda: F.cross_entropy(model(x).float(), y))
    loss = F.cross_entropy(model(x).float(), y)
    grads = torch.autograd.grad(loss, list(model.outputs.values()))
    assert [layer.name for layer in report.layers] == ["one", "two", "out"]
    assert [layer.kind for layer in report.layers] == ["Conv2d", "Linear", "Linear"]
    for layer, out, grad in zip(report.layers, model.outputs.values(), grads, strict=True):
        out, grad = out.detach().double(), grad.double()
        assert layer.mean == close(float(out.mean()))
        assert layer.std == close(float(out.std(correction=0)))
        assert layer.rms == close(float((out**2).mean().sqrt()))
        assert layer.absmax == close(float(out.abs().max()))
        assert layer.zeros == pytest.approx(float((out == 0).double().mean()), abs=1e-6)
        assert layer.grad_norm == close(float(grad.norm()))
        assert layer.grad_rms == close(float((grad**2).mean().sqrt()))
    assert report.layers[1].zeros == pytest.approx(0.25, abs=1e-6)
    assert report.readings.loss[0] == close(float(loss.detach()))


def test_weights_against_a_computation_by_hand() -> None:
    torch.manual_seed(0)
    model, x = Net(), torch.randn(24, 1, 8, 8)
    plan = make_plan(model, "normal")
    report = audit(model, lambda: F.cross_entropy(model(x), torch.arange(24) % 5), plan=plan)
    loss = F.cross_entropy(model(x), torch.arange(24) % 5)
    grads = torch.autograd.grad(loss, list(model.parameters()))
    read = report.readings.steps[0].weights
    for reading, (name, p), grad in zip(read, model.named_parameters(), grads, strict=True):
        value = p.detach().double()
        assert (reading.name, reading.numel, reading.finite) == (name, p.numel(), True)
        assert reading.mean == pytest.approx(float(value.mean()), rel=1e-5, abs=1e-7)
        assert reading.std == close(float(value.std(correction=0)))
        assert reading.grad_rms == close(float((grad.double() ** 2).mean().sqrt()))
        assert reading.expected_std == plan[name].std
        assert reading.expected_mean == plan[name].mean
        assert reading.drawn == str(plan[name])


def test_a_padding_row_is_no_part_of_what_was_drawn() -> None:
    model = nn.Embedding(5, 400, padding_idx=-2)
    plan = make_plan(model, "normal")
    (reading,) = weights(model, plan)
    rows = model.weight.detach()[[0, 1, 2, 4]]
    assert reading.numel == 1600
    assert reading.std == close(float(rows.std(correction=0)))


def test_what_is_not_finite_is_seen() -> None:
    model = nn.Linear(3, 3)
    assert all(reading.finite for reading in weights(model))
    model.weight.grad = torch.tensor([[math.inf] * 3] * 3)
    assert [reading.finite for reading in weights(model)] == [False, True]
    model.weight.grad = None
    model.bias.data[1] = math.nan
    assert [reading.finite for reading in weights(model)] == [True, False]
    assert weights(model)[0].grad_rms != weights(model)[0].grad_rms  # none: not a number


def heard(model: nn.Module, call: Any, **how: bool) -> StepReading:
    probe = Probe(model)
    probe.start(**how)
    call()
    probe.stop()
    reading = probe.step(0)
    assert probe.error is None
    return reading


def test_a_monitored_step_reads_the_leading_sixteenth() -> None:
    model, x = nn.Linear(4, 4), torch.randn(640, 4)
    out = model(x).detach()
    for full, rows in ((True, 640), (False, 40)):
        (reading,) = heard(model, lambda: model(x), full=full).layers
        assert reading.rms == close(float((out[:rows] ** 2).mean().sqrt()))
    (reading,) = heard(model, lambda: model(x[:20])).layers
    assert reading.rms == close(float((out[:16] ** 2).mean().sqrt()))


def test_reads_only_while_it_listens_and_the_first_call_of_a_shared_module() -> None:
    model = nn.Linear(4, 4)
    probe = Probe(model)
    model(torch.ones(2, 4))
    assert probe.step(0).layers == ()
    probe.start(full=True, sample=True)
    first = model(torch.ones(2, 4))
    model(first * 100)
    (reading,) = probe.step(1).layers
    assert reading.absmax == close(float(first.detach().abs().max()))
    assert torch.equal(probe.samples[""], first.detach().flatten())
    assert probe.step(2).layers == ()
    probe.stop()
    probe.stop()
    model(first)
    assert probe.step(3).layers == ()


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_segment_is_read_once(reentrant: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(16, 4, requires_grad=True)
    probe = Probe(model)
    probe.start(full=True)
    checkpoint(model, x, use_reentrant=reentrant).sum().backward()
    first, second = probe.step(0).layers
    assert (first.name, second.name) == ("0", "2")
    assert first.after is not None
    assert first.after.function == "relu"
    assert probe.step(1).layers == ()
    probe.stop()
    assert probe.error is None


@pytest.mark.parametrize("name", ZOO)
def test_a_probe_leaves_nothing_and_changes_nothing(name: str) -> None:
    model, forward = ZOO[name]()
    forward()
    before = hooked(model)
    torch.manual_seed(0)
    with preserved(model):
        expected = forward()
        state = torch.get_rng_state()
    torch.manual_seed(0)
    probe = Probe(model)
    assert hooked(model) == before
    probe.start()
    assert hooked(model) - before >= len(watched(model)) > 0
    out = forward()
    probe.stop()
    assert hooked(model) == before
    assert not torch.overrides._get_current_function_mode_stack()
    for one, two in zip(tensors(plain(expected)), tensors(plain(out)), strict=True):
        assert torch.equal(one, two)
    assert torch.equal(torch.get_rng_state(), state)
    reading = probe.step(0)
    assert probe.error is None
    assert len(reading.layers) >= 1
    assert sum(layer.is_output for layer in reading.layers) == 1


def plain(out: Any) -> Any:
    return out.to_tuple() if hasattr(out, "to_tuple") else out


def test_blocks_are_compared_with_blocks() -> None:
    def block() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    class Block(nn.Sequential):
        pass

    net = nn.Sequential(nn.Linear(4, 4), *[Block(*block()) for _ in range(3)], nn.Linear(4, 2))
    groups = {name: group for name, _, group in watched(net)}
    assert groups == {
        "0": "", "1": "Block", "1.0": "", "2": "Block", "2.0": "", "3": "Block", "3.0": "", "4": "",
    }  # fmt: skip


class Skipped(nn.Module):
    """A norm takes what the first layer makes, and so does the way around it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)
        self.inner, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(x + self.inner(self.norm(x)))


@pytest.mark.parametrize("traced", [True, False])
def test_a_norm_beside_a_skip_path_undoes_no_scale(traced: bool) -> None:
    model, x = Skipped(), torch.randn(16, 8)

    def forward() -> Tensor:
        return F.cross_entropy(model(x), torch.arange(16) % 3)

    plan = make_plan(model, "xavier_normal", forward=forward if traced else None)
    (reading,) = audit(model, forward, plan=plan).readings.steps[0].inputs
    assert reading.normalized is not traced  # without a trace it is what the calls show
