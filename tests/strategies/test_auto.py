"""Each row of auto's table, and what it recommends."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_init import ParamInfo, Role, Usage, analyze, initialize_, make_plan, recommend
from lightning_init.strategies.auto import auto
from lightning_init.strategies.distributions import Constant, Keep, Normal, Uniform
from lightning_init.strategies.matrices import Orthogonal
from tests.zoo import ZOO, noise

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
        ({"role": Role.EMBEDDING, "traits": {"tied table"}}, Normal(1 / 50**0.5)),
        ({"role": Role.POSITION, "traits": {"tied table"}}, Normal(1 / 50**0.5)),
        ({"role": Role.EMBEDDING}, Normal(1.0)),
        ({"role": Role.POSITION, "layer": "Embedding"}, Normal(1.0)),
        ({"normalized": True, "activation": "relu"}, Uniform(-(50**-0.5), 50**-0.5)),
        (
            {"normalized": True, "ends_branch": True, "num_branches": 4},
            Uniform(-(50**-0.5), 50**-0.5),
        ),
        ({"role": Role.RECURRENT}, Orthogonal((OUT, IN), 1.0)),
        ({"is_output": True}, Normal(1 / 50**0.5)),
        ({"is_output": True, "traits": {"attention"}}, Normal(1 / 50**0.5)),
        ({"is_output": True, "normalized": True}, Normal(1 / 50**0.5)),
        ({"traits": {"attention", "norm"}, "activation": "gelu"}, XAVIER),
        ({"traits": {"attention"}, "ends_branch": True, "num_branches": 9}, Normal(XAVIER.std / 3)),
        ({"activation": "selu"}, Normal(1 / 50**0.5)),
        ({"activation": "tanh"}, XAVIER),
        ({"activation": "sigmoid"}, XAVIER),
        ({"activation": "relu", "layer": "Conv2d", "traits": {"relu"}}, KAIMING),
        ({"activation": "linear", "layer": "Conv2d", "traits": {"silu"}}, XAVIER),
        *(({"activation": name, "traits": {name}}, KAIMING) for name in SMOOTH),
        ({}, XAVIER),
        ({"ends_branch": True, "num_branches": 4}, Normal(XAVIER.std / 2)),
        ({"ends_branch": True, "num_branches": 4, "traits": {"norm"}}, Normal(XAVIER.std / 2)),
        ({"ends_branch": True, "num_branches": 4, "is_output": True}, Normal(XAVIER.std / 2)),
    ],
)
def test_row(asked, law):
    found = choice(**asked)
    assert type(found) is type(law)
    assert found.std == pytest.approx(law.std, rel=1e-12)
    assert found.mean == law.mean
    assert found.reason


@pytest.mark.parametrize(
    "asked",
    [
        {"activation": "sin"},
        {"role": Role.OTHER},
        {"role": Role.BRANCH_SCALE},
        {"role": Role.LORA_UP},
        {"role": Role.POSITION, "layer": ""},
        {"shape": (0, 50)},
    ],
)
def test_kept(asked):
    assert isinstance(choice(**asked), Keep)


def test_without_a_forward_pass_the_modules_suggestion_counts():
    info = ParamInfo(("w",), (OUT, IN), Role.WEIGHT, IN, OUT, nonlinearity="relu")
    assert auto().initializer(info) == KAIMING


def test_gpt_with_a_forward_pass():
    model, forward = ZOO["nanogpt"]()
    plan = make_plan(model, "auto", forward=forward)
    # Query, key and value are square matrices of their own, whatever they are stacked in.
    assert plan["h.0.attn.in_proj_weight"].std == pytest.approx((2 / (16 + 16)) ** 0.5)
    assert plan["h.0.proj.weight"].std == pytest.approx((2 / 80 / 6) ** 0.5)
    assert plan["h.2.attn.out_proj.weight"].std == pytest.approx((1 / 16 / 6) ** 0.5)
    assert plan["head.weight"].std == plan["wpe.weight"].std == 0.25
    assert "sqrt(6 branches)" in plan["h.0.proj.weight"].reason
    assert "ends branches 2 to 6 of 6: added to the skip path" in str(plan)


def test_parts_of_unequal_size_have_laws_of_their_own():
    model, forward = ZOO["grouped_attention"]()
    parts = dict(make_plan(model, "auto", forward=forward)["1.attn.qkv.weight"].parts)
    stds = {part.name: each.std for part, each in parts.items()}
    assert stds == pytest.approx({"query": 0.25, "key": (2 / 24) ** 0.5, "value": (2 / 24) ** 0.5})


@pytest.mark.parametrize(
    ("layer", "shape"), [(nn.LSTM(4, 6, num_layers=2), (3, 2, 4)), (nn.LSTMCell(4, 6), (2, 4))]
)
def test_the_forget_gate_is_open_once(layer, shape):
    initialize_(layer, "auto", seed=0, forward=lambda: layer(noise(*shape)))
    with torch.no_grad():
        total = {
            name: value + layer.get_parameter(name.replace("_ih", "_hh"))
            for name, value in layer.named_parameters()
            if name.startswith("bias_ih")
        }
    assert total
    for bias in total.values():
        assert bias.view(4, 6).mean(1).tolist() == [0, 1, 0, 0]  # input, forget, cell, output
        assert bias.view(4, 6).std(1).tolist() == [0] * 4


def test_a_gru_has_no_gate_to_open():
    layer = nn.GRU(4, 6)
    plan = make_plan(layer, "auto", forward=lambda: layer(noise(3, 2, 4)))
    assert plan["bias_ih_l0"] == plan["bias_hh_l0"] == Constant(0.0)


def labelled(counts, out=None):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, out or len(counts)))
    y = torch.cat([torch.full((n,), c) for c, n in enumerate(counts)])
    return model, lambda: F.cross_entropy(model(noise(len(y), 6)), y)


def test_uneven_labels_give_the_output_its_prior():
    """The loss starts near the entropy of the labels, which is the loss of the best constant."""
    counts = torch.tensor([180.0, 15, 5])
    model, forward = labelled([180, 15, 5])
    plan = initialize_(model, "auto", seed=0, forward=forward)
    prior = (counts + 1) / (counts.sum() + 3)
    assert torch.allclose(model[2].bias.softmax(0), prior, atol=1e-6)
    assert "labels" in plan["2.bias"].reason
    with torch.no_grad():
        model[2].weight.zero_()
        share = counts / counts.sum()
        assert float(forward()) == pytest.approx(float(-(share * share.log()).sum()), abs=0.002)


@pytest.mark.parametrize("counts", [[70, 60, 70], [3, 1, 0], [100, 101]])
def test_even_or_few_labels_leave_the_bias_at_zero(counts):
    model, forward = labelled(counts)
    assert make_plan(model, "auto", forward=forward)["2.bias"] == Constant(0.0)


def test_ignored_labels_do_not_count():
    model = nn.Linear(6, 2)
    y = torch.tensor([-100] * 500 + [0] * 90 + [1] * 10)
    forward = lambda: F.cross_entropy(model(noise(600, 6)), y)  # noqa: E731
    values = make_plan(model, "auto", forward=forward)["bias"].values
    assert values[0] - values[1] == pytest.approx(math.log(91 / 11), rel=1e-6)


def test_the_prior_of_binary_labels_and_of_values():
    model = nn.Linear(6, 2)
    y = torch.zeros(200, 2)
    y[:20, 0] = 1
    y[:105, 1] = 1
    loss = lambda: F.binary_cross_entropy_with_logits(model(noise(200, 6)), y)  # noqa: E731
    values = make_plan(model, "auto", forward=loss)["bias"].values
    assert values == pytest.approx((math.log(21 / 181), 0.0), rel=1e-6)
    single, target = nn.Linear(6, 1), noise(200) + 3
    loss = lambda: F.mse_loss(single(noise(200, 6)).squeeze(1), target)  # noqa: E731
    values = make_plan(single, "auto", forward=loss)["bias"].values
    assert values == pytest.approx((float(target.mean()),), rel=1e-6)


def test_only_auto_reads_the_labels():
    model, forward = labelled([180, 15, 5])
    assert make_plan(model, "kaiming_normal", forward=forward)["2.bias"] == Constant(0.0)


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
