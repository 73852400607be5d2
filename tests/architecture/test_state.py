import itertools
import random
from collections import Counter, OrderedDict, defaultdict, deque

import numpy as np
import pytest
import torch
from torch import nn

from lightning_init.architecture.preserve import preserved
from lightning_init.architecture.state import keep_state


class Plain:
    def __init__(self):
        self.n = 0


def bump(value):
    match value:
        case Plain():
            value.n += 1
            value.new = 1
        case np.ndarray():
            value += 1
        case torch.Tensor():
            value += 1
        case random.Random():
            value.random()
        case np.random.Generator():
            value.random()
        case torch.Generator():
            torch.rand(1, generator=value)
        case set():
            value.add(7)
        case dict():
            value["new"] = 1
        case _:
            value.append(7)


def seen(value):
    match value:
        case Plain():
            return dict(vars(value))
        case np.ndarray() | torch.Tensor():
            return value.tolist()
        case random.Random():
            return value.getstate()
        case np.random.Generator():
            return value.bit_generator.state
        case torch.Generator():
            return value.get_state().tolist()
        case defaultdict() | Counter() | OrderedDict():
            return dict(value)
        case deque():
            return list(value), value.maxlen
    return value.copy()


VALUES = {
    "object": Plain,
    "array": lambda: np.zeros(3),
    "tensor": lambda: torch.zeros(3),
    "random": lambda: random.Random(0),
    "numpy": lambda: np.random.default_rng(0),
    "torch": torch.Generator,
    "set": lambda: {1},
    "dict": lambda: {"a": 1},
    "defaultdict": lambda: defaultdict(int, a=1),
    "counter": lambda: Counter("aab"),
    "ordered": lambda: OrderedDict(a=1),
    "list": lambda: [1],
    "deque": lambda: deque([1, 2], maxlen=2),
}


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("nest", ["itself", "in a list", "in an object"])
def test_what_happens_to_a_value_is_undone_in_place(kind, nest):
    value, holder = VALUES[kind](), Plain()
    holder.inner = {"deep": (value,)}
    root = {"itself": value, "in a list": [value], "in an object": holder}[nest]
    before = seen(value)
    undo = keep_state([root])
    bump(value)
    assert seen(value) != before
    for restore in undo:
        restore()
    assert seen(value) == before


class Stateful(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.teacher = nn.Linear(2, 2).requires_grad_(False)
        self.value = value

    def forward(self, x):
        bump(self.value)
        with torch.no_grad():
            self.teacher.weight.mul_(0.9).add_(self.layer.weight, alpha=0.1)
            self.layer.weight.data.clamp_(-0.01, 0.01)
        return self.layer(x)


@pytest.mark.parametrize("kind", VALUES)
def test_a_model_that_writes_into_itself_comes_back(kind):
    model = Stateful(VALUES[kind]())
    before = [p.detach().clone() for p in model.parameters()], seen(model.value)
    with preserved(model):
        model(torch.ones(1, 2))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before[0], strict=True))
    assert seen(model.value) == before[1]


def test_large_data_are_not_copied():
    data = torch.zeros(2**16 + 1)
    assert keep_state([data]) == []
    assert keep_state([np.zeros(2**16 + 1)]) == []
    assert keep_state([itertools.count()]) == []


@pytest.mark.parametrize("made", [itertools.count, lambda: itertools.cycle([1, 2, 3])])
@pytest.mark.parametrize("advanced", [0, 1, 4])
def test_an_iterator_of_a_module_goes_on_where_it_was(made, advanced):
    model, twin = nn.Linear(2, 2), made()
    model.turns = made()
    for _ in range(advanced):
        next(model.turns), next(twin)
    with preserved(model):
        next(model.turns), next(model.turns)
    assert [next(model.turns) for _ in range(5)] == [next(twin) for _ in range(5)]
