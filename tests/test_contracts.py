"""What every registered strategy owes, on every model of the zoo; `testing.py` has the checks."""

import functools

import pytest
import torch

from lightning_init import InitSpec, make_plan
from lightning_init.architecture.analyze import analyze
from lightning_init.architecture.calls import tensors
from lightning_init.strategies import planning
from lightning_init.strategies.apply import carry_out, initialize_
from lightning_init.strategies.distributions import Calibrated
from lightning_init.strategies.registry import entries
from lightning_init.testing import check_plan, check_scale, check_spec, check_weights
from tests.zoo import ZOO

STRATEGIES = [e for e in entries() if e.function.__module__.startswith("lightning_init.")]
# Files and steps without which these schemes have nothing to say: tests of their own have them.
WITH_FILES = {"warm_start", "weight_selection"}
NAMES = [entry.name for entry in STRATEGIES]
by_name = pytest.mark.parametrize("name", NAMES)
# A spectral norm cannot be 0, and undoes a calibration: said in tests of their own.
# Those that learn need a loss, and a few steps show what they owe.
LEARNING = {"metainit": {"steps": 2}, "gradinit": {"steps": 2}}
ODD = {("constant", "spectral_normed"), ("zeros", "spectral_normed"), ("lsuv", "spectral_normed")}
PAIRS = [(n, m) for m in ZOO for n in NAMES if (n, m) not in ODD and n not in WITH_FILES]
# Of the applied weights each scheme meets every seventh model, and each model every seventh scheme.
SAMPLE = [
    (n, m)
    for i, n in enumerate(NAMES)
    for j, m in enumerate(ZOO)
    if (i + j) % 7 == 0 and (n, m) in set(PAIRS)
]


def with_loss(model, name):
    """A model of the zoo; for a scheme that needs one, with a loss."""
    module, forward = ZOO[model]()
    if name not in LEARNING:
        return module, forward

    def loss():
        first = next(tensors(forward()))
        return first.float().square().mean()

    return module, loss


SEEN = {}  # what one look at a model showed: planning leaves both as they are


@functools.lru_cache(maxsize=1)
def built(model, name):
    SEEN.clear()
    module, forward = with_loss(model, name)
    SEEN[id(module)] = analyze(module, forward)
    return module, forward


@pytest.fixture
def seen_once(monkeypatch):
    monkeypatch.setattr(
        planning, "analyze", lambda m, f=None: SEEN[id(m)] if f and id(m) in SEEN else analyze(m, f)
    )


@pytest.mark.usefixtures("seen_once")
@pytest.mark.parametrize(("name", "model"), PAIRS)  # model by model: each is looked at once
def test_plans(name, model):
    kind = name if name in LEARNING else ""
    check_plan(name, lambda: built(model, kind), LEARNING.get(name))


@pytest.mark.parametrize(("name", "model"), SAMPLE)
def test_weights_are_those_of_the_plan(name, model):
    params, build = LEARNING.get(name), lambda: with_loss(model, name)
    if check_plan(name, build, params) is not None:
        check_weights(name, build, params)


@by_name
def test_the_model_still_runs_and_learns(name):
    module, forward = with_loss("relu_mlp", name)
    if name in WITH_FILES or check_plan(name, ZOO["relu_mlp"]) is None:
        pytest.skip("cannot serve an MLP")
    spec = InitSpec(name, LEARNING.get(name, {}))
    initialize_(module, spec, seed=0, forward=forward)
    out = forward()
    assert bool(out.isfinite().all())
    out.square().mean().backward()
    assert all(bool(p.grad.isfinite().all()) for p in module.parameters())


@by_name
def test_specs(name):
    check_spec(name)


@by_name
def test_scale_multiplies_every_std(name):
    if name in WITH_FILES:
        pytest.skip("in tests of its own")
    served = [model for model in ("nanogpt", "lstm", "rezero") if check_plan(name, ZOO[model])]
    for model in served:
        check_scale(name, ZOO[model])


@by_name
def test_a_plan_carried_out_equals_initialize(name):
    if name in WITH_FILES or check_plan(name, ZOO["selu_mlp"]) is None:
        pytest.skip("cannot serve an MLP")
    one, forward_one = with_loss("selu_mlp", name)
    two, forward_two = with_loss("selu_mlp", name)
    spec = InitSpec(name, LEARNING.get(name, {}))
    initialize_(one, spec, seed=2, forward=forward_one)
    plan = make_plan(two, spec, forward=forward_two)
    done = carry_out(two, plan, 2, forward_two)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    drawn_anew = any(isinstance(e.distribution, Calibrated) for e in done)
    assert drawn_anew <= (plan.calibrate_ is not None)
