"""Whatever a forward pass changes is as before when `preserved` is left."""

import random
from collections import deque

import numpy as np
import pytest
import torch
import torchmetrics
from torch import nn

from lightning_init import analyze
from lightning_init.architecture.preserve import preserved
from tests.zoo import ZOO, noise


class Stateful(nn.Module):
    """A module that changes everything that one can change."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
        self.register_buffer("moving", torch.zeros(4))
        self.register_buffer("replaced", torch.zeros(2))
        self.register_buffer("empty", None)
        self.accuracy = torchmetrics.MeanMetric()
        self.kept = torchmetrics.CatMetric()
        self.steps = 0
        self.outputs = []
        self.cache = {"seen": [1, 2], "mask": torch.ones(2)}
        self.plain = torch.zeros(3)
        self.seen = {1}

    def forward(self, x):
        self.steps += 1
        self.outputs.append(x)
        self.cache["seen"].append(3)
        self.cache["mask"].zero_()
        self.cache["new"] = x
        self.plain += 1
        self.seen.add(2)
        self.moving.add_(1)
        self.replaced = torch.ones(2)
        self.empty = torch.ones(1)
        self.attribute = x
        self.register_buffer("late", torch.ones(1))
        self.accuracy.update(x.mean())
        self.kept.update(x.mean())
        random.random()
        np.random.rand()  # noqa: NPY002
        torch.rand(1)
        return self.spectral(self.net(x))


def changed(model):
    return model.state_dict(), {
        name: repr(value) for m in model.modules() for name, value in m.__dict__.items()
    }


def randomness():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002


def test_everything_is_put_back():
    model = Stateful()
    model.accuracy.update(3.0)
    model.kept.update(torch.tensor([1.0, 2.0]))
    model(noise(8, 4))
    model.spectral.eval()
    model.net[2].eval()
    x = noise(8, 4)
    state, plain = changed(model)
    state = {key: value.clone() for key, value in state.items() if torch.is_tensor(value)}
    buffers = {name: id(buffer) for name, buffer in model.named_buffers()}
    before = randomness()
    metric = float(model.accuracy.compute())
    with preserved(model):
        model.train()
        model(x).sum().backward()
        model(x)
        assert model.steps == 3
        model.requires_grad_(True)
    after, plain_after = changed(model)
    assert set(state) == {key for key, value in after.items() if torch.is_tensor(value)}
    assert all(torch.equal(state[key], after[key]) for key in state)
    assert plain == plain_after
    assert buffers == {name: id(buffer) for name, buffer in model.named_buffers()}
    assert before == randomness()
    assert [m.training for m in model.modules()].count(False) == len(
        [*model.spectral.modules()]
    ) + 1
    assert all(parameter.grad is None for parameter in model.parameters())
    assert float(model.accuracy.compute()) == metric
    assert model.kept.compute().shape == (3,)
    assert model.outputs[0].shape == (8, 4)
    assert len(model.outputs) == 1
    assert model.cache["seen"] == [1, 2, 3]


def test_a_metric_without_updates_stays_without_updates():
    model = Stateful()
    with preserved(model):
        model(noise(8, 4))
        assert model.accuracy._update_count == 1
    assert model.accuracy._update_count == 0
    assert not hasattr(model, "attribute")
    assert "late" not in model._buffers
    assert model.empty is None


def test_gradients_come_back_untouched():
    model = nn.Linear(4, 2)
    model(noise(3, 4)).sum().backward()
    grad, values = model.weight.grad, model.weight.grad.clone()
    with preserved(model):
        assert model.weight.grad is None
        model(noise(3, 4)).sum().backward()
    assert model.weight.grad is grad
    assert torch.equal(grad, values)


def fail_after(model):
    model(noise(8, 4))
    raise RuntimeError("in the middle")


def test_an_error_inside_still_puts_everything_back():
    model = Stateful()
    with pytest.raises(RuntimeError, match="in the middle"), preserved(model):
        fail_after(model)
    assert model.steps == 0
    assert int(model.net[1].num_batches_tracked) == 0


def test_parameters_come_back_but_for_those_that_are_meant():
    model = nn.Linear(4, 2)
    bias = model.bias.detach().clone()
    with preserved(model, [model.weight]), torch.no_grad():
        model.weight.fill_(3)
        model.bias.data.clamp_(0, 0)  # unseen by the version counter
    assert bool((model.weight == 3).all())
    assert torch.equal(model.bias, bias)


def test_unchanged_buffers_keep_their_version():
    model = nn.BatchNorm1d(4).eval()
    version = model.running_mean._version
    with preserved(model):
        model(noise(8, 4))
    assert model.running_mean._version == version


def test_values_it_does_not_know_are_left_alone():
    model = nn.Linear(4, 2)
    model.queue = deque([1, 2], maxlen=2)
    queue = model.queue
    with preserved(model):
        model.queue = None
    assert model.queue is queue


@pytest.mark.parametrize("name", ZOO)
def test_analysis_changes_nothing(name):
    model, forward = ZOO[name]()
    model.train()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    versions = {key: value._version for key, value in model.state_dict().items()}
    before = randomness()
    analyze(model, forward)
    assert before == randomness()
    after = model.state_dict()
    assert list(state) == list(after)
    assert all(torch.equal(state[key], after[key]) for key in state)
    parameters = dict(model.named_parameters())
    assert all(p._version == versions[n] for n, p in parameters.items())
    assert all(p.grad is None for p in parameters.values())
    assert model.training
