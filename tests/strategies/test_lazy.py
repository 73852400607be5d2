"""Lazy models: planned without being touched, drawn as their eager twins."""

import pytest
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from lightning_init import InitSpec, apply_, initialize_, make_plan
from lightning_init.architecture.lazy import has_lazy
from lightning_init.strategies.planning import NoShapeError
from tests.architecture.test_lazy import eager, everything, lazy, run
from tests.zoo import noise


@pytest.mark.parametrize("strategy", ["auto", "kaiming_normal", "orthogonal", "lsuv"])
def test_a_plan_is_that_of_the_eager_model_and_nothing_changes(strategy):
    model, twin = lazy(), eager()
    before, random = everything(model), torch.get_rng_state()
    plan = make_plan(model, strategy, forward=run(model))
    assert before == everything(model)
    assert torch.equal(random, torch.get_rng_state())
    expected = make_plan(twin, strategy, forward=run(twin))
    assert [e.distribution for e in plan] == [e.distribution for e in expected]
    assert plan.summary() == expected.summary()


@pytest.mark.parametrize("strategy", ["auto", "kaiming_normal", "orthogonal", "lsuv"])
def test_initialized_as_the_eager_model(strategy):
    model, twin = lazy(), eager()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    random = torch.get_rng_state()
    initialize_(model, strategy, seed=3, forward=run(model))
    assert torch.equal(random, torch.get_rng_state())
    initialize_(twin, strategy, seed=3, forward=run(twin))
    assert not has_lazy(model)
    state = model.state_dict()
    assert list(state) == list(twin.state_dict())
    assert all(torch.equal(value, state[key]) for key, value in twin.state_dict().items())
    run(model)().backward()
    before = model[4].weight.detach().clone()
    optimizer.step()
    assert not torch.equal(before, model[4].weight)


@pytest.mark.parametrize("strategy", ["normal", "auto", "lsuv"])
def test_without_a_pass_it_is_said_what_to_pass(strategy):
    model = lazy()
    before = everything(model)
    text = r"0.weight and \d more is lazy and has no shape yet: pass forward=lambda: model\(batch\)"
    for call in (make_plan, initialize_):
        with pytest.raises(NoShapeError, match=text):
            call(model, strategy)
    assert before == everything(model)


def test_a_layer_that_the_pass_misses_is_named():
    model = nn.ModuleList([nn.LazyLinear(4), nn.LazyLinear(2)])
    with pytest.raises(NoShapeError, match=r"1.weight and 1 more.*not reached by `forward`"):
        make_plan(model, "normal", forward=lambda: model[0](noise(2, 3)))
    plan = initialize_(model, "normal", seed=0, scope="0.*", forward=lambda: model[0](noise(2, 3)))
    assert [e.info.name for e in plan if e.written] == ["0.weight", "0.bias"]
    assert [is_lazy(layer.weight) for layer in model] == [False, True]


def test_keep_materializes_nothing():
    model = lazy()
    before = everything(model)
    for scope in ("untrained", "all"):
        assert "5 kept" not in initialize_(model, "keep", scope=scope, forward=run(model)).hint()
    initialize_(model, InitSpec("keep"))
    assert before == everything(model)


def test_a_plan_with_shapes_is_not_applied_to_a_model_without():
    model = lazy()
    plan = make_plan(model, "normal", forward=run(model))
    with pytest.raises(ValueError, match=r"0.weight is lazy and has no memory yet: run the model"):
        apply_(model, plan, seed=0)
    assert is_lazy(model[0].weight)
    run(model)()
    apply_(model, plan, seed=0)
    twin = eager()
    initialize_(twin, "normal", seed=0)
    assert torch.equal(model[4].weight, twin[4].weight)


def test_a_calibration_that_fails_leaves_the_model_lazy():
    model = lazy()
    before, calls = everything(model), []

    def forward():
        calls.append(1)
        if len(calls) > 4:
            raise RuntimeError("no batch")
        return run(model)()

    make_plan(model, "lsuv", forward=forward)
    seen = len(calls)
    calls.clear()
    calls.extend([1] * (4 - seen - 1))  # enough for the plan and the shapes, not to calibrate
    with pytest.raises(RuntimeError, match="no batch"):
        initialize_(model, "lsuv", seed=0, forward=forward)
    assert before == everything(model)
