"""The gate: what a calibration made worse is taken back, and reading a model leaves no trace."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_init import initialize_, make_plan
from lightning_init.architecture.preserve import preserved
from lightning_init.strategies.depth import Reading, read
from lightning_init.strategies.gate import gated, worse
from tests.zoo import ZOO, noise

FINE = Reading(-1.6, -1.5, 49, 1.0, 2.4, True, True)


def mlp(depth, activation, width=32, seed=0):
    torch.manual_seed(seed)
    layers = [
        each for _ in range(depth) for each in (nn.Linear(width, width, bias=False), activation())
    ]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def drawn(model, gain=1.0, seed=0):
    """Orthogonal matrices of a gain, the head as built."""
    with torch.no_grad():
        for layer in list(model)[:-1]:
            if isinstance(layer, nn.Linear):
                nn.init.orthogonal_(
                    layer.weight, gain, generator=torch.Generator().manual_seed(seed)
                )
                seed += 1
    return model


def task(model, width=32):
    x, y = noise(64, width), torch.arange(64) % 10
    return lambda: F.cross_entropy(model(x), y)


def run(model, forward, change, accept="better"):
    plan = make_plan(model, "orthogonal")

    def work():
        with torch.no_grad():
            change(model)
        return "objective", 1.0, 0.0, "1 forward"

    with preserved(model, list(model.parameters())):
        return gated("scheme", model, plan, forward, work, accept)


# -- what is read, against arithmetic and autograd --


@pytest.mark.parametrize("gain", [0.8, 1.25])
def test_growth_and_chi_of_a_linear_net_are_the_gain_and_its_square(gain):
    model = drawn(mlp(12, nn.Identity), gain)
    found = read(model, task(model))
    assert found.growth == pytest.approx(gain, rel=0.01)  # of samples with a mean of their own
    assert found.chi == pytest.approx(gain**2, rel=1e-5)
    assert found.steps == 11


def test_largest_std_loss_and_gradient_are_those_of_a_plain_pass():
    model = drawn(mlp(5, nn.Tanh), 1.3)
    forward = task(model)
    found = read(model, forward)
    outputs, x = [], noise(64, 32)
    for layer in model:
        x = layer(x)
        if isinstance(layer, nn.Linear):
            outputs.append(x)
    spreads = [o.std(correction=0).item() for o in outputs]
    loss = F.cross_entropy(x, torch.arange(64) % 10)
    grads = torch.autograd.grad(loss, outputs)
    assert found.loss == pytest.approx(loss.item(), rel=1e-6)
    assert found.largest == pytest.approx(max(spreads), rel=1e-5)
    assert found.backward == pytest.approx(math.log(grads[0].norm() / grads[4].norm()), abs=1e-5)
    assert found.forward == pytest.approx(math.log(spreads[4] / spreads[0]), abs=1e-5)


@pytest.mark.parametrize("returns", ["tensor", "tuple", "dict", "loss in a dict", "nothing"])
def test_whatever_forward_returns(returns):
    model = drawn(mlp(6, nn.Tanh))
    x, scalar = noise(64, 32), task(model)

    def forward():
        match returns:
            case "loss in a dict":
                return {"loss": scalar(), "steps": 3}
            case "nothing":
                model(x)
                return None
        out = model(x)
        return {"tensor": out, "tuple": (out, None), "dict": {"a": out, "n": 1}}[returns]

    found = read(model, forward)
    assert found.gradient == (returns != "nothing")
    assert math.isnan(found.loss) == (returns != "loss in a dict")
    assert found.finite
    assert found.growth < 1
    assert math.isnan(found.chi) == (returns == "nothing")


def test_what_cannot_be_differentiated_is_read_forwards():
    model = drawn(mlp(6, nn.Tanh))
    x = noise(64, 32)
    with torch.no_grad():
        expected = read(model, lambda: model(x)).forward

    def forward():
        with torch.no_grad():
            return model(x)

    found = read(model, forward)
    assert not found.gradient
    assert found.forward == pytest.approx(expected)


def test_a_step_that_runs_its_own_backward_pass_is_read():
    model = drawn(mlp(6, nn.Tanh))
    scalar = task(model)

    def forward():
        loss = scalar()
        loss.backward()
        return loss

    assert read(model, forward).backward == pytest.approx(read(model, scalar).backward, abs=1e-6)


def test_reading_leaves_no_trace():
    model = nn.Sequential(
        nn.Linear(32, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 16), nn.Linear(16, 10)
    )
    forward = task(model)
    x = torch.zeros(1, requires_grad=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    read(model, lambda: forward() + x.sum())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())
    assert x.grad is None
    assert not any(module._forward_hooks for module in model.modules())


def test_two_readings_of_one_model_are_equal_in_spite_of_dropout():
    model = nn.Sequential(nn.Linear(32, 16), nn.Dropout(0.5), nn.Linear(16, 16), nn.Linear(16, 10))
    forward = task(model)
    assert read(model, forward) == read(model, forward)


def test_norm_layers_set_scales_anew():
    """The weights of a layer before a norm have no scale: neither their outputs nor gradients."""

    def build():
        torch.manual_seed(0)
        layers = [(nn.Linear(32, 32), nn.LayerNorm(32), nn.ReLU()) for _ in range(6)]
        return nn.Sequential(*(each for block in layers for each in block), nn.Linear(32, 10))

    model = build()
    plain = read(model, task(model))
    with torch.no_grad():
        for i in (0, 3, 6, 9, 12, 15):
            model[i].weight.mul_(4.0 ** (i / 3))
            model[i].bias.mul_(4.0 ** (i / 3))
    other = read(model, task(model))
    assert other.distance == pytest.approx(plain.distance, abs=0.05)
    assert not worse(plain, other)


# -- the rule, on its measured cases --


@pytest.mark.parametrize("depth", [50, 100])
def test_unit_variance_in_a_deep_tanh_net_is_worse(depth):
    model = drawn(mlp(depth, nn.Tanh))
    before = [p.clone() for p in model.parameters()]
    found = run(model, task(model), lambda m: drawn(m, 1.5925))
    assert not found.accepted
    assert "weights' gradient grows by e^" in found.why
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert "taken back: the weights' gradient" in str(found)
    # Saxe et al.: an isometry; Schoenholz et al.: chi 1.178 per layer at unit variance.
    assert found.readings["chi"][0] == pytest.approx(1, abs=0.1)
    assert found.readings["chi"][1] == pytest.approx(1.178, abs=0.05)


def test_signals_that_arrive_again_are_better():
    model = drawn(mlp(40, nn.ReLU), 1.0)
    found = run(model, task(model), lambda m: drawn(m, 2**0.5))
    assert found.accepted
    assert not found.why
    assert found.readings["std per layer"][0] == pytest.approx(2**-0.5, rel=0.05)
    assert found.readings["std per layer"][1] == pytest.approx(1, rel=0.05)


def test_always_keeps_what_is_worse_and_says_so():
    model = drawn(mlp(50, nn.Tanh))
    found = run(model, task(model), lambda m: drawn(m, 1.5925), accept="always")
    assert found.accepted
    assert found.why.startswith("kept although the weights' gradient")
    assert float(model[0].weight.detach().norm()) == pytest.approx(1.5925 * 32**0.5, rel=1e-4)


def test_weights_that_shrink_until_the_signal_vanishes_are_taken_back():
    model = drawn(mlp(10, nn.Tanh))
    found = run(model, task(model), lambda m: drawn(m, 0.4))
    assert not found.accepted
    assert "outputs grow by e^-" in found.why


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_none(bad):
    model = drawn(mlp(5, nn.Tanh))
    good = model[4].weight.clone()
    found = run(model, task(model), lambda m: m[4].weight.fill_(bad))
    assert not found.accepted
    assert found.why == "the model is not finite any more"
    assert torch.equal(model[4].weight, good)
    with torch.no_grad():
        model[4].weight.fill_(bad)
    again = run(model, task(model), lambda m: m[4].weight.copy_(good))
    assert again.accepted
    assert torch.equal(model[4].weight, good)
    with torch.no_grad():
        model[4].weight.fill_(bad)
    assert "still not finite" in run(model, task(model), lambda m: None).why


def test_a_head_of_zeros_is_no_vanishing_gradient():
    model = drawn(mlp(8, nn.Tanh))
    nn.init.zeros_(model[-1].weight)
    found = read(model, task(model))
    assert not found.gradient
    assert math.isnan(found.backward)
    assert found.distance == 0
    assert run(model, task(model), lambda m: drawn(m, 1.1)).accepted


def test_to_lose_every_gradient_is_worse():
    model = drawn(mlp(8, nn.Tanh))
    found = run(model, task(model), lambda m: m[-1].weight.zero_())
    assert found.why == "no layer has a gradient any more"


def test_a_loss_that_explodes_or_comes_back():
    model = drawn(mlp(4, nn.Tanh))
    before = model[-1].weight.detach().clone()
    found = run(model, task(model), lambda m: m[-1].weight.mul_(200.0))
    assert not found.accepted
    assert found.why.startswith("the loss is")
    with torch.no_grad():
        model[-1].weight.mul_(200.0)
    assert run(model, task(model), lambda m: m[-1].weight.copy_(before)).accepted


def test_the_border():
    assert not worse(FINE, Reading(0.0, 1.0, 49, 1.0, 2.4, True, True))
    assert worse(FINE, Reading(0.0, 1.2, 49, 1.0, 2.4, True, True))
    assert not worse(FINE, Reading(-1.6, -1.5, 49, 1.0, 8.2, True, True))
    assert worse(FINE, Reading(-1.6, -1.5, 49, 1.0, 8.3, True, True))
    assert not worse(FINE, Reading(-4.9, -4.9, 49, 1.0, 2.4, True, True))
    assert worse(FINE, Reading(-5.1, -5.1, 49, 1.0, 2.4, True, True))
    # Losses below zero are no worse than zero; small ones are a matter of units.
    below, small = (replace(FINE, loss=loss) for loss in (-9.0, 0.001))
    assert not worse(below, replace(FINE, loss=1.7))
    assert worse(below, replace(FINE, loss=1.8))
    assert not worse(small, replace(FINE, loss=1.7))


def test_only_what_the_plan_writes_is_put_back():
    model, forward = ZOO["relu_mlp"]()
    model[3].requires_grad_(False)
    plan = make_plan(model, "orthogonal")

    def work():
        with torch.no_grad():
            model[0].weight.fill_(math.nan)
            model[3].weight.fill_(2.0)
        return "", 0.0, 0.0, ""

    assert not gated("x", model, plan, forward, work, "better").accepted
    assert bool(model[0].weight.isfinite().all())
    assert bool((model[3].weight == 2).all())


def test_a_plan_of_what_was_taken_back_shows_what_was_drawn():
    model = mlp(50, nn.Tanh)
    plan = make_plan(model, "orthogonal")

    def calibrate(model, plan, forward):
        def work():
            with torch.no_grad():
                drawn(model, 1.5925)
            return "", 0.0, 0.0, ""

        return [gated("unit", model, plan, forward, work, "better")]

    from lightning_init.strategies.registry import get

    chosen = get("orthogonal").build({})._replace(calibrate_=calibrate)
    done = initialize_(model, chosen, seed=0, forward=task(model))
    assert not done.calibrations[0].accepted
    assert done["0.weight"] == plan["0.weight"]
    assert "taken back" in str(done)
