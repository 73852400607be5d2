"""Several schemes on top of each other, overrides by role, and what a step may be."""

import math

import pytest
import torch
from torch import nn

from lightning_init import InitSpec, initialize_, make_plan
from lightning_init.strategies.chain import modifier
from lightning_init.strategies.distributions import Constant, Keep, Normal
from lightning_init.strategies.initializers import BranchScaled, ByRole, Scaled
from lightning_init.strategies.matrices import Orthogonal
from lightning_init.strategies.needs import NotYetError
from lightning_init.strategies.registry import _REGISTRY, Strategy, strategy
from tests.zoo import ZOO


@pytest.fixture
def registered():
    """Schemes of a plugin: one halves what is there, one counts its calls on data."""
    calls = []

    @strategy(search=False)
    def halved() -> Strategy:
        """Half of what is there."""
        return modifier(Halved)

    @strategy(search=False, needs=("batch",))
    def counted() -> Strategy:
        """Calibrates what is there."""

        def calibrate(model, plan, forward):
            calls.append([e.info.name for e in plan if e.written])

        return Strategy(ByRole(weight=lambda info: Normal(1.0)), calibrate, on_top=lambda b: b)

    yield calls
    for name in ("halved", "counted"):
        del _REGISTRY[name]


def Halved(below):
    return Scaled(below, 0.5)


def plan_of(steps, model="relu_mlp", **others):
    module, forward = ZOO[model]()
    return make_plan(module, InitSpec("chain", {"steps": steps}, **others), forward=forward)


def weights(plan):
    return [e.distribution for e in plan if len(e.info.shape) > 1]


def test_a_later_step_replaces_what_it_does_not_keep():
    assert weights(plan_of(["orthogonal", "normal"])) == weights(plan_of(["normal"]))
    kept = {"strategy": "keep", "overrides": {"role:head": "constant"}}
    *hidden, head = weights(plan_of(["orthogonal", kept]))
    assert all(isinstance(each, Orthogonal) for each in hidden)
    assert head == Constant(0.0)


def test_a_modifier_changes_what_is_there(registered):
    below, above = weights(plan_of(["normal"])), weights(plan_of(["normal", "halved"]))
    assert [each.std for each in above] == pytest.approx([each.std / 2 for each in below])
    twice = weights(plan_of(["normal", "halved", "halved"]))
    assert [each.std for each in twice] == pytest.approx([each.std / 4 for each in below])


def test_alone_a_modifier_is_on_top_of_auto(registered):
    module, forward = ZOO["relu_mlp"]()
    auto, alone = (make_plan(module, s, forward=forward) for s in ("auto", "halved"))
    for one, two in zip(auto, alone, strict=True):
        assert two.distribution.std == pytest.approx(one.distribution.std / 2)


def test_a_modifier_as_override_changes_the_base_there(registered):
    module, forward = ZOO["relu_mlp"]()
    spec = InitSpec("normal", {"std": 0.1}, {"role:head": "halved"})
    *hidden, head = [e for e in make_plan(module, spec, forward=forward) if len(e.info.shape) > 1]
    assert {e.distribution.std for e in hidden} == {0.1}
    assert head.distribution.std == pytest.approx(0.05)


def test_the_calibrations_run_on_what_the_steps_drew(registered):
    module, forward = ZOO["relu_mlp"]()
    spec = InitSpec("chain", {"steps": [{"strategy": "normal", "params": {"std": 0.3}}, "counted"]})
    plan = initialize_(module, spec, seed=0, forward=forward)
    assert len(registered) == 1
    assert {each.std for each in weights(plan)} == {0.3}, "a calibration draws nothing anew"
    tight = 6 / math.sqrt(2 * module[0].weight.numel())
    assert float(module[0].weight.detach().std()) == pytest.approx(0.3, rel=tight)


def test_scale_of_a_step_and_of_the_chain(registered):
    step = {"strategy": "normal", "params": {"std": 0.1, "scale": 3}}
    assert all(each.std == pytest.approx(0.3) for each in weights(plan_of([step])))
    assert all(each.std == pytest.approx(0.15) for each in weights(plan_of([step, "halved"])))
    module, forward = ZOO["relu_mlp"]()
    spec = InitSpec("chain", {"steps": [step], "scale": 2.0})
    plan = make_plan(module, spec, forward=forward)
    assert all(each.std == pytest.approx(0.6) for each in weights(plan))


def test_a_chain_with_exceptions():
    plan = plan_of(["orthogonal"], overrides={"role:bias": "keep"})
    assert all(
        isinstance(e.distribution, Keep) for e in plan if e.info.name.endswith(("bias", "b"))
    )


def test_residual_scaling_on_top_of_orthogonal(registered):
    @strategy(search=False)
    def branch_scaled() -> Strategy:
        """Less where a branch ends."""
        return modifier(BranchScaled)

    try:
        plan = plan_of(["orthogonal", "branch_scaled"], "residual_mlp")
        ends = [e for e in plan if e.info.usage.ends_branch and len(e.info.shape) > 1]
        count = ends[0].info.usage.num_branches
        assert ends
        assert all(e.distribution.gain == pytest.approx(count**-0.5) for e in ends)
    finally:
        del _REGISTRY["branch_scaled"]


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        ([], r"must be a list of strategies or specs: got \[\]; for example \[orthogonal"),
        ("orthogonal", r"must be a list of strategies or specs: got 'orthogonal'"),
        (["orthogonl"], r"unknown strategy 'orthogonl': did you mean 'orthogonal'"),
        ([3], r"a step must be a strategy's name or a spec, but got 3"),
        ([{"strategy": "normal", "params": {"std": 99}}], r"`0.0001 <= std <= 10` must hold"),
        ([{"strategy": "normal", "seed": 3}], r"a step takes no seed of its own, but got seed=3"),
        ([{"strateg": "normal"}], r"unknown key in an init spec 'strateg': did you mean"),
    ],
)
def test_steps_that_are_none_are_refused(steps, text):
    with pytest.raises(ValueError, match=text) as raised:
        InitSpec("chain", {"steps": steps})
    assert "chain: parameter 'steps'" in str(raised.value)


def test_it_travels_as_yaml(tmp_path):
    steps = ["orthogonal", {"strategy": "keep", "overrides": {"role:head": "constant"}}, "lsuv"]
    spec = InitSpec("chain", {"steps": steps, "scale": 0.5}, seed=4)
    spec.save(tmp_path / "chain.yaml")
    again = InitSpec.load(tmp_path / "chain.yaml")
    assert again == spec
    assert hash(again) == hash(spec)
    assert str(spec) == "chain(orthogonal, keep(role:head: constant), lsuv)"


def test_the_head_is_known_from_a_forward_pass_only():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    spec = InitSpec("orthogonal", overrides={"role:head": "constant"})
    with pytest.raises(NotYetError, match="'role:head' needs a forward pass"):
        make_plan(model, spec)
    plan = make_plan(model, spec, forward=lambda: model(torch.ones(1, 4)))
    assert isinstance(plan["0.weight"], Orthogonal)
    assert plan["2.weight"] == plan["2.bias"] == Constant(0.0)


def test_a_head_that_is_a_tied_table():
    module, forward = ZOO["nanogpt"]()
    spec = InitSpec("orthogonal", overrides={"role:head": "normal"})
    assert make_plan(module, spec, forward=forward)["wte.weight"] == Normal(0.02)


def test_a_calibration_of_nothing_is_said(registered):
    plan = plan_of(["keep", "counted"])
    assert plan.calibrate_ is None
    assert plan.notes == ("nothing is drawn, so nothing is calibrated",)
    assert registered == []
