"""A forward pass that writes parameters is undone; one that does not costs no copy."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_init import analyze
from lightning_init.architecture import guard
from lightning_init.architecture.guard import Guard
from tests.zoo import ZOO

WIDE = 200  # 40,000 elements: not copied beforehand


def clip(weight):
    with torch.no_grad():
        weight.clamp_(-0.01, 0.01)


def average(weight):
    with torch.no_grad():
        weight[0] = weight.mean()


def through_data(weight):
    weight.data.mul_(0.5)


def through_a_view(weight):
    weight.detach().view(-1)[::2].zero_()


def by_out(weight):
    with torch.no_grad():
        torch.add(weight.detach(), 1, out=weight.detach())


def by_numpy(weight):
    weight.detach().numpy()[:] = 0


def by_foreach(weight):
    with torch.no_grad():
        torch._foreach_add_([weight], 1.0)


def replaced(weight):
    weight.data = torch.zeros_like(weight)


def reset(weight):
    nn.init.normal_(weight)


WRITES = [
    *(clip, average, through_data, through_a_view, by_out, by_numpy, by_foreach, replaced, reset)
]


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
def test_what_a_pass_writes_is_put_back(write):
    model = nn.Linear(WIDE, WIDE)
    before = model.weight.detach().clone()

    def forward():
        out = model(torch.ones(2, WIDE))
        write(model.weight)
        return out

    analyze(model, forward)
    assert torch.equal(model.weight, before)
    forward()
    assert not torch.equal(model.weight, before), "the call above does write"


def test_a_table_that_is_renormed_at_lookup():
    model = nn.Embedding(300, 100, max_norm=0.1)
    before = model.weight.detach().clone()
    analyze(model, lambda: model(torch.arange(20)))
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize("name", ["nanogpt", "resnet", "lstm", "vit", "bert"])
def test_an_ordinary_pass_copies_nothing(name, monkeypatch):
    monkeypatch.setattr(guard, "_SMALL", 0)
    copied = []
    monkeypatch.setattr(guard, "keep_tensor", copied.append)
    model, forward = ZOO[name]()
    analyze(model, forward)
    assert copied == []


def test_small_and_odd_parameters_are_not_left_to_the_guard():
    lazy = nn.LazyLinear(WIDE).weight
    meta = nn.Parameter(torch.empty(WIDE, WIDE, device="meta"))
    small, large = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(WIDE, WIDE))
    assert [id(p) for p in Guard([lazy, meta, small, large]).parameters] == [id(large)]


def test_a_write_that_no_call_shows_is_said():
    weight = nn.Parameter(torch.ones(WIDE, WIDE))
    watch = Guard([weight])
    with pytest.warns(UserWarning, match="changed 1 parameters"), torch.no_grad():  # noqa: SIM117
        with watch.watching():
            F.relu_(weight)
