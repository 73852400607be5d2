"""Gains by quadrature: against SciPy, NumPy's Gauss-Hermite, and the table of published constants."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import integrate
from torch import nn

from lightning_init import (
    InitSpec,
    activation_chi,
    activation_gain,
    analyze,
    initialize_,
    make_plan,
)
from lightning_init.architecture.quadrature import nodes
from lightning_init.architecture.trace import ForwardError
from lightning_init.strategies.matrices import DeltaOrthogonal, Orthogonal
from tests.zoo import ZOO

# name: gain that keeps q = 1, and chi there (to the digits that are printed). Where the slope
# jumps at 0, a node of Gauss-Hermite at 0 is off: that gives 1.041 for elu and 1.169 for selu.
TABLE = {
    "linear": (1.0, 1.0),
    "relu": (1.41421356, 1.0),
    "tanh": (1.5925, 1.178),
    "gelu": (1.5335, 1.072),
    "silu": (1.6765, 1.067),
    "elu": (1.2452, 1.0359),
    "selu": (1.0000, 1.0716),
    "sigmoid": (1.8462, 0.153),
}


@pytest.mark.parametrize("name", TABLE)
def test_published_constants(name):
    gain, chi = TABLE[name]
    assert activation_gain(name) == pytest.approx(gain, abs=6e-5)
    assert activation_chi(name) == pytest.approx(chi, abs=6e-4)


@pytest.mark.parametrize("slope", [0.0, 0.01, 0.3, 1.0])
def test_leaky_relu_is_exact(slope):
    def leaky(x):
        return F.leaky_relu(x, slope)

    assert activation_gain(leaky) == pytest.approx(math.sqrt(2 / (1 + slope**2)), rel=1e-12)
    assert activation_chi(leaky) == pytest.approx(1.0, rel=1e-12)
    assert activation_chi(leaky, 1.0) == pytest.approx((1 + slope**2) / 2, rel=1e-12)


SMOOTH = {
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "softplus": lambda x: np.log1p(np.exp(x)),
    "mish": lambda x: x * np.tanh(np.log1p(np.exp(x))),
    "sin": np.sin,
}
KINKED = {
    "relu6": lambda x: np.clip(x, 0, 6),
    "hardtanh": lambda x: np.clip(x, -1, 1),
    "hardswish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "softsign": lambda x: x / (1 + abs(x)),
    "softshrink": lambda x: np.sign(x) * max(abs(x) - 0.5, 0),
    "elu": lambda x: x if x > 0 else math.expm1(x),
    "selu": lambda x: 1.0507009873554805 * (x if x > 0 else 1.6732632423543772 * math.expm1(x)),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_against_gauss_hermite_of_numpy(name):
    z, w = np.polynomial.hermite_e.hermegauss(201)
    moment = (w * SMOOTH[name](z) ** 2).sum() / math.sqrt(2 * math.pi)
    assert activation_gain(name) == pytest.approx(moment**-0.5, rel=1e-9)


@pytest.mark.parametrize("name", KINKED)
def test_against_adaptive_quadrature_of_scipy(name):
    def density(x):
        return KINKED[name](x) ** 2 * math.exp(-x * x / 2) / math.sqrt(2 * math.pi)

    kinks = [-6, -3, -1, -0.5, 0, 0.5, 1, 3, 6]
    moment, _ = integrate.quad(density, -12, 12, points=kinks, limit=500, epsabs=1e-13)
    assert activation_gain(name) == pytest.approx(moment**-0.5, rel=1e-8)


def test_the_nodes_integrate_polynomials_and_sine_of_high_frequency():
    z, w = nodes()
    for power, moment in ((0, 1.0), (2, 1.0), (4, 3.0), (6, 15.0), (8, 105.0)):
        assert float(w @ z**power) == pytest.approx(moment, rel=1e-9)
    assert activation_gain(lambda x: torch.sin(30 * x)) == pytest.approx(math.sqrt(2), rel=1e-9)


@pytest.mark.parametrize("name", ["reluu", "nonsense"])
def test_an_unknown_name_is_an_error(name):
    with pytest.raises(ValueError, match=name):
        activation_gain(name)


def test_a_function_without_scale_has_no_gain():
    with pytest.raises(ValueError, match="no gain"):
        activation_gain(torch.zeros_like)


class Snake(nn.Module):
    def __init__(self, alpha):
        super().__init__()
        self.alpha = nn.Parameter(alpha)

    def forward(self, x):
        return x + (1 / self.alpha) * torch.sin(self.alpha * x) ** 2


class Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def moment(function):
    z, w = nodes()
    return float(w @ function(z.clone()) ** 2)


def masked(x):
    return x * (x > 0)


def half_in_place(x):
    return (x * 2).add_(1).relu_()


OWN = {
    "leaky, own slope": (nn.LeakyReLU(0.3), lambda z: F.leaky_relu(z, 0.3)),
    "leaky, in place": (nn.LeakyReLU(0.3, inplace=True), lambda z: F.leaky_relu(z, 0.3)),
    "prelu": (nn.PReLU(init=0.1), lambda z: F.leaky_relu(z, 0.1)),
    "elu, own alpha": (nn.ELU(0.5), lambda z: F.elu(z, 0.5)),
    "hardtanh": (nn.Hardtanh(-0.5, 2.0), lambda z: z.clamp(-0.5, 2.0)),
    "softplus, own beta": (nn.Softplus(3.0), lambda z: F.softplus(z, 3.0)),
    "snake": (Snake(torch.tensor(0.7)), lambda z: z + torch.sin(0.7 * z) ** 2 / 0.7),
    "mish written out": (Call(lambda x: x * torch.tanh(F.softplus(x))), F.mish),
    "quick gelu": (
        Call(lambda x: x * torch.sigmoid(1.702 * x)),
        lambda z: z * torch.sigmoid(1.702 * z),
    ),
    "squared relu": (Call(lambda x: F.relu(x) ** 2), lambda z: z.clamp(min=0) ** 2),
    "where": (Call(lambda x: torch.where(x > 0, x, 0.3 * x)), lambda z: F.leaky_relu(z, 0.3)),
    "mask": (Call(masked), F.relu),
    "maximum": (Call(lambda x: torch.maximum(x, torch.zeros_like(x))), F.relu),
    "in place": (Call(half_in_place), lambda z: F.relu(2 * z + 1)),
    "softsign": (nn.Softsign(), F.softsign),
    "threshold": (nn.Threshold(0.25, 0.0), lambda z: z * (z > 0.25)),
    "reshaped": (Call(lambda x: F.gelu(x.view(-1, 4, 4)).flatten(1)), F.gelu),
    "half precision": (Call(lambda x: F.gelu(x.bfloat16()).float()), F.gelu),
    "dropout": (nn.Sequential(nn.Tanh(), nn.Dropout(0.5)), torch.tanh),
    "sine": (Call(lambda x: torch.sin(30 * x)), lambda z: torch.sin(30 * z)),
}


def seen(activation, width=16):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, width), activation, nn.Linear(width, 4))
    return model, analyze(model, lambda: model(torch.randn(6, 8)))


@pytest.mark.parametrize("name", OWN)
def test_a_function_is_known_whatever_it_is_called(name):
    activation, function = OWN[name]
    _, found = seen(activation)
    expected = moment(function) ** -0.5
    assert found["0.weight"].usage.gain == pytest.approx(expected, rel=1e-7)
    assert found["2.weight"].usage.gain == 1.0


def test_a_parameter_per_channel_is_averaged():
    slopes = torch.linspace(0.1, 2.0, 16)
    prelu = nn.PReLU(16)
    prelu.weight.data.copy_(slopes)
    for activation, function in (
        (prelu, F.leaky_relu),
        (Snake(slopes), lambda z, a: z + torch.sin(a * z) ** 2 / a),
    ):
        mean = sum(moment(lambda z, a=a, f=function: f(z, a)) for a in slopes.tolist()) / 16
        assert seen(activation)[1]["0.weight"].usage.gain == pytest.approx(mean**-0.5, rel=1e-6)


@pytest.mark.parametrize(
    "activation",
    [nn.RReLU(), Call(lambda x: x.cumsum(1)), Call(lambda x: x * torch.rand_like(x).relu())],
)
def test_what_is_random_or_no_function_of_an_element_is_unknown(activation):
    model, found = seen(activation)
    assert found["0.weight"].usage.gain is None
    plan = make_plan(model, InitSpec("kaiming_normal", {"activation": "observed"}),
                     forward=lambda: model(torch.randn(6, 8)))  # fmt: skip
    assert plan["0.weight"].std == pytest.approx(8**-0.5)
    assert "unknown" in plan["0.weight"].reason


def test_halves_that_meet_are_no_function_of_one_element():
    def gated(x):
        one, two = x.chunk(2, -1)
        return one * torch.sigmoid(two)

    torch.manual_seed(0)
    for gate in (nn.GLU(), Call(gated)):
        model = nn.Sequential(nn.Linear(8, 16), gate, nn.Linear(8, 4))
        found = analyze(model, lambda model=model: model(torch.randn(6, 8)))
        assert found["0.weight"].usage.gain is None


def test_looking_leaves_the_random_state_and_the_parameters():
    model, _ = seen(Snake(torch.tensor(0.7)))
    before, state = [p.clone() for p in model.parameters()], torch.get_rng_state()
    x = torch.ones(6, 8)
    analyze(model, lambda: model(x))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("model", "name", "gain"),
    [
        ("relu_mlp", "relu", 2**0.5),
        ("tanh_mlp", "tanh", 1.592537),
        ("selu_mlp", "selu", 1.0),
        ("plain_cnn", "relu", 2**0.5),
        ("residual_cnn", "relu", 2**0.5),
        ("gpt2", "gelu", 1.533530),
        ("bert", "gelu", 1.533530),
    ],
)
def test_models_of_the_zoo(model, name, gain):
    module, forward = ZOO[model]()
    named = [i for i in analyze(module, forward) if i.role == "weight" and i.activation == name]
    assert named
    assert all(i.usage.gain == pytest.approx(gain, rel=2e-3) for i in named)


@pytest.mark.parametrize(
    ("name", "fan"),
    [
        *[(f"{who}_{how}", 12) for who in ("kaiming", "lecun") for how in ("normal", "uniform")],
        *[(f"xavier_{how}", 14) for how in ("normal", "uniform")],
    ],
)
def test_the_observed_gain_in_the_variance_family(name, fan):
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 2))
    spec = InitSpec(name, {"activation": "observed", "gain": 1.25})
    law = make_plan(model, spec, forward=lambda: model(torch.ones(1, 12)))["0.weight"]
    assert law.std == pytest.approx(1.25 * moment(torch.tanh) ** -0.5 / fan**0.5, rel=1e-9)
    assert "tanh" in law.reason
    # by the modules, where no forward pass was seen
    assert make_plan(model, spec)["0.weight"].std == pytest.approx(law.std, rel=1e-9)


def test_the_observed_gain_of_orthogonal_kernels():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.GELU(), nn.Flatten(), nn.Linear(64, 2))
    gain = moment(F.gelu) ** -0.5
    for name, kind in (("orthogonal", Orthogonal), ("delta_orthogonal", DeltaOrthogonal)):
        spec = InitSpec(name, {"activation": "observed"})
        law = make_plan(model, spec, forward=lambda: model(torch.ones(1, 4, 4, 4)))["0.weight"]
        assert isinstance(law, kind)
        assert law.gain == pytest.approx(gain, rel=1e-9)


@pytest.mark.parametrize("name", ["snake", "quick gelu", "leaky, own slope"])
def test_pre_activations_keep_the_variance_of_the_first_layer(name):
    activation, _ = OWN[name]
    layers = [m for _ in range(3) for m in (activation, nn.Linear(512, 512, bias=False))]
    model = nn.Sequential(nn.Linear(512, 512, bias=False), *layers, activation)
    x = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))

    def after(strategy, params):
        first = {"0.weight": InitSpec("lecun_normal")}
        spec = InitSpec(strategy, params, overrides=first)
        initialize_(model, spec, seed=0, forward=lambda: model(x), scope="all")
        with torch.no_grad():
            return float(model[:-1](x).square().mean())

    assert after("lecun_normal", {"activation": "observed"}) == pytest.approx(1.0, abs=0.15)
    assert after("lecun_normal", {}) != pytest.approx(1.0, abs=0.3)


def test_the_larger_of_two_layers_is_no_function_of_one():
    class Maxout(nn.Module):
        def __init__(self, choose):
            super().__init__()
            self.one, self.two, self.out = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 4)
            self.choose = choose

        def forward(self, x):
            return self.out(self.choose(self.one(x), self.two(x)))

    for choose in (torch.maximum, torch.max, torch.fmin, torch.logaddexp):
        model = Maxout(choose)
        found = analyze(model, lambda model=model: model(torch.randn(6, 8)))
        assert found["one.weight"].usage.gain is None
        assert found["two.weight"].usage.gain is None
        assert found["out.weight"].usage.gain == 1.0


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_a_scripted_activation():
    model = nn.Sequential(nn.Linear(8, 16), torch.jit.script(nn.GELU()), nn.Linear(16, 4))
    assert all(entry.written for entry in make_plan(model, "auto"))
    with pytest.raises(ForwardError, match="TorchScript module does not show its calls"):
        make_plan(model, "auto", forward=lambda: model(torch.randn(6, 8)))
