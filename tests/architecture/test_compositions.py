"""Random compositions of blocks, whose truth is known because we put them together."""

from ast import literal_eval
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from lightning_init import analyze
from tests.compositions import blueprints, compose

EXAMPLES = settings(
    max_examples=200,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@cache
def described(blueprint):
    made = compose(literal_eval(blueprint))
    with torch.random.fork_rng(devices=[]):
        return made, analyze(made.model, made.forward)


def roles(truth, seen):
    return {info.name: (str(info.role), truth.role(info.name)) for info in seen}


def branches(truth, seen):
    ends = truth.ends()
    return {
        name: (usage.branch if usage.ends_branch else -1, ends.get(name, -1))
        for name, usage in matrices(truth, seen)
    } | {"additions": (seen.num_branches, truth.num_branches)}


def branch_layers(truth, seen):
    return {
        name: (seen[name].usage.branch_layers, truth.branch_layers[index])
        for name, index in truth.ends().items()
    }


def attention(truth, seen):
    return {
        name: (
            f"{usage.attention}/{usage.num_heads}" if usage.attention else "",
            truth.attention.get(name, ""),
        )
        for name, usage in matrices(truth, seen)
    }


def parts(truth, seen):
    return {
        name: (tuple((p.name, p.rows) for p in seen[name].parts), truth.parts.get(name, ()))
        for name in truth.attention
    }


def nonlinearity(truth, seen):
    return {
        name: (usage.nonlinearity, truth.nonlinearity.get(name, "linear"))
        for name, usage in matrices(truth, seen)
    }


def outputs(truth, seen):
    return {name: (u.is_output, name in truth.outputs) for name, u in matrices(truth, seen)}


def matrices(truth, seen):
    return [(info.name, info.usage) for info in seen if truth.role(info.name) == "weight"]


FACTS = (roles, branches, branch_layers, attention, parts, nonlinearity, outputs)


@pytest.mark.parametrize("facts", FACTS, ids=lambda facts: facts.__name__)
def test_compositions_are_understood(facts):
    @EXAMPLES
    @given(blueprints())
    def check(blueprint):
        made, seen = described(repr(blueprint))
        wrong = [
            f"{name}: {found!r}, but it is {true!r}"
            for name, (found, true) in facts(made.truth, seen).items()
            if found != true
        ]
        assert not wrong, "\n".join([*wrong, made.source])

    check()


@EXAMPLES
@given(blueprints())
def test_compositions_run_and_their_truth_is_complete(blueprint):
    made = compose(blueprint)
    for mode in (True, False):
        made.model.train(mode)
        outs = made.forward()
        assert all(out.isfinite().all() for out in (outs if isinstance(outs, tuple) else (outs,)))
    truth, names = made.truth, {name for name, _ in made.model.named_parameters()}
    assert set(truth.roles) == names
    weights = {name for name in names if truth.role(name) == "weight"}
    assert {name for branch in truth.branches for name in branch} <= weights
    assert set(truth.nonlinearity) == weights
    assert set(truth.attention) | set(truth.outputs) <= weights
    assert set(truth.parts) <= set(truth.attention)
