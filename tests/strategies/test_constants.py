"""Every constant of every scheme: against torch.nn.init, and against the papers' formulas."""

import math

import pytest
import torch
from torch import nn

from lightning_init import InitSpec, ParamInfo, Role, Usage, make_plan
from lightning_init.strategies.distributions import Constant, Keep, Normal, TruncatedNormal, Uniform
from lightning_init.strategies.matrices import Orthogonal
from lightning_init.strategies.registry import get

SHAPE = (600, 900)


def planned(name, model=None, **params):
    model = model or nn.Linear(SHAPE[1], SHAPE[0])
    return make_plan(model, InitSpec(name, params))["weight"]


TORCH = {
    "xavier_uniform": lambda w: nn.init.xavier_uniform_(w),
    "xavier_normal": lambda w: nn.init.xavier_normal_(w),
    "kaiming_uniform": lambda w: nn.init.kaiming_uniform_(w, nonlinearity="relu"),
    "kaiming_normal": lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu"),
    "lecun_uniform": lambda w: nn.init.kaiming_uniform_(w, nonlinearity="linear"),
    "lecun_normal": lambda w: nn.init.kaiming_normal_(w, nonlinearity="linear"),
    "orthogonal": lambda w: nn.init.orthogonal_(w),
    "normal": lambda w: nn.init.normal_(w, std=0.02),
    "uniform": lambda w: nn.init.uniform_(w, -0.05, 0.05),
    "constant": lambda w: nn.init.zeros_(w),
    "gpt2": lambda w: nn.init.normal_(w, std=0.02),
}


@pytest.mark.parametrize("name", TORCH)
def test_against_torch(name):
    weight = torch.empty(SHAPE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        TORCH[name](weight)
    law = planned(name)
    assert law.std == pytest.approx(float(weight.std()), rel=5 / math.sqrt(2 * weight.numel()))
    assert law.mean == 0
    if isinstance(law, Uniform):
        reach = float(weight.abs().max())
        assert reach <= law.high * (1 + 1e-6)
        assert reach == pytest.approx(law.high, rel=1e-4)
        assert law.low == -law.high


@pytest.mark.parametrize(
    ("name", "params", "torchs"),
    [
        ("kaiming_normal", {"mode": "fan_out"}, {"mode": "fan_out"}),
        ("kaiming_uniform", {"mode": "fan_out"}, {"mode": "fan_out"}),
    ],
)
def test_fan_out_against_torch(name, params, torchs):
    weight = torch.empty(SHAPE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        getattr(nn.init, f"{name}_")(weight, nonlinearity="relu", **torchs)
    tolerance = 5 / math.sqrt(2 * weight.numel())
    assert planned(name, **params).std == pytest.approx(float(weight.std()), rel=tolerance)


IN, OUT = 300, 200
FORMULAS = [
    ("xavier_uniform", {}, Uniform(-((6 / 500) ** 0.5), (6 / 500) ** 0.5)),
    ("xavier_normal", {}, Normal((2 / 500) ** 0.5)),
    ("xavier_normal", {"gain": 1.5}, Normal(1.5 * (2 / 500) ** 0.5)),
    ("kaiming_uniform", {}, Uniform(-((6 / 300) ** 0.5), (6 / 300) ** 0.5)),
    ("kaiming_uniform", {"mode": "fan_out"}, Uniform(-((6 / 200) ** 0.5), (6 / 200) ** 0.5)),
    ("kaiming_normal", {}, Normal((2 / 300) ** 0.5)),
    ("kaiming_normal", {"mode": "fan_out", "gain": 0.5}, Normal(0.5 * (2 / 200) ** 0.5)),
    ("lecun_uniform", {}, Uniform(-((3 / 300) ** 0.5), (3 / 300) ** 0.5)),
    ("lecun_normal", {"gain": 2.0}, Normal(2 / 300**0.5)),
    ("normal", {}, Normal(0.02)),
    ("normal", {"std": 0.3, "scale": 0.5}, Normal(0.15)),
    ("uniform", {}, Uniform(-0.05, 0.05)),
    ("uniform", {"bound": 0.1, "scale": 3}, Uniform(-0.3, 0.3)),
    ("truncated_normal", {}, TruncatedNormal(0.02)),
    ("constant", {"value": 0.3}, Constant(0.3)),
    ("orthogonal", {}, Orthogonal((200, 300), 1.0)),
    ("orthogonal", {"gain": 1.25, "scale": 2}, Orthogonal((200, 300), 2.5)),
    ("lsuv", {}, Orthogonal((200, 300), 1.0)),
    ("lsuv", {"scale": 3.0}, Orthogonal((200, 300), 1.0)),  # the scale is the target of the pass
    ("gpt2", {}, Normal(0.02)),
    ("bert", {}, TruncatedNormal(0.02)),
    ("bert", {"std": 0.05}, TruncatedNormal(0.05)),
]


@pytest.mark.parametrize(("name", "params", "law"), FORMULAS)
def test_against_the_formula(name, params, law):
    info = ParamInfo(("w",), (OUT, IN), Role.WEIGHT, fan_in=IN, fan_out=OUT)
    found = get(name).build(params).initializer(info)
    assert type(found) is type(law)
    assert found.std == pytest.approx(law.std, rel=1e-9)
    assert found.mean == pytest.approx(law.mean)
    for field in ("gain", "blocks", "shape", "cut", "low", "high"):
        if hasattr(law, field):
            assert getattr(found, field) == pytest.approx(getattr(law, field))


@pytest.mark.parametrize(
    ("layer", "std"),
    [
        (nn.Conv2d(64, 64, 3, groups=64), (2 / 9) ** 0.5),
        (nn.Conv2d(8, 16, 3, groups=4), (2 / 18) ** 0.5),
        (nn.ConvTranspose2d(128, 32, 3), (2 / 1152) ** 0.5),
        (nn.ConvTranspose2d(128, 32, 4, stride=2), (2 / 512) ** 0.5),
        (nn.Bilinear(3, 4, 5), (2 / 12) ** 0.5),
    ],
)
def test_the_fans_of_layers_reach_the_schemes(layer, std):
    assert planned("kaiming_normal", layer).std == pytest.approx(std, rel=1e-12)


def test_gates_and_fused_projections_are_drawn_per_block():
    lstm, attention = nn.LSTM(6, 8), nn.MultiheadAttention(12, 3)
    assert make_plan(lstm, "xavier_normal")["weight_ih_l0"].std == pytest.approx((2 / 14) ** 0.5)
    assert make_plan(lstm, "orthogonal")["weight_hh_l0"] == Orthogonal((32, 8), 1.0, 4)
    assert make_plan(attention, "orthogonal")["in_proj_weight"] == Orthogonal((36, 12), 1.0, 3)
    fused = make_plan(attention, "xavier_normal")["in_proj_weight"].std
    assert fused == pytest.approx((2 / 24) ** 0.5)


@pytest.mark.parametrize("branches", [1, 4, 24])
def test_gpt2_divides_by_the_root_of_the_residual_additions(branches):
    usage = Usage(ends_branch=True, branch=0, num_branches=branches)
    info = ParamInfo(("w",), (4, 4), Role.WEIGHT, 4, 4, usage=usage)
    law = get("gpt2").build({"std": 0.1}).initializer(info)
    assert law.std == pytest.approx(0.1 / branches**0.5, rel=1e-12)
    inside = ParamInfo(("w",), (4, 4), Role.WEIGHT, 4, 4, usage=Usage(num_branches=branches))
    assert get("gpt2").build({"std": 0.1}).initializer(inside) == Normal(0.1)


REST = ["xavier_uniform", "kaiming_normal", "lecun_normal", "orthogonal", "lsuv", "gpt2", "bert"]


@pytest.mark.parametrize("name", [*REST, "normal", "uniform", "truncated_normal", "auto"])
def test_biases_norms_and_unknown_tensors(name):
    rule = get(name).build({"scale": 2.0}).initializer

    def law(role):
        return rule(ParamInfo(("t",), (4,), role))

    assert law(Role.BIAS) == Constant(0.0)
    assert law(Role.NORM_SCALE) == Constant(1.0)
    assert law(Role.NORM_SHIFT) == Constant(0.0)
    assert isinstance(law(Role.OTHER), Keep)


@pytest.mark.parametrize("name", ["xavier_uniform", "kaiming_normal", "lecun_normal", "orthogonal"])
def test_tables(name):
    rule = get(name).build({}).initializer
    free = ParamInfo(("t",), (50, 16), Role.EMBEDDING, 1, 16)
    tied = ParamInfo(("t", "h"), (50, 16), Role.EMBEDDING, 1, 16, flags=frozenset({"tied"}))
    assert isinstance(rule(free), Keep)
    assert rule(tied) == Normal(0.25)


@pytest.mark.parametrize(("name", "std"), [("gpt2", 0.02), ("bert", 0.02), ("normal", 0.02)])
def test_one_std_for_tables_too(name, std):
    info = ParamInfo(("t",), (50, 16), Role.EMBEDDING, 1, 16)
    assert get(name).build({}).initializer(info).std == std
    assert get(name).build({"scale": 0.5}).initializer(info).std == std / 2


def test_keep_keeps_everything():
    rule = get("keep").build({}).initializer
    assert all(isinstance(rule(ParamInfo(("t",), (4, 4), role)), Keep) for role in Role)


def test_an_orthogonal_vector_falls_back_to_a_normal():
    info = ParamInfo(("w",), (16,), Role.WEIGHT, fan_in=16, fan_out=1)
    assert get("orthogonal").build({"gain": 2.0}).initializer(info) == Normal(0.5)
