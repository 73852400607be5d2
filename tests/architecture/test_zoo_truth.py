"""The analysis of every zoo model beside what a reader of the model's code knows of it.

Each kind of fact is a test of its own, in training and in evaluation mode; a table at the end of
the run counts the facts that match.
"""

import random
from functools import cache

import numpy as np
import pytest
import torch

from lightning_init import analyze
from tests.truth import TRUTH as ZOO_TRUTH, lookup
from tests.truth_wild import WILD_TRUTH
from tests.zoo import ZOO as BASIC_ZOO
from tests.zoo_wild import WILD

ZOO, TRUTH = BASIC_ZOO | WILD, ZOO_TRUTH | WILD_TRUTH
on_zoo = pytest.mark.parametrize("model", ZOO)
in_both_modes = pytest.mark.parametrize("mode", ["train", "eval"])


@cache
def tensor_names(model):
    """All names of each tensor, from the model itself."""
    names = {}
    for name, parameter in ZOO[model]()[0].named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {found[0]: tuple(found) for found in names.values()}


@cache
def described(model, mode):
    module, forward = ZOO[model]()
    module.train(mode == "train")
    return analyze(module, forward)


def matrices(model):
    return TRUTH[model].matrices(tensor_names(model))


def tables_too(model):
    truth, kinds = TRUTH[model], ("weight", "recurrent", "embedding", "position")
    used = (name for name in tensor_names(model) if name not in truth.unused)
    return [name for name in used if truth.role(name) in kinds]


def expected_branches(model):
    ends = TRUTH[model].ends()
    return {name: ends.get(name, -1) for name in matrices(model)} | {
        "additions": TRUTH[model].num_branches
    }


def seen_branches(model, seen):
    def branch(usage):
        return usage.branch if usage and usage.ends_branch else -1

    return {name: branch(seen[name].usage) for name in matrices(model)} | {
        "additions": seen.num_branches
    }


def attention_of(usage):
    return f"{usage.attention}/{usage.num_heads}" if usage and usage.attention else ""


def in_attention(model):
    return [name for name in matrices(model) if lookup(TRUTH[model].attention, name)]


def norm_scales(model):
    return [name for name in tensor_names(model) if TRUTH[model].role(name) == "norm_scale"]


def registered(model, info):
    """The names of a tensor without that of the weight which is computed from it."""
    all_names = {name for names in tensor_names(model).values() for name in names}
    return tuple(name for name in info.names if name in all_names)


# kind: what is true of a model, what the analysis says of it
FACTS = {
    "roles": (
        lambda model: {name: TRUTH[model].role(name) for name in tensor_names(model)},
        lambda model, seen: {name: str(seen[name].role) for name in tensor_names(model)},
    ),
    "ties": (
        tensor_names,
        lambda model, seen: {name: registered(model, seen[name]) for name in tensor_names(model)},
    ),
    "used": (
        lambda model: {n: n not in TRUTH[model].unused for n in tensor_names(model)},
        lambda model, seen: {n: seen[n].usage is not None for n in tensor_names(model)},
    ),
    "branches": (expected_branches, seen_branches),
    "branch_layers": (
        lambda model: {n: TRUTH[model].branch_layers[i] for n, i in TRUTH[model].ends().items()},
        lambda model, seen: {
            name: seen[name].usage.branch_layers if seen[name].usage else None
            for name in TRUTH[model].ends()
        },
    ),
    "attention": (
        lambda model: {n: lookup(TRUTH[model].attention, n) or "" for n in matrices(model)},
        lambda model, seen: {name: attention_of(seen[name].usage) for name in matrices(model)},
    ),
    "parts": (
        lambda model: {n: lookup(TRUTH[model].parts, n) or () for n in in_attention(model)},
        lambda model, seen: {
            name: tuple((part.name, part.rows) for part in seen[name].parts)
            for name in in_attention(model)
        },
    ),
    "nonlinearity": (
        lambda model: {
            name: lookup(TRUTH[model].nonlinearity, name) or "linear" for name in matrices(model)
        },
        lambda model, seen: {name: seen[name].activation for name in matrices(model)},
    ),
    "outputs": (
        lambda model: {name: name in TRUTH[model].outputs for name in tables_too(model)},
        lambda model, seen: {
            name: bool(seen[name].usage and seen[name].usage.is_output)
            for name in tables_too(model)
        },
    ),
    "identity": (
        lambda model: {
            name: float(lookup(TRUTH[model].identity or {"*": 1.0}, name))
            for name in norm_scales(model)
        },
        lambda model, seen: {name: seen[name].identity for name in norm_scales(model)},
    ),
}


@pytest.mark.parametrize("kind", FACTS)
@in_both_modes
@on_zoo
def test_truth(model, mode, kind, record_property):
    expect, see = FACTS[kind]
    expected, found = expect(model), {}
    try:
        found = see(model, described(model, mode))
    finally:
        matching = sum(name in found and found[name] == fact for name, fact in expected.items())
        record_property("truth", [model, kind, matching, len(expected)])
    wrong = [
        f"{name}: {found[name]!r}, but it is {fact!r}"
        for name, fact in expected.items()
        if found[name] != fact
    ]
    assert not wrong, "\n  ".join([f"{len(wrong)} of {len(expected)} differ", *wrong])


@on_zoo
def test_truths_are_complete_and_about_the_model(model):
    truth, names = TRUTH[model], tensor_names(model)
    weights = matrices(model)
    assert not [name for name in names if truth.role(name) is None]
    assert len(truth.branches) == len(truth.branch_layers)
    assert {name for branch in truth.branches for name in branch} <= set(weights)
    assert set(truth.outputs) <= set(tables_too(model))
    assert truth.outputs
    assert set(truth.unused) <= set(names)
    assert tuple(tied for tied in names.values() if len(tied) > 1) == truth.ties
    for table in (truth.attention, truth.parts, truth.nonlinearity):
        first = {next((g for g in table if lookup({g: 1}, name)), None) for name in weights}
        assert set(table) <= first, "a glob that matches nothing, or nothing first"
    sizes = {name: p.shape for name, p in ZOO[model]()[0].named_parameters()}
    for name in weights:
        rows = [r for _, ranges in lookup(truth.parts, name) or () for r in ranges]
        assert all(start < stop for start, stop in rows)
        covered = sorted(row for start, stop in rows for row in range(start, stop))
        assert not rows or covered == list(range(max(sizes[name])))


def test_every_model_has_its_truth():
    assert set(TRUTH) == set(ZOO)


RECORD = "_lightning_init"  # the package's own note, on the root module


def state(model):
    """Everything that an analysis must leave as it was, compared bit by bit."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    values = {
        name: (id(t), t.data_ptr(), t.requires_grad, t.grad, bits(t)) for name, t in tensors.items()
    }
    versions = [parameter._version for parameter in model.parameters()]
    modules = {
        name: (
            id(module),
            type(module),
            module.training,
            [key for key in module.__dict__ if key != RECORD],
            *(list(getattr(module, table)) for table in ("_parameters", "_buffers", "_modules")),
            {key: list(value) for key, value in vars(module).items() if key.endswith("_hooks")},
        )
        for name, module in model.named_modules()
    }
    numbers = np.random.get_state()  # noqa: NPY002
    chance = (random.getstate(), bits(torch.get_rng_state()), numbers[1].tobytes(), numbers[2:])
    return {"values": values, "versions": versions, "modules": modules, "chance": chance}


def bits(tensor):
    return tensor.detach().contiguous().numpy().tobytes()


@in_both_modes
@on_zoo
def test_analysis_leaves_no_trace(model, mode):
    module, forward = ZOO[model]()
    module.train(mode == "train")
    before = state(module)
    analyze(module, forward)
    after = state(module)
    for kind in before:
        assert before[kind] == after[kind]


def test_analysis_adds_no_attribute():
    module, forward = ZOO["relu_mlp"]()
    keys = list(vars(module))
    analyze(module, forward)
    assert list(vars(module)) == keys
