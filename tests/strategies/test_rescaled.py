"""Factors on the parts of a model: exact stds, equal draws elsewhere, on top of everything."""

import math

import pytest
import torch
from torch import nn

from lightning_init import InitSpec, analyze, initialize_, make_plan
from lightning_init.strategies.needs import NotYetError, UnsuitableError
from lightning_init.strategies.parts import Stacked
from lightning_init.strategies.registry import entries
from lightning_init.strategies.rescaled import PARTS, parts_of
from lightning_init.testing import check_strategy
from tests.zoo import ZOO

MODELS = ("nanogpt", "encoder", "residual_cnn", "lstm", "hand_lstm", "functional")
PART_NAMES = tuple(PARTS)


def chained(base, factors):
    return InitSpec("chain", {"steps": [base, InitSpec("rescaled", factors)]})


def spread(distribution):
    """Std by part of a fused tensor, of a whole one otherwise."""
    if isinstance(distribution, Stacked):
        return {part.name: each.std for part, each in distribution.parts}
    return {"": distribution.std}


def drawn(name, spec, seed=3):
    model, forward = ZOO[name]()
    initialize_(model, spec, seed=seed, forward=forward)
    return {key: p.detach().clone() for key, p in model.named_parameters()}


def test_it_keeps_what_every_scheme_promises():
    builds = [ZOO[name] for name in ("nanogpt", "residual_cnn", "lstm")]
    check_strategy("rescaled", builds)
    check_strategy("rescaled", builds[:1], {"head": 0.1, "residual": 3.0, "attention": 0.5})


# What belongs to each part, read off the models' code.
OWN = {
    ("nanogpt", "embedding"): {"wte.weight"},
    ("nanogpt", "position"): {"wpe.weight"},
    ("nanogpt", "head"): {"wte.weight"},  # tied
    ("lstm", "recurrent"): {"lstm.weight_hh_l0", "lstm.weight_hh_l1"},
}


@pytest.mark.parametrize("base", ["uniform", "torch_default", "auto"])
@pytest.mark.parametrize("part", PART_NAMES)
@pytest.mark.parametrize("model", ["nanogpt", "residual_cnn", "lstm", "encoder"])
def test_the_std_of_a_part_is_its_factor_times_and_other_draws_are_bit_identical(model, part, base):
    built, forward = ZOO[model]()
    if part != "scale" and part not in parts_of(analyze(built, forward)):
        with pytest.raises(
            UnsuitableError, match=f"no tensor of this model is in the part '{part}'"
        ):
            make_plan(built, chained(base, {part: 0.3}), forward=forward)
        return
    one = make_plan(built, base, forward=forward)
    two = make_plan(built, chained(base, {part: 0.3}), forward=forward)
    before, after = drawn(model, base), drawn(model, chained(base, {part: 0.3}))
    changed = set()
    for a, b in zip(one, two, strict=True):
        old, new = spread(a.distribution), spread(b.distribution)
        if len(new) < len(old):
            new = dict.fromkeys(old, new[""])
        if len(old) < len(new):
            old = dict.fromkeys(new, old[""])
        ratios = {key: new[key] / old[key] for key in old if old[key] > 0}  # kept: NaN
        assert all(any(math.isclose(r, w, rel_tol=1e-9) for w in (1, 0.3)) for r in ratios.values())
        name = a.info.name
        if all(r == 1 for r in ratios.values()):
            assert torch.equal(before[name], after[name]), name
        else:
            changed.add(name)
            if all(r != 1 for r in ratios.values()):
                torch.testing.assert_close(after[name], 0.3 * before[name])
    assert changed
    if (model, part) in OWN and base != "auto":
        assert changed == OWN[model, part]


def test_query_and_key_of_a_fused_matrix_and_nothing_else_of_it():
    model, forward = ZOO["encoder"]()
    info = next(i for i in analyze(model, forward) if i.parts and i.role == "weight")
    old, new = (
        drawn("encoder", spec)[info.name]
        for spec in ("xavier_normal", chained("xavier_normal", {"attention": 0.5}))
    )
    for part in info.parts:
        for start, stop in part.rows:
            factor = 1.0 if part.name == "value" else 0.5
            assert torch.equal(new[start:stop], factor * old[start:stop]), part.name


def test_factors_multiply_and_the_plan_says_so():
    model, forward = ZOO["nanogpt"]()
    plain = make_plan(model, "normal", forward=forward)
    spec = chained("normal", {"scale": 2.0, "embedding": 0.5, "head": 0.1})
    plan = make_plan(model, spec, forward=forward)
    assert plan["wte.weight"].std == pytest.approx(0.1 * plain["wte.weight"].std, rel=1e-12)
    assert plan["wte.weight"].reason.endswith("x 0.1")
    for entry in plan:
        if entry.info.name != "wte.weight" and entry.written:
            assert entry.distribution.std == pytest.approx(2 * plain[entry.info.name].std)


def net():
    torch.manual_seed(0)
    layers = [m for _ in range(4) for m in (nn.Linear(16, 16), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(16, 3))
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))
    return model, lambda: model(x)


@pytest.mark.parametrize(
    "base",
    [
        "lsuv",
        "channel_norm",
        InitSpec("lsuv", {"accept": "always", "include_head": True}),
        InitSpec("chain", {"steps": ["kaiming_normal", "lsuv"]}),
        InitSpec("orthogonal", overrides={"*": "lsuv"}),
    ],
)
def test_what_a_calibration_sets_is_multiplied_after_it(base):
    values = {}
    for key, spec in (("one", base), ("two", chained(base, {"scale": 0.5, "head": 0.25}))):
        model, forward = net()
        plan = initialize_(model, spec, seed=0, forward=forward)
        values[key] = {n: p.detach().clone() for n, p in model.named_parameters()}
        if key == "two":
            assert plan.calibrate_ is None
            assert plan["2.weight"].std == pytest.approx(
                float(model[2].weight.detach().std(correction=0))
            )
    for name, value in values["one"].items():
        factor = 0.125 if name.startswith("8.") else 0.5  # powers of two: exact
        assert torch.equal(values["two"][name], factor * value), name
    assert values["one"]["0.weight"].abs().sum() > 0


def test_below_a_calibration_it_is_what_the_calibration_undoes():
    steps = {"steps": ["kaiming_normal", InitSpec("rescaled", {"scale": 0.25}), "lsuv"]}
    model, forward = net()
    initialize_(model, InitSpec("chain", steps), seed=0, forward=forward)
    assert float(model[:1](forward.__closure__[1].cell_contents).detach().std()) == pytest.approx(
        1, abs=0.01
    )


def test_what_is_kept_and_known_stays():
    model, forward = net()
    model[0].weight.requires_grad_(False)
    before = model[0].weight.detach().clone()
    plan = initialize_(model, chained("lsuv", {"scale": 3.0}), seed=0, forward=forward)
    assert torch.equal(model[0].weight, before)
    assert all((p == 0).all() for n, p in model.named_parameters() if n.endswith("bias"))
    assert str(plan["0.weight"]) == "keep"
    kept = make_plan(model, chained("keep", {"scale": 3.0}), forward=forward)
    assert all(not entry.written for entry in kept)


def test_a_part_that_only_a_forward_pass_shows_asks_for_one():
    model, _ = net()
    with pytest.raises(NotYetError, match="pass forward="):
        make_plan(model, chained("normal", {"head": 0.1}))
    make_plan(model, chained("normal", {"scale": 0.1}))


NOT_HERE = ("skipinit", "rezero", "layerscale", "admin", "siren", "sparse_aware", "prior_head")


@pytest.mark.parametrize(
    "name", [e.name for e in entries() if not {"donor", "masks"} & set(e.needs)]
)
def test_it_goes_on_top_of_every_scheme(name):
    served = 0
    for model in ("nanogpt", "lstm"):
        built, forward = ZOO[model]()
        try:
            base = make_plan(built, name, forward=forward)
        except UnsuitableError:
            continue
        plan = make_plan(built, chained(name, {"scale": 0.5}), forward=forward)
        assert (plan.calibrate_ is None) == (base.calibrate_ is None)
        served += 1
        for a, b in zip(base, plan, strict=True):
            if a.written:
                factor = 1.0 if base.calibrate_ else 0.5
                wanted = {key: factor * std for key, std in spread(a.distribution).items()}
                assert spread(b.distribution) == pytest.approx(wanted, rel=1e-9)
    assert served or name in NOT_HERE
