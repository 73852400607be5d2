"""SIREN: bounds by the layer's place, seen by the sine behind it, and a signal that it can fit."""

import math

import pytest
import torch
from torch import nn

from lightning_init import InitSpec, initialize_, make_plan
from lightning_init.strategies.distributions import Uniform
from lightning_init.strategies.needs import NotYetError, UnsuitableError


class Siren(nn.Module):
    """Sines in a lambda: no module tells of them."""

    def __init__(self, inner=2, width=24, depth=3, w0=30.0):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width if i else inner, width) for i in range(depth))
        self.head = nn.Linear(width, 1)
        self.sine = lambda x: torch.sin(w0 * x)

    def forward(self, x):
        for layer in self.layers:
            x = self.sine(layer(x))
        return self.head(x)


@pytest.mark.parametrize("w0", [30.0, 7.0])
def test_bounds(w0):
    model = Siren(w0=w0)
    x = torch.rand(16, 2)
    plan = initialize_(model, InitSpec("siren", {"w0": w0}), seed=0, forward=lambda: model(x))
    hidden = math.sqrt(6 / 24) / w0
    bounds = {
        **{"layers.0.weight": 1 / 2, "layers.0.bias": 1 / math.sqrt(2)},
        **{f"layers.{i}.weight": hidden for i in (1, 2)},
        **{f"layers.{i}.bias": 1 / math.sqrt(24) for i in (1, 2)},
        **{"head.weight": hidden, "head.bias": 1 / math.sqrt(24)},
    }
    assert {e.info.name for e in plan} == set(bounds)
    for name, bound in bounds.items():
        assert isinstance(plan[name], Uniform)
        assert plan[name].high == pytest.approx(bound, rel=1e-12)
        assert plan[name].low == -plan[name].high
        assert float(model.get_parameter(name).detach().abs().max()) <= bound


def test_activations_are_spread_as_the_paper_says():
    """Theorem 1.8: sines of every layer are arcsine distributed, of std sqrt(1/2)."""
    model = Siren(width=256, depth=5)
    x = torch.rand(512, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    initialize_(model, "siren", seed=0, forward=lambda: model(x))
    for layer in model.layers:
        x = model.sine(layer(x)).detach()
        assert float(x.square().mean()) == pytest.approx(0.5, abs=0.05)


def test_kernels_and_functional_layers():
    model = nn.Sequential(
        nn.Conv1d(3, 8, 5), Sine(), nn.Conv1d(8, 8, 5), Sine(), nn.Conv1d(8, 2, 1)
    )
    plan = make_plan(model, "siren", forward=lambda: model(torch.ones(1, 3, 20)))
    assert plan["0.weight"].high == pytest.approx(1 / 15)
    assert plan["2.weight"].high == pytest.approx(math.sqrt(6 / 40) / 30)
    assert plan["4.weight"].high == pytest.approx(math.sqrt(6 / 8) / 30)


class Sine(nn.Module):
    def forward(self, x):
        return torch.sin(30 * x)


def test_layers_without_a_sine_are_as_in_auto_or_as_in_the_step_below():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), Sine(), nn.Linear(8, 2))
    x = torch.ones(1, 4)
    auto = make_plan(model, "auto", forward=lambda: model(x))
    plan = make_plan(model, "siren", forward=lambda: model(x))
    assert plan["0.weight"] == auto["0.weight"]
    assert plan["0.bias"] == auto["0.bias"]
    assert plan["2.weight"].high == pytest.approx(math.sqrt(6 / 8) / 30)  # it is not the first
    steps = InitSpec("chain", {"steps": ["orthogonal", "siren"]})
    chained = make_plan(model, steps, forward=lambda: model(x))
    assert chained["2.weight"] == plan["2.weight"]
    assert chained["0.weight"] == make_plan(model, "orthogonal")["0.weight"]


def test_scale():
    model, x = Siren(), torch.rand(4, 2)
    one, two = (
        make_plan(model, InitSpec("siren", {"scale": s}), forward=lambda: model(x))
        for s in (1.0, 2.0)
    )
    assert all(b.distribution.std == 2 * a.distribution.std for a, b in zip(one, two, strict=True))


def test_a_model_without_sines_is_refused():
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    with pytest.raises(UnsuitableError, match=r"sine.*xavier_uniform"):
        make_plan(model, "siren", forward=lambda: model(torch.ones(1, 2)))
    with pytest.raises(NotYetError, match="forward"):
        make_plan(Siren(), "siren")
    with pytest.raises(ValueError, match="w0"):
        InitSpec("siren", {"w0": 0.0})


def psnr(strategy):
    torch.manual_seed(0)
    model = Siren(inner=1, width=64)
    t = torch.linspace(-1, 1, 256)[:, None]
    signal = torch.sin(20 * t) * torch.exp(-t * t) + 0.3 * torch.sin(71 * t)
    initialize_(model, strategy, seed=0, forward=lambda: model(t))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(300):
        loss = (model(t) - signal).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    reach = float(signal.max() - signal.min())
    return 10 * math.log10(reach**2 / float(loss.detach()))


@pytest.mark.slow
def test_it_fits_a_signal_that_other_schemes_do_not():
    ours = psnr("siren")
    assert ours > 45
    for other in ("torch_default", "xavier_uniform"):
        assert psnr(other) < ours - 10
