"""Recurrent nets and chrono: gates, the two biases, and what a cell remembers."""

import math

import pytest
import torch
from scipy import integrate, stats
from torch import nn

from lightning_init import InitSpec, ParamInfo, Role, initialize_, make_plan
from lightning_init.strategies.distributions import Constant, Uniform
from lightning_init.strategies.matrices import Orthogonal
from lightning_init.strategies.needs import UnsuitableError
from lightning_init.strategies.recurrent import Chrono

LAYERS = {
    "lstm": (lambda: nn.LSTM(6, 8, 2, bidirectional=True), 4),
    "projected": (lambda: nn.LSTM(6, 8, proj_size=3), 4),
    "lstm_cell": (lambda: nn.LSTMCell(6, 8), 4),
    "gru": (lambda: nn.GRU(6, 8, 2), 3),
    "gru_cell": (lambda: nn.GRUCell(6, 8), 3),
    "rnn": (lambda: nn.RNN(6, 8), 1),
    "rnn_cell": (lambda: nn.RNNCell(6, 8), 1),
}


@pytest.mark.parametrize("name", LAYERS)
def test_each_gate(name):
    build, gates = LAYERS[name]
    layer = build()
    plan = initialize_(layer, "recurrent", seed=0)
    for key, tensor in layer.named_parameters():
        law, value = plan[key], tensor.detach()
        if "weight_hh" in key:
            assert law == Orthogonal(tuple(tensor.shape), 1.0, gates)
            for gate in value.chunk(gates):
                values = torch.linalg.svdvals(gate)
                assert float((values - 1).abs().max()) < 1e-5
        elif "weight" in key:
            rows = tensor.shape[0] // (1 if "_hr_" in key else gates)
            bound = math.sqrt(6 / (rows + tensor.shape[1]))
            assert isinstance(law, Uniform)
            assert law.high == pytest.approx(bound, rel=1e-9)
            assert 0.9 * bound < float(value.abs().max()) <= bound
        elif "bias_hh" in key or gates != 4:
            assert not value.any(), key
        else:
            i, f, g, o = value.chunk(4)
            assert bool((f == 1).all())
            assert not torch.stack((i, g, o)).any()


@pytest.mark.parametrize("value", [0.0, 1.0, 2.5])
def test_what_a_cell_remembers(value):
    """With zero weights c_T = c_0 prod sigma(b_f): a second bias would count twice."""
    cell = nn.LSTMCell(3, 4)
    initialize_(cell, InitSpec("recurrent", {"forget_bias": value}), seed=0)
    remembered = remember(cell)
    expected = (1 / (1 + math.exp(-value))) ** 10
    assert remembered == pytest.approx(torch.full((4,), expected), rel=1e-5)
    assert expected == pytest.approx({0.0: 9.77e-4, 1.0: 0.0436}.get(value, expected), rel=5e-3)


def remember(cell, steps=10):
    for name, tensor in cell.named_parameters():
        if "weight" in name:
            nn.init.zeros_(tensor)
    h, c = torch.zeros(1, cell.hidden_size), torch.ones(1, cell.hidden_size)
    with torch.no_grad():
        for _ in range(steps):
            # tanh(0) = 0: nothing is added
            h, c = cell(torch.zeros(1, cell.input_size), (torch.zeros_like(h), c))
    return c[0]


def test_a_chrono_cell_remembers_as_long_as_its_biases_say():
    cell = nn.LSTMCell(3, 2000)
    initialize_(cell, InitSpec("chrono", {"t_max": 100}), seed=0)
    bias = cell.bias_ih.detach().clone()
    remembered = remember(cell)
    forget = bias[2000:4000]
    assert torch.allclose(remembered, torch.sigmoid(forget) ** 10, rtol=1e-5, atol=0)
    mean, _ = integrate.quad(lambda u: (u / (1 + u)) ** 10 / 98, 1, 99)
    assert float(remembered.mean()) == pytest.approx(mean, abs=0.03)
    assert torch.equal(bias[:2000], -forget)
    assert not bias[4000:].any()
    assert not cell.bias_hh.any()
    u = forget.double().exp().numpy()
    assert stats.kstest(u, "uniform", args=(1, 98)).pvalue > 1e-3
    assert stats.kstest(u, "uniform", args=(1, 100)).pvalue < 0.5 or u.max() < 99.001


@pytest.mark.parametrize("t_max", [3, 100, 784])
@pytest.mark.parametrize(("gates", "admits"), [(4, 0), (3, -1)])
def test_the_moments_of_chrono_biases(t_max, gates, admits):
    law = Chrono(t_max, gates, 1, admits, factor=1.5)
    top = t_max - 1
    first, second = (
        integrate.quad(lambda u, k=k: (1.5 * math.log(u)) ** k / (top - 1), 1, top)[0]
        for k in (1, 2)
    )
    mean = 0.0 if admits >= 0 else first / gates
    square = second * (2 if admits >= 0 else 1) / gates
    assert law.mean == pytest.approx(mean, abs=1e-9)
    assert law.std == pytest.approx(math.sqrt(square - mean**2), rel=1e-9)
    drawn = law.sample((gates * 20_000,), torch.Generator().manual_seed(0))
    assert float(drawn.std(correction=0)) == pytest.approx(law.std, rel=0.02)
    assert law.scaled(2.0).std == pytest.approx(2 * law.std)


def test_the_update_gate_of_a_gru_keeps_the_state():
    """PyTorch's z multiplies the old state, so a positive bias remembers."""
    cell = nn.GRUCell(3, 500)
    initialize_(cell, InitSpec("chrono", {"t_max": 100}), seed=0)
    reset, update, new = cell.bias_ih.detach().clone().chunk(3)
    assert not reset.any()
    assert not new.any()
    assert float(update.min()) >= 0
    assert not cell.bias_hh.any()
    for name, tensor in cell.named_parameters():
        if "weight" in name:
            nn.init.zeros_(tensor)
    h = torch.ones(1, 500)
    with torch.no_grad():
        for _ in range(10):
            h = cell(torch.zeros(1, 3), h)
    assert torch.allclose(h[0], torch.sigmoid(update) ** 10, rtol=1e-4, atol=0)


def test_both_directions_and_all_layers():
    layer = nn.LSTM(6, 8, 2, bidirectional=True)
    plan = initialize_(layer, "chrono", seed=0)
    biases = [n for n, _ in layer.named_parameters() if n.startswith("bias_ih")]
    assert len(biases) == 4
    drawn = [dict(layer.named_parameters())[n].detach() for n in biases]
    assert all(isinstance(plan[n], Chrono) for n in biases)
    assert all(torch.equal(bias[:8], -bias[8:16]) for bias in drawn)
    assert not torch.equal(drawn[0], drawn[1])
    assert all(plan[n] == Constant(0.0) for n, _ in layer.named_parameters() if "bias_hh" in n)


def test_the_rest_of_a_model_is_decided_too():
    model = nn.ModuleDict({"rnn": nn.GRU(4, 8), "head": nn.Linear(8, 2), "norm": nn.LayerNorm(8)})
    plan = make_plan(model, "recurrent")
    assert all(entry.written for entry in plan)
    assert plan["head.weight"].high == pytest.approx(math.sqrt(6 / 10))
    assert plan["norm.weight"] == Constant(1.0)


@pytest.mark.parametrize("name", ["recurrent", "chrono"])
def test_a_model_without_recurrence_is_refused(name):
    with pytest.raises(UnsuitableError, match=r"recurrent layers.*xavier_uniform"):
        make_plan(nn.Linear(2, 2), name)


@pytest.mark.parametrize("layer", [nn.RNN(3, 4), nn.LSTM(3, 4, bias=False)])
def test_chrono_needs_gates_with_biases(layer):
    before = [p.clone() for p in layer.parameters()]
    with pytest.raises(UnsuitableError, match=r"gates with biases.*'recurrent'"):
        initialize_(layer, "chrono", seed=0)
    assert all(torch.equal(a, b) for a, b in zip(before, layer.parameters(), strict=True))
    initialize_(layer, "recurrent", seed=0)


def test_bad_input():
    for params in ({"t_max": 2}, {"t_max": 10.5}, {"gain": 3.0}):
        with pytest.raises(ValueError, match=next(iter(params))):
            InitSpec("chrono", params)
    with pytest.raises(ValueError, match="forget_bias"):
        InitSpec("recurrent", {"forget_bias": -1.0})


def test_scale_keeps_the_forget_bias_and_doubles_chrono():
    bias = ParamInfo(("b",), (4,), Role.BIAS, part="forget")
    assert InitSpec("recurrent", {"scale": 2.0}).build().initializer(bias) == Constant(1.0)
    one, two = (make_plan(nn.LSTM(3, 4), InitSpec("chrono", {"scale": s})) for s in (1.0, 2.0))
    assert two["bias_ih_l0"].std == pytest.approx(2 * one["bias_ih_l0"].std)


class Cell(nn.Module):
    """An LSTM as tutorials write it."""

    def __init__(self, split_first):
        super().__init__()
        self.inner, self.hidden = nn.Linear(5, 32), nn.Linear(8, 32, bias=False)
        self.out, self.split_first = nn.Linear(8, 3), split_first

    def forward(self, x):
        h = c = torch.zeros(len(x), 8)
        for t in range(x.shape[1]):
            one, two = self.inner(x[:, t]), self.hidden(h)
            if self.split_first:
                gates = [a + b for a, b in zip(one.chunk(4, 1), two.chunk(4, 1), strict=True)]
            else:
                gates = (one + two).chunk(4, 1)
            i, f, g, o = gates
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return self.out(h)


@pytest.mark.parametrize("split_first", [False, True])
def test_a_cell_written_by_hand(split_first):
    model = Cell(split_first)
    x = torch.randn(2, 4, 5)
    spec = InitSpec("recurrent", {"gain": 1.25})
    plan = initialize_(model, spec, seed=0, forward=lambda: model(x))
    for gate in model.hidden.weight.detach().chunk(4):
        assert torch.linalg.svdvals(gate) == pytest.approx(torch.full((8,), 1.25), rel=1e-5)
    assert not model.inner.bias.any()
    assert any("hidden.weight" in note and "forgets is not to be seen" in note
               for note in plan.notes)  # fmt: skip
    for forward in (None, lambda: model(x[:, :1])):
        with pytest.raises(UnsuitableError, match="2 or more steps"):
            make_plan(model, "recurrent", forward=forward)


def test_shared_layers_of_a_residual_net_are_no_recurrence():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            for _ in range(3):
                x = x + self.two(torch.relu(self.one(x)))
            return x

    model = Shared()
    with pytest.raises(UnsuitableError, match="no hidden-to-hidden"):
        make_plan(model, "recurrent", forward=lambda: model(torch.randn(2, 8)))
