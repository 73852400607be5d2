"""What PyTorch's layers draw, against their own reset_parameters; and zeros."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_init import InitSpec, initialize_, make_plan
from lightning_init.strategies.distributions import Constant, Keep, Normal, Uniform
from tests.zoo import ZOO

LAYERS = {
    "linear": lambda: nn.Linear(300, 200),
    "bilinear": lambda: nn.Bilinear(20, 30, 40),
    "conv1d": lambda: nn.Conv1d(12, 60, 5),
    "conv2d": lambda: nn.Conv2d(24, 32, 3),
    "conv3d": lambda: nn.Conv3d(6, 20, 3),
    "grouped": lambda: nn.Conv2d(24, 64, 3, groups=4),
    "depthwise": lambda: nn.Conv2d(64, 128, 3, groups=64),
    "transposed": lambda: nn.ConvTranspose2d(48, 20, 3, stride=2),
    "transposed, grouped": lambda: nn.ConvTranspose2d(48, 20, 4, stride=2, groups=4),
    "transposed1d": lambda: nn.ConvTranspose1d(48, 20, 5),
    "transposed3d": lambda: nn.ConvTranspose3d(16, 8, 3),
    "embedding": lambda: nn.Embedding(100, 60, padding_idx=3),
    "bag": lambda: nn.EmbeddingBag(100, 60),
    "attention": lambda: nn.MultiheadAttention(64, 4, add_bias_kv=True),
    "attention, other sizes": lambda: nn.MultiheadAttention(64, 4, kdim=20, vdim=30),
    "lstm": lambda: nn.LSTM(30, 40, 2, bidirectional=True),
    "lstm, projected": lambda: nn.LSTM(30, 40, proj_size=12),
    "gru": lambda: nn.GRU(30, 40),
    "rnn": lambda: nn.RNN(30, 40),
    "lstm_cell": lambda: nn.LSTMCell(30, 40),
    "gru_cell": lambda: nn.GRUCell(30, 40),
    "rnn_cell": lambda: nn.RNNCell(30, 40),
    "layer_norm": lambda: nn.LayerNorm(20),
    "rms_norm": lambda: nn.RMSNorm(20),
    "group_norm": lambda: nn.GroupNorm(4, 20),
    "batch_norm": lambda: nn.BatchNorm2d(20),
    "instance_norm": lambda: nn.InstanceNorm1d(20, affine=True),
    "prelu": lambda: nn.PReLU(7, init=0.1),
    "adaptive": lambda: nn.AdaptiveLogSoftmaxWithLoss(60, 100, [20, 50]),
}


def drawn_by_torch(build, times):
    """Each tensor, drawn again and again by the layer's own constructor."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [build() for _ in range(times)]
    names = [name for name, _ in layers[0].named_parameters()]
    return {n: torch.stack([layer.get_parameter(n).detach() for layer in layers]) for n in names}


@pytest.mark.parametrize("name", LAYERS)
def test_laws_are_those_of_reset_parameters(name):
    layer = LAYERS[name]()
    plan = make_plan(layer, "torch_default", scope="all")
    real = drawn_by_torch(LAYERS[name], 60)
    assert {e.info.name for e in plan} == set(real)
    for entry in plan:
        law, values = entry.distribution, real[entry.info.name]
        if entry.info.padding_idx is not None:
            keep = [i for i in range(values.shape[1]) if i != entry.info.padding_idx]
            values = values[:, keep]
        n = values.numel()
        if isinstance(law, Uniform):
            reach = float(values.abs().max())
            assert reach <= law.high * (1 + 1e-6)
            assert reach > law.high * (1 - 12 / n), entry.info.name
            assert law.low == -law.high
        elif isinstance(law, Normal):
            assert float(values.std()) == pytest.approx(law.std, rel=5 / math.sqrt(2 * n))
        else:
            assert isinstance(law, Constant), entry.info.name
            assert bool((values == law.value).all()), entry.info.name


def test_a_lazy_layer_is_its_eager_twin():
    x = torch.randn(2, 12, 9, 9)

    def build(lazy):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            first = nn.LazyConvTranspose2d(8, 3) if lazy else nn.ConvTranspose2d(12, 8, 3)
            second = nn.LazyLinear(5) if lazy else nn.Linear(8 * 121, 5)
            return nn.Sequential(first, nn.ReLU(), nn.Flatten(), second)

    lazy, eager = build(True), build(False)
    plans = [make_plan(m, "torch_default", forward=lambda m=m: m(x)) for m in (lazy, eager)]
    assert [e.distribution for e in plans[0]] == [e.distribution for e in plans[1]]


def test_parametrized_layers_and_tied_tables():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(40, 20))
    assert make_plan(layer, "torch_default")["weight"] == Uniform(-(40**-0.5), 40**-0.5)
    module, forward = ZOO["nanogpt"]()
    tied = make_plan(module, "torch_default", forward=forward)["wte.weight"]
    assert tied == Normal(1.0)


def test_what_no_layer_draws_is_kept():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.ones(3))

    plan = make_plan(Bare(), "torch_default")
    assert isinstance(plan["token"], Keep)


def test_scale():
    one, two = (
        make_plan(nn.Linear(4, 2), InitSpec("torch_default", {"scale": s})) for s in (1.0, 2.0)
    )
    assert two["weight"].std == 2 * one["weight"].std


def test_zeros_make_a_head_that_knows_nothing():
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 10))
    x = torch.randn(20, 6)
    spec = InitSpec("kaiming_normal", overrides={"role:head": InitSpec("zeros")})
    initialize_(model, spec, seed=0, forward=lambda: model(x))
    assert not model[2].weight.any()
    assert not model[2].bias.any()
    assert model[0].weight.any()
    loss = F.cross_entropy(model(x), torch.arange(20) % 10)
    assert float(loss.detach()) == pytest.approx(math.log(10), abs=1e-6)


def test_zeros_alone():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4))
    plan = initialize_(model, "zero", seed=0)
    assert [e.distribution.mean for e in plan] == [0, 0, 0, 1, 0]
    assert not model[0].weight.any()
    assert bool((model[2].weight == 1).all())
