"""Each row of auto's table, and what it recommends."""

import pytest
from torch import nn

from lightning_init import ParamInfo, Role, Usage, analyze, make_plan, recommend
from lightning_init.strategies.auto import auto
from lightning_init.strategies.distributions import Constant, Keep, Normal
from lightning_init.strategies.matrices import Orthogonal
from tests.zoo import ZOO

IN, OUT = 50, 32


def choice(role=Role.WEIGHT, activation="linear", layer="Linear", traits=(), shape=None, **usage):
    info = ParamInfo(
        ("w",),
        shape or (OUT, IN),
        role,
        fan_in=IN,
        fan_out=OUT,
        usage=Usage(nonlinearity=activation, **usage),
        layer=layer,
        traits=frozenset(traits),
    )
    return auto().initializer(info)


XAVIER, KAIMING = Normal((2 / 82) ** 0.5), Normal((2 / 50) ** 0.5)
SMOOTH = ["relu", "leaky_relu", "gelu", "silu", "elu", "mish", "softplus"]


@pytest.mark.parametrize(
    ("asked", "law"),
    [
        ({"role": Role.BIAS}, Constant(0.0)),
        ({"role": Role.NORM_SCALE}, Constant(1.0)),
        ({"role": Role.NORM_SHIFT}, Constant(0.0)),
        ({"role": Role.EMBEDDING}, Normal(0.02)),
        ({"role": Role.RECURRENT}, Orthogonal((OUT, IN), 1.0)),
        ({"is_output": True}, Normal(0.5 / 50**0.5)),
        ({"is_output": True, "traits": {"attention"}}, Normal(0.5 / 50**0.5)),
        ({"traits": {"attention"}}, Normal(0.02)),
        ({"traits": {"attention", "norm"}, "activation": "gelu"}, Normal(0.02)),
        (
            {"traits": {"attention"}, "ends_branch": True, "num_branches": 9},
            Normal(0.02 / 3),
        ),
        (
            {"traits": {"attention", "norm"}, "ends_branch": True, "num_branches": 4},
            Normal(0.01),
        ),
        ({"activation": "selu"}, Normal(1 / 50**0.5)),
        ({"activation": "tanh"}, XAVIER),
        ({"activation": "sigmoid"}, XAVIER),
        ({"activation": "relu", "layer": "Conv2d", "traits": {"relu"}}, Normal((2 / 32) ** 0.5)),
        ({"activation": "linear", "layer": "Conv2d", "traits": {"silu"}}, Normal((2 / 32) ** 0.5)),
        ({"activation": "linear", "layer": "Conv2d", "traits": {"tanh"}}, XAVIER),
        ({"activation": "tanh", "layer": "Conv2d", "traits": {"relu"}}, XAVIER),
        *(({"activation": name, "traits": {name}}, KAIMING) for name in SMOOTH),
        ({}, XAVIER),
        ({"ends_branch": True, "num_branches": 4}, Normal(XAVIER.std / 2)),
        ({"ends_branch": True, "num_branches": 4, "traits": {"norm"}}, XAVIER),
        ({"ends_branch": True, "num_branches": 4, "is_output": True}, Normal(XAVIER.std / 2)),
    ],
)
def test_row(asked, law):
    found = choice(**asked)
    assert type(found) is type(law)
    assert found.std == pytest.approx(law.std, rel=1e-12)
    assert found.mean == law.mean
    assert found.reason


@pytest.mark.parametrize("asked", [{"activation": "sin"}, {"role": Role.OTHER}, {"shape": (0, 50)}])
def test_kept(asked):
    assert isinstance(choice(**asked), Keep)


def test_without_a_forward_pass_the_modules_suggestion_counts():
    info = ParamInfo(("w",), (OUT, IN), Role.WEIGHT, IN, OUT, nonlinearity="relu")
    assert auto().initializer(info) == KAIMING


def test_gpt_with_a_forward_pass():
    model, forward = ZOO["nanogpt"]()
    plan = make_plan(model, "auto", forward=forward)
    assert plan["h.0.attn.in_proj_weight"].std == 0.02
    assert plan["h.0.proj.weight"].std == pytest.approx(0.02 / 6**0.5)
    assert plan["h.2.attn.out_proj.weight"].std == pytest.approx(0.02 / 6**0.5)
    assert plan["head.weight"].std == 0.02
    assert "ends branch 2 of 6" in plan["h.0.proj.weight"].reason


def test_recurrent_matrices_are_orthogonal_per_gate():
    model, forward = ZOO["lstm"]()
    plan = make_plan(model, "auto", forward=forward)
    assert plan["lstm.weight_hh_l1"] == Orthogonal((32, 8), 1.0, 4)
    assert plan["lstm.weight_ih_l0"].std == pytest.approx((2 / 14) ** 0.5)


@pytest.mark.parametrize(
    ("depth", "norm", "pays"),
    [(9, False, False), (10, False, True), (49, True, False), (50, True, True)],
)
def test_recommend(depth, norm, pays):
    layers = [nn.Linear(4, 4) for _ in range(depth)] + [nn.LayerNorm(4)] * norm
    advice = recommend(analyze(nn.Sequential(*layers)))
    assert advice.search_pays is pays
    assert advice.spec.strategy == "auto"
    assert f"{depth} weight layers deep" in advice.reason
    assert ("without" in advice.reason) is not norm


def test_recommend_counts_depth_along_the_path_where_it_was_seen():
    model, forward = ZOO["tanh_mlp"]()
    assert recommend(analyze(model, forward)).reason.startswith("12 weight layers deep")
