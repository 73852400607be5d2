"""A scheme on a model that it cannot serve: the error names the missing fact and what would do."""

from typing import get_args

import pytest
import torch
from torch import nn

from lightning_init import InitSpec, add_branch_scales_, analyze, initialize_, make_plan
from lightning_init.strategies.distributions import Normal
from lightning_init.strategies.initializers import ByRole
from lightning_init.strategies.needs import NEEDS, SCALED, NotYetError, UnsuitableError
from lightning_init.strategies.registry import _REGISTRY, Strategy, strategy
from lightning_init.strategies.stacks import stack_of, stacks
from lightning_init.strategies.structure import Scheme
from tests.zoo import ZOO


@pytest.fixture
def needing():
    made = []

    def make(*needs, wants=()):
        @strategy(search=False, needs=needs, wants=wants, nearest="kaiming_normal")
        def fussy() -> Strategy:
            """N(0, 1)."""
            return Strategy(ByRole(weight=lambda info: Normal(1.0, reason="fussy")))

        made.append("fussy")
        return "fussy"

    yield make
    for name in made:
        _REGISTRY.pop(name, None)


LACKS = {
    "branches": ("plain_cnn", "residual branches, but the forward pass shows none"),
    "attention": ("plain_cnn", "attention, but the forward pass shows none"),
    "recurrence": ("plain_cnn", "recurrent layers, but the model has no hidden-to-hidden matrix"),
    "labels": ("plain_cnn", "labels, but the forward pass computes no loss from labels"),
    "branch scales": ("residual_cnn", "a learned scale in each residual branch, but the branches"),
    "no norms": ("encoder", "a model without norm layers, but this one has some"),
}
HAS = {
    "branches": "residual_cnn",
    "attention": "encoder",
    "recurrence": "lstm",
    "branch scales": "layer_scale",
    "no norms": "relu_mlp",
}


@pytest.mark.parametrize("need", LACKS)
def test_what_a_model_lacks_is_named_and_nothing_is_changed(needing, need):
    name, (model, text) = needing(need), LACKS[need]
    module, forward = ZOO[model]()
    before = [p.detach().clone() for p in module.parameters()]
    with pytest.raises(UnsuitableError) as raised:
        initialize_(module, name, seed=0, forward=forward)
    said = str(raised.value)
    assert said.startswith(f"fussy needs {text}")
    assert "the nearest scheme that applies is 'kaiming_normal'. Nothing has been changed" in said
    assert all(torch.equal(p, b) for p, b in zip(module.parameters(), before, strict=True))
    make_plan(module, raised.value.nearest, forward=forward)


@pytest.mark.parametrize("need", HAS)
def test_what_a_model_has_is_no_hindrance(needing, need):
    module, forward = ZOO[HAS[need]]()
    plan = make_plan(module, needing(need), forward=forward)
    assert plan.notes == ()
    assert any(e.distribution == Normal(1.0) for e in plan)


@pytest.mark.parametrize("need", ["forward", "branches", "attention", "labels"])
def test_what_only_a_forward_pass_shows_is_asked_for(needing, need):
    module, _ = ZOO["encoder"]()
    with pytest.raises(NotYetError, match=r"fussy needs a forward pass, .* pass forward=lambda"):
        make_plan(module, needing(need))


@pytest.mark.parametrize("where", ["override", "chain"])
def test_needs_hold_inside_of_other_specs(needing, where):
    name = needing("branches")
    specs = {
        "override": InitSpec("normal", overrides={"*.weight": name}),
        "chain": InitSpec("chain", {"steps": ["orthogonal", name]}),
    }
    module, forward = ZOO["plain_cnn"]()
    with pytest.raises(UnsuitableError, match="residual branches"):
        make_plan(module, specs[where], forward=forward)


def test_what_is_only_wanted_is_said_by_the_plan(needing):
    module, forward = ZOO["residual_cnn"]()
    plan = make_plan(module, needing(wants=("branch scales", "no norms")), forward=forward)
    call = "call add_branch_scales_(model, ..., forward=...) where the model is built"
    assert any(call in note for note in plan.notes)
    assert f"note: {plan.notes[0]}" in str(plan)
    assert plan.to_dict()["notes"] == list(plan.notes)
    chained = InitSpec("chain", {"steps": ["orthogonal", "fussy"]})
    assert make_plan(module, chained, forward=forward).notes == plan.notes


def test_an_unknown_need_is_refused():
    with pytest.raises(ValueError, match="unknown need 'branch': did you mean 'branches'"):
        strategy(needs=("branch",))(lambda: None)


def test_each_need_says_what_and_what_is_missing():
    for need in NEEDS.values():
        assert need.says
        assert need.missing


STACKS = {  # layers, branches, attends, crosses: from the models' code
    "encoder": [(2, 4, True, False)],
    "decoder": [(2, 6, True, True)],
    "nanogpt": [(3, 6, True, False)],
    "parallel_block": [(2, 2, True, False)],
    "grouped_attention": [(2, 4, True, False)],
    "handmade_attention": [(2, 4, True, False)],
    "shared_block": [(3, 6, True, False)],  # one block, three times
    "relative_bias": [(1, 1, True, False)],
    "t5": [(2, 4, True, False), (2, 6, True, True)],
    "whisper": [(1, 2, True, False), (1, 3, True, True)],
    "clip": [(1, 2, True, False), (1, 2, True, False)],
    "gpt2": [(2, 4, True, False)],
    "bert": [(2, 4, True, False)],
    "llama": [(2, 4, True, False)],
    "vit": [(2, 4, True, False)],
    "residual_cnn": [(3, 3, False, False)],
    "plain_cnn": [],
}


@pytest.mark.parametrize("name", STACKS)
def test_layers_of_encoders_and_decoders(name):
    module, forward = ZOO[name]()
    found = stacks(analyze(module, forward))
    assert [(s.layers, s.branches, s.attends, s.crosses) for s in found] == STACKS[name]


def test_which_stack_a_tensor_is_part_of():
    module, forward = ZOO["t5"]()
    seen = analyze(module, forward)
    of = {info.name: stack_of(info, seen) for info in seen}
    for name, stack in of.items():
        if "layer" in name and len(seen[name].shape) == 2 and "relative" not in name:
            assert stack is not None, name
            assert stack.crosses == name.startswith("decoder"), name
    assert of["shared.weight"] is None


def test_the_branch_that_contains_each_layer():
    seen = analyze(*ZOO["encoder"]())
    for info in seen:
        if "self_attn" in info.name or "linear" in info.name:
            layer = int(next(part for part in info.name.split(".") if part.isdigit()))
            assert info.usage.within == 2 * layer + ("linear" in info.name), info.name
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    assert all(i.usage.within == -1 for i in analyze(model, lambda: model(torch.ones(1, 4))))


@pytest.mark.parametrize("scheme", ["skipinit", "rezero", "layerscale", "admin", "fixup"])
def test_the_call_that_is_missing_is_one_that_works(scheme):
    assert set(SCALED) == set(get_args(Scheme))
    module, forward = ZOO["encoder"]()
    try:
        said = str(make_plan(module, scheme, forward=forward))
    except UnsuitableError as error:
        said = str(error)
    call = f'add_branch_scales_(model, "{scheme}", forward=...)'
    assert call in said
    assert add_branch_scales_(module, scheme, forward=forward)
    make_plan(module, scheme, forward=forward)
