"""The plan: total, printable, comparable; refusals and scopes before anything changes."""

import json
import pickle

import pytest
import torch
from torch import nn

from lightning_init import InitSpec, Strategy, initialize_, make_plan
from lightning_init.strategies.distributions import Constant, Keep, Normal
from lightning_init.strategies.planning import resolve
from tests.zoo import ZOO
from tests.zoo_parametrized import doubled, symmetric


def written(plan):
    return {entry.info.name for entry in plan if entry.written}


def test_one_decision_per_tensor_by_any_of_its_names():
    model, forward = ZOO["nanogpt"]()
    plan = make_plan(model, "gpt2", forward=forward)
    assert [entry.info.name for entry in plan] == [n for n, _ in model.named_parameters()]
    assert len(plan) == len(list(model.parameters()))
    assert plan["head.weight"] is plan["wte.weight"]
    with pytest.raises(KeyError, match=r"did you mean 'ln_f.weight'"):
        _ = plan["ln_g.weight"]


def test_gpt2_scales_exactly_the_ends_of_branches():
    model, forward = ZOO["gpt2"]()
    plan = make_plan(model, "gpt2", forward=forward)
    small = 0.02 / 4**0.5  # 2 blocks of 2 additions
    for entry in plan:
        if entry.info.role == "weight":
            expected = small if entry.info.name.endswith("c_proj.weight") else 0.02
            assert entry.distribution.std == pytest.approx(expected, rel=1e-12), entry.info.name
    assert plan["transformer.wpe.weight"] == plan["lm_head.weight"] == Normal(0.02)


def test_without_a_forward_pass_the_plan_says_what_it_cannot_know():
    model, forward = ZOO["gpt2"]()
    plan = make_plan(model, "gpt2")
    assert plan["transformer.h.0.mlp.c_proj.weight"].std == 0.02
    assert "no forward pass seen" in plan.summary()
    assert "no forward pass seen" not in make_plan(model, "gpt2", forward=forward).summary()


def test_summary_counts():
    model, forward = ZOO["functional"]()
    model.second.requires_grad_(False)
    plan = make_plan(model, "normal", forward=forward)
    assert plan.summary() == (
        "4 tensors, 193 parameters: 2 tensors drawn (144 parameters), 2 kept, 1 unrecognized"
    )


def test_printing_groups_repeated_layers():
    model, forward = ZOO["nanogpt"]()
    text = str(make_plan(model, "gpt2", forward=forward))
    assert "  3 x h.*.fc.weight (64x16): normal, std 0.02 [GPT-2]" in text
    assert (
        "  3 x h.*.proj.weight (16x64): normal, std 0.008165 [GPT-2, / sqrt(6 branches)] ends "
        in text
    )
    assert "  wte.weight (11x16): normal, std 0.02 [GPT-2]" in text
    assert len(text.splitlines()) < 20


def test_groups_hold_every_entry_once():
    model, forward = ZOO["bert"]()
    plan = make_plan(model, "bert", forward=forward)
    members = [entry for _, entries in plan.groups() for entry in entries]
    assert sorted(e.info.name for e in members) == sorted(e.info.name for e in plan)
    assert all(
        len({(e.info.shape, str(e.distribution)) for e in entries}) == 1
        for _, entries in plan.groups()
    )


def test_json():
    model, forward = ZOO["nanogpt"]()
    model.wpe.requires_grad_(False)
    data = json.loads(
        json.dumps(make_plan(model, "lsuv", forward=forward).to_dict(), allow_nan=False)
    )
    assert data["calibration_to_come"] is True
    by_name = {row["name"]: row for row in data["entries"]}
    assert by_name["wpe.weight"]["std"] is None
    assert by_name["wpe.weight"]["reason"].startswith("frozen")
    assert by_name["wte.weight"]["names"] == ["wte.weight", "head.weight"]
    assert by_name["wte.weight"]["std"] == 0.25
    assert by_name["h.0.fc.weight"]["shape"] == [64, 16]


def test_diff():
    model, _ = ZOO["relu_mlp"]()
    one = make_plan(model, "kaiming_normal")
    assert one.diff(make_plan(model, "kaiming_normal")) == "no difference"
    two = make_plan(model, InitSpec("kaiming_normal", overrides={"5.weight": "keep"}))
    assert one.diff(two) == "5.weight: normal, std 0.2887 -> keep"
    foreign = one.diff(make_plan(nn.Linear(2, 2), "kaiming_normal"))
    assert foreign.count("-> absent") == 6
    assert foreign.splitlines()[-2].startswith("weight: absent ->")


def test_plans_compare_and_pickle():
    model, forward = ZOO["nanogpt"]()
    plan = make_plan(model, "gpt2", forward=forward)
    again = pickle.loads(pickle.dumps(plan))
    assert [e.distribution for e in again] == [e.distribution for e in plan]
    assert again.diff(plan) == "no difference"
    assert str(again) == str(plan)


def test_where():
    plan = make_plan(ZOO["relu_mlp"]()[0], "normal")
    biases = plan.where(lambda info: info.role == "bias")
    assert [e.info.name for e in biases] == ["0.bias", "3.bias", "5.bias"]
    assert len(plan) == 6


def test_planning_changes_nothing():
    model, forward = ZOO["residual_cnn"]()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    versions = [p._version for p in model.parameters()]
    make_plan(model, "lsuv", forward=forward)
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert versions == [p._version for p in model.parameters()]


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("untrained", {"3.weight", "3.bias", "5.weight", "5.bias"}),
        ("all", {"0.weight", "0.bias", "3.weight", "3.bias", "5.weight", "5.bias"}),
        ("0.*", {"0.weight", "0.bias"}),
        (["*.weight"], {"0.weight", "3.weight", "5.weight"}),
        (["0.weight", "5.*"], {"0.weight", "5.weight", "5.bias"}),
        (("role:bias",), {"0.bias", "3.bias", "5.bias"}),
        ("?.weight", {"0.weight", "3.weight", "5.weight"}),
    ],
)
def test_scopes(scope, expected):
    model, _ = ZOO["relu_mlp"]()
    model[0].requires_grad_(False)
    assert written(make_plan(model, "normal", scope=scope)) == expected


def test_outside_the_scope_says_so():
    plan = make_plan(ZOO["relu_mlp"]()[0], "normal", scope=["0.*", "3.bias"])
    assert plan["5.weight"].reason == "outside scope 0.*, 3.bias"


def test_a_tied_tensor_is_in_scope_under_each_of_its_names():
    model, _ = ZOO["nanogpt"]()
    assert written(make_plan(model, "normal", scope="head.weight")) == {"wte.weight"}


@pytest.mark.parametrize(
    ("scope", "text"),
    [
        ("heads.*", r"scope 'heads.\*' matches no parameter"),
        ("5.weigth", r"did you mean '5.weight'"),
        (["0.*", "9.*"], r"scope '9.\*' matches no parameter"),
        ("role:embedding", r"Legal are .*role:weight"),
        ("untrainable", r"matches no parameter"),
        ([], r'scope must be "untrained", "all" or patterns'),
        ([3], r"but got \[3\]"),
    ],
)
def test_scopes_that_match_nothing_are_errors(scope, text):
    with pytest.raises(ValueError, match=text):
        make_plan(ZOO["relu_mlp"]()[0], "normal", scope=scope)


@pytest.mark.parametrize("key", ["heads.*", "role:embedding"])
def test_overrides_that_match_nothing_are_errors(key):
    for params in ({}, {"scale": 2.0}):
        with pytest.raises(ValueError, match=r"override .* matches no parameter"):
            make_plan(ZOO["relu_mlp"]()[0], InitSpec("normal", params, {key: "keep"}))


def test_overrides_by_role_and_by_glob_and_the_last_wins():
    model, _ = ZOO["relu_mlp"]()
    small = InitSpec("normal", {"std": 0.001})

    def plan(overrides):
        return make_plan(model, InitSpec("constant", {"value": 3.0}, overrides))

    found = plan({"role:weight": "orthogonal", "3.*": small})
    assert found["3.weight"] == Normal(0.001)
    assert found["5.weight"].std == pytest.approx(1 / 24**0.5)
    assert found["0.bias"] == Constant(0.0)
    assert plan({"3.*": small, "role:weight": "keep"})["3.weight"] == Keep("as built")
    assert plan({"*": small, "3.weight": "keep"})["3.weight"] == Keep("as built")
    assert plan({"5.weight": small})["3.weight"] == Constant(3.0)


def test_scale_speaks_of_the_base_only():
    model, _ = ZOO["relu_mlp"]()
    spec = InitSpec("normal", {"scale": 10.0}, {"5.weight": InitSpec("normal", {"scale": 0.5})})
    plan = make_plan(model, spec)
    assert plan["0.weight"].std == pytest.approx(0.2)
    assert plan["5.weight"].std == pytest.approx(0.01)


def lazy():
    return nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(2))


def parametrized():
    return nn.Sequential(nn.Linear(4, 4), symmetric(nn.Linear(4, 4)))


def computed_buffer():
    model = nn.Sequential(nn.BatchNorm1d(4))
    doubled(doubled(model[0], "running_mean"), "weight")
    return model


def quantized():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    integers = torch.ones(4, 4, dtype=torch.int8)
    model[1].weight = nn.Parameter(integers, requires_grad=False)
    return model


UNABLE = {
    "lazy": (lazy, r"0.weight and 3 more is lazy and has no shape yet: pass forward=lambda: model"),
    "lazy conv": (lambda: nn.LazyConv2d(4, 3), r"has no shape yet"),
    "parametrized": (
        parametrized,
        r"1.weight is computed by Symmetric and cannot be assigned to: Symmetric has no `right_inv",
    ),
    "computed buffer": (
        computed_buffer,
        r"0.parametrizations.weight.original belongs to a computed weight.*before parametrizing",
    ),
    "quantized": (quantized, r"1.weight is quantized: initialize before quantizing"),
    "complex": (lambda: nn.Linear(4, 4, dtype=torch.cfloat), r"is complex"),
}


@pytest.mark.parametrize("kind", UNABLE)
@pytest.mark.parametrize("strategy", ["kaiming_normal", "orthogonal", "normal"])
def test_tensors_that_cannot_be_drawn_are_refused_before_anything_changes(kind, strategy):
    build, text = UNABLE[kind]
    model = build()
    before = [(id(p), p._version) for p in model.parameters()]
    rule = InitSpec(strategy).build().initializer

    def draws_everything(info):  # also what a scheme does not know, as a careless user may
        found = rule(info)
        return Normal(1.0) if isinstance(found, Keep) else found

    for scope in ("all", "*"):
        with pytest.raises(ValueError, match=text) as caught:
            initialize_(model, draws_everything, seed=0, scope=scope)
        assert "Nothing has been changed" in str(caught.value)
    assert before == [(id(p), p._version) for p in model.parameters()]


def test_what_cannot_be_drawn_may_be_left_alone():
    model = quantized()
    plan = initialize_(model, "normal", seed=0, scope=["0.*"])
    assert written(plan) == {"0.weight", "0.bias"}
    assert initialize_(lazy(), "keep", seed=0).summary()


def test_quantized_tensors_are_left_alone_with_their_reason():
    plan = initialize_(quantized(), "kaiming_normal", seed=0)
    assert written(plan) == {"0.weight", "0.bias", "1.bias"}
    assert plan["1.weight"] == Keep("quantized")
    assert 'scope="all"' not in plan.hint(), "that would be refused"


def test_a_strategy_is_a_name_a_spec_a_strategy_or_a_function():
    rule = lambda info: Normal(0.5)  # noqa: E731
    model = nn.Linear(4, 4)
    for given in (rule, Strategy(rule)):
        assert make_plan(model, given)["weight"] == Normal(0.5)
    assert make_plan(model, "normal")["weight"] == make_plan(model, InitSpec("normal"))["weight"]
    with pytest.raises(TypeError, match="strategy must be a name, an InitSpec"):
        resolve(3)


def test_an_initializer_that_returns_something_else_is_named():
    with pytest.raises(TypeError, match=r"must return a Distribution, but for weight gave 0\.02"):
        make_plan(nn.Linear(4, 4), lambda info: 0.02)


def test_an_empty_model_and_an_empty_tensor():
    assert len(make_plan(nn.ReLU(), "normal")) == 0
    with pytest.warns(UserWarning, match="zero-element"):
        model = nn.Sequential(nn.Linear(4, 0), nn.Linear(4, 4))
    for strategy in ("kaiming_normal", "orthogonal", "normal", "auto"):
        initialize_(model, strategy, seed=0)
    assert model[0].weight.numel() == 0
