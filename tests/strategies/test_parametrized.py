"""Parametrized weights are drawn as if they were not: nothing moves, nothing is lost."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from lightning_init import InitSpec, apply_, calibrate_, initialize_, make_plan
from lightning_init.architecture.parametrized import derived
from lightning_init.strategies.apply import carry_out, fingerprint
from lightning_init.strategies.assigned import Assigned
from lightning_init.strategies.distributions import Constant, Keep, Normal
from lightning_init.strategies.initializers import keep
from tests.architecture.test_parametrized import Counting
from tests.zoo import ids, noise
from tests.zoo_parametrized import EXACT, INEXACT, symmetric

EVERY = EXACT | INEXACT
every = pytest.mark.parametrize("kind", EVERY)
exact = pytest.mark.parametrize("kind", EXACT)


def net(change=lambda layer: layer, seed=0, dtype=torch.float32):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [change(nn.Linear(12, 32)), nn.ReLU(), change(nn.Linear(32, 8))]
        return nn.Sequential(*layers).to(dtype)


def close(one, two, slack=1e-6):
    return torch.allclose(one.detach().float(), two.detach().float(), rtol=slack, atol=slack)


@exact
@pytest.mark.parametrize("strategy", ["orthogonal", "kaiming_normal", "constant"])
def test_parametrizing_moves_no_weight(kind, strategy):
    model, twin = net(EXACT[kind]), net(seed=1)
    for each in (model, twin):
        plan = initialize_(each, strategy, seed=3, forward=lambda each=each: each(noise(4, 12)))
    for here, there in ((model[0], twin[0]), (model[2], twin[2])):
        assert close(here.weight, there.weight)
        assert torch.equal(here.bias, there.bias)
    assert close(model(noise(4, 12)), twin(noise(4, 12)), 1e-5)
    expected = make_plan(model, strategy, forward=lambda: model(noise(4, 12)))
    assert plan["2.weight"] == expected["2.weight"]


@every
def test_written_in_place_and_the_optimizer_still_trains_it(kind):
    model = net(EVERY[kind])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [(id(p), p.data_ptr()) for p in model.parameters()]
    keys, random = list(model.state_dict()), torch.get_rng_state()
    initialize_(model, "kaiming_normal", seed=0)
    assert before == [(id(p), p.data_ptr()) for p in model.parameters()]
    assert keys == list(model.state_dict())
    assert torch.equal(random, torch.get_rng_state())
    old = [p.detach().clone() for p in model.parameters()]
    model(noise(16, 12)).square().mean().backward()
    optimizer.step()
    assert not any(map(torch.equal, old, model.parameters()))


@every
def test_two_models_with_one_seed_are_equal_in_every_bit(kind):
    models = [net(EVERY[kind], seed) for seed in (0, 1)]
    if kind == "pruning":  # the mask is the model's own, not drawn
        models[1].load_state_dict(models[0].state_dict())
    for model in models:
        initialize_(model, "normal", seed=5)
    one, two = (model.state_dict() for model in models)
    assert all(torch.equal(value, two[key]) for key, value in one.items())
    assert fingerprint(models[0]) == fingerprint(models[1])
    initialize_(models[1], "normal", seed=6)
    assert fingerprint(models[0]) != fingerprint(models[1])


def test_the_plan_has_the_weight_under_all_its_names():
    model = net(EXACT["weight_norm"])
    plan = make_plan(model, "kaiming_normal")
    raw = "0.parametrizations.weight.original"
    assert plan["0.weight"] is plan[f"{raw}1"]
    assert plan["0.weight"] == Normal((2 / 12) ** 0.5)
    assert plan[f"{raw}0"] == Keep("set together with 0.weight")
    assert "6 tensors, 720 parameters: 4 tensors drawn" in plan.summary()
    assert "0 unrecognized" in plan.summary()
    assert len(plan) == len(list(model.parameters()))


@pytest.mark.parametrize("name", ["0.weight", "0.parametrizations.weight.original1"])
def test_scopes_and_overrides_take_either_name(name):
    model = net(EXACT["weight_norm"])
    before = model[2].weight.detach().clone()
    plan = initialize_(model, "normal", seed=0, scope=[name])
    assert [e.info.name for e in plan if e.written] == ["0.weight"]
    assert close(model[2].weight, before)
    overridden = make_plan(model, InitSpec("normal", {}, {name: InitSpec("normal", {"std": 0.5})}))
    assert overridden["0.weight"].std == 0.5
    assert overridden["2.weight"].std == 0.02


def test_a_companion_is_never_drawn_on_its_own():
    model = net(EXACT["weight_norm"])
    plan = make_plan(model, lambda info: Normal(1.0), scope="all")
    assert plan["0.parametrizations.weight.original0"] == Keep("set together with 0.weight")


@pytest.mark.parametrize("kind", INEXACT)
def test_the_plan_says_that_a_draw_will_be_changed(kind):
    model = net(INEXACT[kind])
    plan = make_plan(model, "kaiming_normal")
    found = plan["2.weight"]
    by = {"pruning": "pruning", "orthogonal": "Orthogonal"}.get(kind, "SpectralNorm")
    assert isinstance(found, Assigned)
    assert (found.by, found.drawn) == (by, Normal(0.25))
    assert found.reason.endswith(f"{by} changes what it is given")
    assert f"normal, std 0.25, made std {found.std:.4g} by {by}" in str(plan)
    initialize_(model, "kaiming_normal", seed=0)
    assert float(model[2].weight.detach().std(correction=0)) == pytest.approx(found.std, rel=0.15)
    scaled = make_plan(model, InitSpec("kaiming_normal", {"scale": 2.0}))["2.weight"]
    assert scaled.drawn == found.drawn.scaled(2.0)


def test_a_draw_that_the_rule_takes_as_it_is_needs_no_comment():
    model = parametrizations.orthogonal(nn.Linear(6, 4))
    assert not isinstance(make_plan(model, "orthogonal")["weight"], Assigned)
    assert not isinstance(make_plan(model, "normal")["bias"], Assigned)


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_precision(kind, dtype):
    if kind == "orthogonal" and dtype is torch.bfloat16:
        pytest.skip("torch has no QR in bfloat16")
    model, single = net(EVERY[kind]).to(dtype), net(EVERY[kind])
    plan = initialize_(model, "kaiming_normal", seed=1)
    initialize_(single, "kaiming_normal", seed=1)
    slack = 0.03 if dtype is torch.bfloat16 else 1e-3
    assert model[0].weight.dtype == dtype
    assert close(model.eval()[0].weight, single.eval()[0].weight, slack)
    assert isinstance(plan["0.weight"], Assigned) == (kind in INEXACT)


@pytest.mark.parametrize("kind", ["weight_norm", "old weight_norm"])
def test_a_padding_row_of_zeros(kind):
    model, twin = (
        change(nn.Embedding(10, 4, padding_idx=3)) for change in (EXACT[kind], lambda e: e)
    )
    for each in (model, twin):
        initialize_(each, "normal", seed=0)
    assert close(model.weight, twin.weight)
    assert bool((model.weight[3] == 0).all())
    model(ids(4, 3)).sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("kind", ["weight_norm", "old weight_norm", "doubled"])
@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU])
def test_recurrent_layers(kind, cell):
    model, twin = cell(6, 8, num_layers=2), cell(6, 8, num_layers=2)
    EXACT[kind](model, "weight_hh_l0")
    for each in (model, twin):
        initialize_(each, "orthogonal", seed=3, forward=lambda each=each: each(noise(5, 2, 6)))
    assert close(model.weight_hh_l0, twin.weight_hh_l0)
    assert close(model(noise(5, 2, 6))[0], twin(noise(5, 2, 6))[0], 1e-5)


def test_shared_and_tied_layers():
    layer = EXACT["weight_norm"](nn.Linear(8, 8))
    model, twin = nn.Sequential(layer, nn.ReLU(), layer), nn.Linear(8, 8)
    twins = nn.Sequential(twin, nn.ReLU(), twin)
    for each in (model, twins):
        initialize_(each, "normal", seed=0)
    assert close(layer.weight, twin.weight)
    tied = nn.Sequential(nn.Embedding(7, 8), nn.Linear(8, 7, bias=False))
    tied[1].weight = tied[0].weight
    plain = nn.Sequential(nn.Embedding(7, 8), nn.Linear(8, 7, bias=False))
    plain[1].weight = plain[0].weight
    parametrizations.spectral_norm(tied[1])
    for each in (tied, plain):
        initialize_(each, "normal", seed=0)
    assert torch.equal(tied[0].weight, plain[0].weight)
    norm = float(torch.linalg.matrix_norm(tied[1].eval().weight.detach(), 2))
    assert norm == pytest.approx(1, rel=1e-3)


def test_a_cached_weight_is_not_stale():
    model, twin = EXACT["weight_norm"](nn.Linear(6, 4)), nn.Linear(6, 4)
    initialize_(twin, "normal", seed=0)
    with parametrize.cached():
        assert not close(model.weight, twin.weight)
        initialize_(model, "normal", seed=0)
        assert close(model.weight, twin.weight)


@pytest.mark.parametrize("kind", ["old weight_norm", "old spectral_norm", "pruning"])
def test_the_attribute_of_an_old_hook_is_not_stale(kind):
    model = EVERY[kind](nn.Linear(6, 4)).eval()
    initialize_(model, "normal", seed=0)
    before = model.weight.detach().clone()
    model(noise(2, 6))
    assert torch.equal(before, model.weight)
    assert float(before.std()) > 0.01


def test_pruned_weights_stay_pruned():
    model = INEXACT["pruning"](nn.Linear(6, 4))
    mask = model.weight_mask.clone()
    initialize_(model, "normal", seed=0)
    assert torch.equal(model.weight_mask, mask)
    assert torch.equal(model.weight == 0, mask == 0)


def test_a_rule_without_inverse_is_kept_when_the_strategy_keeps_it():
    model = nn.Sequential(nn.Linear(4, 4), symmetric(nn.Linear(4, 4)))
    before = model[1].weight.detach().clone()
    initialize_(model, keep, seed=0, scope="all")
    initialize_(model, "normal", seed=0, scope=["0.*"])
    assert torch.equal(model[1].weight, before)


def values(model):
    return [value.clone() for value in model.state_dict().values()]


def test_what_cannot_be_finite_is_refused_before_anything_changes():
    model = nn.Sequential(nn.Linear(4, 4), INEXACT["spectral_norm"](nn.Linear(4, 4)))
    before = values(model)
    with pytest.raises(ValueError, match=r"1.weight is computed by SpectralNorm.*infinite or NaN"):
        initialize_(model, lambda info: Constant(0.0), seed=0)
    assert all(map(torch.equal, before, values(model)))


def test_an_assignment_that_fails_late_is_undone():
    """A plan that was made when all was well is carried out on a model where it is not."""
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    EXACT["weight_norm"](model[1])
    rule = Counting()
    parametrize.register_parametrization(model[2], "weight", rule)
    plan, rule.fails = make_plan(model, "normal"), True
    before, calls = values(model), rule.calls
    with pytest.raises(ValueError, match=r"2.weight is computed by Counting.*no way"):
        apply_(model, plan, seed=0)
    assert all(map(torch.equal, before, values(model)))
    assert rule.calls == calls


@every
def test_making_a_plan_changes_nothing(kind):
    model = net(EVERY[kind])
    before, versions = values(model), [p._version for p in model.parameters()]
    random = torch.get_rng_state()
    make_plan(model, "lsuv", forward=lambda: model(noise(4, 12)))
    assert all(map(torch.equal, before, values(model)))
    assert versions == [p._version for p in model.parameters()]
    assert torch.equal(random, torch.get_rng_state())


@exact
def test_lsuv_scales_the_weight_that_is_used(kind):
    model, twin = net(EXACT[kind]), net()
    for each in (model, twin):
        plan = initialize_(each, "lsuv", seed=1, forward=lambda each=each: each(noise(64, 12)))
    out = model[0](noise(64, 12)) - model[0].bias
    assert float(out.detach().std(correction=0)) == pytest.approx(1, rel=1e-4)
    assert close(model[0].weight, twin[0].weight, 1e-5)
    again = initialize_(model, "lsuv", seed=1, forward=lambda: model(noise(64, 12)))
    assert again["0.weight"].std == pytest.approx(plan["0.weight"].std, rel=1e-5)
    companions = [e for e in again if "companion" in e.info.flags]
    assert all(isinstance(e.distribution, Keep) for e in companions)


def test_a_calibration_that_spectral_norm_undoes_is_named():
    model = nn.Sequential(INEXACT["spectral_norm"](nn.Linear(12, 8)), nn.ReLU(), nn.Linear(8, 2))
    plan = initialize_(model, "lsuv", seed=0, forward=lambda: model(noise(64, 12)))
    assert "not calibrated: 0.weight" in str(plan)


@every
def test_a_calibration_that_fails_is_undone(kind):
    model = net(EVERY[kind])
    plan = make_plan(model, "lsuv", forward=lambda: model(noise(4, 12)))
    before, weights = values(model), [w.value() for w in derived(model)]

    def broken():
        model(noise(4, 12))
        raise RuntimeError("no batch")

    with pytest.raises(RuntimeError, match="no batch"):
        carry_out(model, plan, 0, broken)
    assert all(map(torch.equal, before, values(model)))
    assert all(map(torch.equal, weights, [w.value() for w in derived(model)]))


def test_apply_then_calibrate():
    model, twin = net(EXACT["weight_norm"]), net(EXACT["weight_norm"])
    initialize_(twin, "lsuv", seed=2, forward=lambda: twin(noise(64, 12)))
    plan = make_plan(model, "lsuv", forward=lambda: model(noise(64, 12)))
    with pytest.warns(UserWarning, match="only drawn"):
        apply_(model, plan, 2)
    calibrate_(model, plan, lambda: model(noise(64, 12)))
    assert all(map(torch.equal, values(model), values(twin)))


@every
def test_trained_weights_are_kept(kind):
    model = net(EVERY[kind])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(8):
        optimizer.zero_grad()
        model(noise(16, 12)).square().mean().backward()
        optimizer.step()
    plan = make_plan(model, "normal")
    for name in ("0.weight", "2.weight"):
        assert isinstance(plan[name], Keep)
        assert plan[name].reason.startswith("trained or loaded")


def test_what_we_wrote_is_ours_to_write_again():
    model = net(EXACT["weight_norm"])
    initialize_(model, "normal", seed=0)
    assert {e.info.provenance for e in make_plan(model, "normal")} == {"fresh"}
    with torch.no_grad():
        model[0].parametrizations.weight.original1[0, 0] += 1
    found = {e.info.name: e.info.provenance for e in make_plan(model, "normal")}
    assert (found["0.weight"], found["2.weight"]) == ("custom", "fresh")


def test_frozen():
    model = net(EXACT["weight_norm"])
    model[0].requires_grad_(False)
    before = model[0].weight.detach().clone()
    plan = initialize_(model, "normal", seed=0)
    assert plan["0.weight"] == Keep("frozen")
    assert torch.equal(model[0].weight, before)


def test_an_assigned_draw_has_the_statistics_of_the_trial():
    law = Assigned(Normal(0.5), "SpectralNorm", 0.1, 0.0)
    draw = law.sample((100, 100), torch.Generator().manual_seed(0))
    assert float(draw.std()) == pytest.approx(0.5, rel=0.05)
    assert law.std == 0.1
    assert math.isclose(law.scaled(2.0).drawn.std, 1.0)


def test_a_step_of_training_is_seen_in_whatever_holds_the_weight():
    model = net(INEXACT["orthogonal"])  # its parameters say nothing, the weight is in a buffer
    initialize_(model, "normal", seed=0)
    before = fingerprint(model)
    model[0].parametrizations.weight[0].base.copy_(torch.eye(32))
    assert fingerprint(model) != before
    found = {e.info.name: e.info.provenance for e in make_plan(model, "normal")}
    assert found["0.weight"] != "fresh"
    assert found["2.weight"] == "fresh"


def test_what_spectral_norm_does_by_itself_does_not_count_as_a_change():
    model = net(INEXACT["spectral_norm"])
    initialize_(model, "normal", seed=0)
    before = fingerprint(model)
    model(noise(4, 12))
    assert fingerprint(model) == before
    assert {e.info.provenance for e in make_plan(model, "normal")} == {"fresh"}
