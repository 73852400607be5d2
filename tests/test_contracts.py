"""What every registered strategy owes, on every model of the zoo."""

import pickle

import pytest
import torch
import yaml

from lightning_init import InitSpec, make_plan
from lightning_init.architecture.names import named_tensors
from lightning_init.architecture.plain import plain
from lightning_init.architecture.preserve import preserved
from lightning_init.strategies.apply import carry_out, initialize_
from lightning_init.strategies.distributions import Calibrated, Constant, Keep
from lightning_init.strategies.needs import UnsuitableError
from lightning_init.strategies.registry import SCALE, entries
from tests.zoo import TRANSFORMERS, ZOO

STRATEGIES = [e for e in entries() if e.function.__module__.startswith("lightning_init.")]
by_name = pytest.mark.parametrize("entry", STRATEGIES, ids=lambda entry: entry.name)
# Of schemes that differ in a constant only, one meets the larger models.
FEW = {"keep", "auto", "xavier_normal", "orthogonal", "gpt2", "lsuv"}
# A spectral norm cannot be 0, and undoes a calibration: said in tests of their own.
ODD = {("constant", "spectral_normed"), ("lsuv", "spectral_normed")}
on_each = pytest.mark.parametrize(
    ("entry", "model"),
    [
        pytest.param(entry, model, id=f"{entry.name}-{model}")
        for model in ZOO
        for entry in STRATEGIES
        if (entry.name in FEW or model not in TRANSFORMERS) and (entry.name, model) not in ODD
    ],
)


def values(model):
    """The tensors that the layers compute with, also where others are behind them."""
    with plain(model):
        return {names[0]: tensor.detach().clone() for names, tensor in named_tensors(model)}


def refused(entry, module, forward):
    """Whether a scheme needs a loss and the model gives outputs instead: then it says so."""
    if "loss" not in entry.needs:
        return False
    with preserved(module):
        if getattr(forward(), "ndim", 1) == 0:
            return False
    with pytest.raises(UnsuitableError, match=f"{entry.name} needs a loss"):
        initialize_(module, entry.name, seed=1, forward=forward)
    return True


@on_each
def test_total_reproducible_printable(entry, model):
    module, forward = ZOO[model]()
    plan = make_plan(module, entry.name, forward=forward)
    assert [e.info.names for e in plan] == [names for names, _ in named_tensors(module)]
    assert all(e.distribution.reason for e in plan)
    again = make_plan(module, entry.name, forward=forward)
    assert [e.distribution for e in plan] == [e.distribution for e in again]
    assert plan.summary() in str(plan)
    assert (plan.calibrate_ is not None) <= entry.needs_batch
    sent = pickle.loads(pickle.dumps(plan))
    assert (
        str(sent).splitlines()[: len(sent.groups()) + 1]
        == str(plan).splitlines()[: len(plan.groups()) + 1]
    )
    for e in plan:
        if e.written:
            assert not {"frozen", "lazy", "meta"} & e.info.flags
            assert e.distribution.std >= 0


@on_each
def test_weights_are_those_of_the_plan(entry, model):
    module, forward = ZOO[model]()
    before, buffers = values(module), {n: b.clone() for n, b in module.named_buffers()}
    if refused(entry, module, forward):
        assert all(torch.equal(before[n], v) for n, v in values(module).items())
        return
    plan = initialize_(module, entry.name, seed=1, forward=forward)
    after = values(module)
    assert plan.calibrate_ is None
    for e in plan:
        if "companion" in e.info.flags:
            continue
        name, tensor = e.info.name, after[e.info.name]
        assert bool(tensor.isfinite().all()), name
        if isinstance(e.distribution, Keep):
            assert torch.equal(tensor, before[name]), name
        elif isinstance(e.distribution, Constant):
            rows = torch.ones(len(tensor), dtype=torch.bool)
            if e.info.padding_idx is not None:
                rows[e.info.padding_idx] = False
            assert bool((tensor[rows] == e.distribution.value).all()), name
        else:
            assert not torch.equal(tensor, before[name]), name
            # 6 standard errors of a small tensor's std; a table's padding row is 0
            slack = 6 / (2 * tensor.numel()) ** 0.5 + (
                0.03 if e.info.padding_idx is not None else 0
            )
            rms = float((tensor - e.distribution.mean).square().mean().sqrt())
            assert rms == pytest.approx(e.distribution.std, rel=slack), name
        if e.info.padding_idx is not None and e.written:
            assert bool((tensor[e.info.padding_idx] == 0).all())
    # The vectors of a spectral norm belong to its weight.
    others = {n: b for n, b in module.named_buffers() if "parametrizations" not in n}
    assert all(torch.equal(b, buffers[n]) for n, b in others.items())
    twin, twin_forward = ZOO[model]()
    initialize_(twin, entry.name, seed=1, forward=twin_forward)
    assert all(torch.equal(after[n], v) for n, v in values(twin).items())


@by_name
def test_the_model_still_runs_and_learns(entry):
    module, forward = ZOO["relu_mlp"]()
    if not refused(entry, module, forward):
        initialize_(module, entry.name, seed=0, forward=forward)
    out = forward()
    assert bool(out.isfinite().all())
    out.square().mean().backward()
    assert all(bool(p.grad.isfinite().all()) for p in module.parameters())


def legal(parameter):
    """A value that is not the default."""
    if parameter.choices:
        return parameter.choices[-1]
    if parameter.kind is bool:
        return not parameter.default
    return parameter.kind(parameter.range.high)


@by_name
def test_spec_round_trips_through_yaml(entry, tmp_path):
    spec = InitSpec(entry.name, {name: legal(p) for name, p in entry.parameters.items()}, seed=7)
    spec.save(tmp_path / "spec.yaml")
    assert InitSpec.load(tmp_path / "spec.yaml") == spec
    assert yaml.safe_load((tmp_path / "spec.yaml").read_text())["strategy"] == entry.name
    assert pickle.loads(pickle.dumps(spec)) == spec


@by_name
def test_values_outside_a_range_are_refused(entry):
    for name, parameter in entry.parameters.items():
        if parameter.range:
            low, high = parameter.range.low, parameter.range.high
            for value in (low - 1e-6 * max(1, abs(low)), high + 1e-6 * max(1, abs(high))):
                with pytest.raises(ValueError, match=name):
                    InitSpec(entry.name, {name: value})
        with pytest.raises(ValueError, match=name):
            InitSpec(entry.name, {name: "nonsense"})


@by_name
def test_scale_multiplies_every_std(entry):
    limits = entry.parameters["scale"].range
    if limits.low == limits.high:
        pytest.skip("draws nothing")
    module, forward = ZOO["nanogpt"]()
    one = make_plan(module, entry.name, forward=forward)
    two = make_plan(module, InitSpec(entry.name, {"scale": 2.0}), forward=forward)
    # Where a scheme has a scale of its own, it is the target of the calibration.
    factor = 2.0 if entry.parameters["scale"] is SCALE else 1.0
    for a, b in zip(one, two, strict=True):
        if a.written:
            assert b.distribution.std == pytest.approx(factor * a.distribution.std)
            assert b.distribution.mean == a.distribution.mean
    assert two.calibrate_ is None or entry.needs_batch


@by_name
def test_a_plan_carried_out_equals_initialize(entry):
    one, forward_one = ZOO["selu_mlp"]()
    two, forward_two = ZOO["selu_mlp"]()
    if refused(entry, one, forward_one):
        return
    initialize_(one, entry.name, seed=2, forward=forward_one)
    plan = make_plan(two, entry.name, forward=forward_two)
    done = carry_out(two, plan, 2, forward_two)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    drawn_anew = any(isinstance(e.distribution, Calibrated) for e in done)
    assert drawn_anew <= entry.needs_batch
