"""Computed weights: read as the layer sees them, assigned through what computes them."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from lightning_init import analyze
from lightning_init.architecture.judge import examine
from lightning_init.architecture.names import drawing_name, named_tensors, named_weights
from lightning_init.architecture.parametrized import derived
from lightning_init.architecture.plain import plain
from lightning_init.architecture.watched import watched
from tests.zoo import ZOO, noise
from tests.zoo_parametrized import EXACT, INEXACT, chained, doubled, symmetric

EVERY = EXACT | INEXACT
every = pytest.mark.parametrize("kind", EVERY)


def net(change=lambda layer: layer):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [change(nn.Linear(12, 32)), nn.ReLU(), change(nn.Linear(32, 8))]
        return nn.Sequential(*layers)


def seen(layer, name="weight"):
    """The weight that the layer's forward uses, by what it does."""
    layer.eval()
    found = (layer(torch.eye(layer.in_features)) - layer.bias).T.detach()
    layer.train()
    return found


def state(model):
    """Values, versions, identities, and all that modules hold."""
    tensors = [(id(t), t._version, t.detach().clone()) for t in model.state_dict().values()]
    parameters = [(id(p), p._version, p.data_ptr()) for p in model.parameters()]
    held = [
        (type(m), [k for k in m.__dict__ if k != "_lightning_init"], list(m._forward_pre_hooks))
        for m in model.modules()
    ]
    return [values for *_, values in tensors], parameters, held


def same(one, two):
    return one[1:] == two[1:] and all(map(torch.equal, one[0], two[0]))


@every
def test_the_value_is_what_the_layer_uses_and_reading_it_moves_nothing(kind):
    layer = EVERY[kind](nn.Linear(6, 4))
    layer(noise(3, 6))  # in training mode: spectral_norm has moved its vectors
    before, random = state(layer), torch.get_rng_state()
    (weight,) = derived(layer)
    assert torch.allclose(weight.value(), seen(layer), atol=1e-6)
    assert not weight.value().requires_grad
    assert same(before, state(layer))
    assert layer.training
    assert torch.equal(random, torch.get_rng_state())


@every
def test_an_assigned_weight_is_what_is_read_back_and_used(kind):
    layer = EVERY[kind](nn.Linear(6, 4))
    ids = [(id(p), p.data_ptr(), p.requires_grad) for p in layer.parameters()]
    keys, random = list(layer.state_dict()), torch.get_rng_state()
    (weight,) = derived(layer)
    found = weight.assign(noise(4, 6))
    assert torch.equal(found, weight.value())
    assert torch.allclose(found, seen(layer), atol=1e-5)
    assert torch.equal(layer.eval().weight, found)
    assert torch.allclose(found, noise(4, 6), atol=1e-6) == (kind in EXACT)
    assert ids == [(id(p), p.data_ptr(), p.requires_grad) for p in layer.parameters()]
    assert keys == list(layer.state_dict())
    assert torch.equal(random, torch.get_rng_state())


def test_what_the_others_make_of_a_value():
    value = noise(4, 6)
    (spectral,) = derived(INEXACT["spectral_norm"](nn.Linear(6, 4)))
    norm = torch.linalg.matrix_norm(value, 2)
    assert torch.allclose(spectral.assign(value), value / norm, rtol=1e-3)
    (orthogonal,) = derived(INEXACT["orthogonal"](nn.Linear(6, 4)))
    rows = orthogonal.assign(value)
    assert torch.allclose(rows @ rows.T, torch.eye(4), atol=1e-5)
    layer = INEXACT["pruning"](nn.Linear(6, 4))
    assert torch.equal(derived(layer)[0].assign(value), value * layer.weight_mask)
    assert torch.equal(layer.weight_orig, value)


@pytest.mark.parametrize("kind", ["spectral_norm", "old spectral_norm"])
def test_the_vectors_of_spectral_norm_do_not_depend_on_the_global_seed(kind):
    found = []
    for seed in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layer = EVERY[kind](nn.Conv2d(3, 8, 3))
        derived(layer)[0].assign(noise(8, 3, 3, 3))
        found.append(dict(layer.state_dict()))
        matrix = layer.eval().weight.detach().flatten(1)
        assert float(torch.linalg.matrix_norm(matrix, 2)) == pytest.approx(1, rel=1e-3)
    assert all(torch.equal(v, found[1][k]) for k, v in found[0].items() if "bias" not in k)


@pytest.mark.parametrize("kind", ["weight_norm", "old weight_norm"])
@pytest.mark.parametrize("rows", [[1], [0, 1, 2, 3]])
def test_rows_of_zeros_have_a_norm_of_zero_and_still_learn(kind, rows):
    value = noise(4, 6)
    value[rows] = 0
    layer = EVERY[kind](nn.Linear(6, 4))
    assert torch.allclose(derived(layer)[0].assign(value), value, atol=1e-6)
    layer(noise(3, 6)).sum().backward()
    norm = next(p for p in layer.parameters() if p.shape == (4, 1))
    assert bool((norm.grad[rows] != 0).all())
    assert all(bool(p.grad.isfinite().all()) for p in layer.parameters())


@pytest.mark.parametrize("dim", [0, 1, None])
def test_weight_norm_along_any_dimension(dim):
    layer = parametrizations.weight_norm(nn.Linear(6, 4), dim=dim)
    assert torch.allclose(derived(layer)[0].assign(noise(4, 6)), noise(4, 6), atol=1e-6)


class Counting(nn.Module):
    """A right_inverse with state of its own, which fails on request."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.calls, self.fails = 0, False

    def forward(self, original):
        return original + 1

    def right_inverse(self, weight):
        self.calls += 1
        self.seen += 1
        torch.rand(1)
        if self.fails:
            raise RuntimeError("no way")
        return weight - 1


def test_an_assignment_that_fails_leaves_everything_as_it_was():
    layer = nn.Linear(6, 4)
    rule = Counting()
    parametrize.register_parametrization(layer, "weight", rule)
    calls, values, rule.fails = rule.calls, layer.weight.detach().clone(), True
    with pytest.raises(ValueError, match=r"computed by Counting and cannot be assigned to: no way"):
        derived(layer)[0].assign(noise(4, 6))
    assert (rule.calls, int(rule.seen)) == (calls, calls)
    assert torch.equal(layer.weight, values)
    rule.fails = False
    derived(layer)[0].assign(noise(4, 6))
    assert (rule.calls, int(rule.seen)) == (calls + 1, calls + 1)
    assert torch.allclose(layer.weight, noise(4, 6), atol=1e-6)


def test_a_cached_weight_is_renewed():
    layer = EXACT["weight_norm"](nn.Linear(6, 4))
    with parametrize.cached():
        assert not torch.allclose(layer.weight, noise(4, 6))
        derived(layer)[0].assign(noise(4, 6))
        assert torch.allclose(layer.weight, noise(4, 6), atol=1e-6)


@every
def test_inside_plain_a_model_looks_as_if_nothing_were_computed(kind):
    model, twin = net(EVERY[kind]), net()
    before, values = state(model), [w.value() for w in derived(model)]
    with plain(model) as hidden:
        assert [type(m) for m in model] == [type(m) for m in twin]
        assert sorted(n for n, _ in model.named_parameters()) == sorted(
            dict(twin.named_parameters())
        )
        assert not [hook for m in model for hook in m._forward_pre_hooks]
        assert [id(p) for _, p in hidden] == [id(model[0].weight), id(model[2].weight)]
        assert torch.equal(model[2].weight, values[1])
        model(noise(2, 12))
    assert same(before, state(model))


def test_plain_puts_things_back_after_an_error():
    model = net(EXACT["weight_norm"])
    before = state(model)
    with pytest.raises(RuntimeError, match="in the middle"), plain(model):
        raise RuntimeError("in the middle")
    assert same(before, state(model))


@every
def test_analysis_sees_what_it_would_see_without(kind):
    model, twin = net(EVERY[kind]), net()
    before = state(model)
    found = analyze(model, lambda: model(noise(2, 12)))
    assert same(before, state(model))
    expected = analyze(twin, lambda: twin(noise(2, 12)))
    assert found.num_branches == expected.num_branches
    for info in expected:
        here = found[info.name]
        assert here.names[0] == info.name
        flags = info.flags | ({"parametrized"} if "weight" in info.name else set())
        assert replace(here, names=info.names) == replace(info, flags=flags)
    companions = [info for info in found if "companion" in info.flags]
    assert len(companions) == (2 if kind in ("weight_norm", "old weight_norm", "chained") else 0)
    assert [i.evidence for i in companions] == [
        f"set together with {name}.weight" for name in (0, 2)[: len(companions)]
    ]
    assert len(found) == len(list(model.parameters()))


def test_residual_branches_are_seen_through_parametrizations():
    model, forward = ZOO["residual_cnn"]()
    for module in [m for m in model.modules() if isinstance(m, nn.Conv2d)]:
        parametrizations.weight_norm(module)
    found = analyze(model, forward)
    assert found.num_branches == 3
    assert found["blocks.2.conv2.weight"].usage.ends_branch
    assert "norm" in found["stem.weight"].traits  # its BatchNorm
    plainly, _ = ZOO["relu_mlp"]()
    parametrizations.weight_norm(plainly[0])
    assert "norm" not in analyze(plainly)["0.weight"].traits  # not the class _WeightNorm


@pytest.mark.parametrize("kind", ["weight_norm", "old weight_norm"])
@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_recurrent_weights(kind, cell):
    name = "weight_hh_l0" if issubclass(cell, nn.RNNBase) else "weight_hh"
    model, twin = EVERY[kind](cell(3, 5), name), cell(3, 5)
    flat = list(map(id, getattr(model, "_flat_weights", [])))
    found = analyze(model, lambda: model(noise(2, 3)))
    expected = analyze(twin, lambda: twin(noise(2, 3)))[name]
    assert replace(found[name], names=expected.names, flags=expected.flags) == expected
    assert flat == list(map(id, getattr(model, "_flat_weights", [])))
    out = model(noise(2, 3))  # still computed, still learns
    (out if torch.is_tensor(out) else out[0]).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@every
def test_names(kind):
    model = net(EVERY[kind])
    names = [names for names, _ in named_tensors(model)]
    assert sorted(n for group in names for n in group if not n.endswith(".weight")) == sorted(
        dict(model.named_parameters())
    )
    assert [tuple(n) for n in named_weights(model)] == [n for n in names if n[0].endswith("weight")]
    assert {drawing_name(n) for n in names} >= {"0.weight", "2.weight", "0.bias", "2.bias"}


def test_shared_and_tied_layers_have_one_tensor_with_all_its_names():
    layer = EXACT["weight_norm"](nn.Linear(4, 4))
    names = [names for names, _ in named_tensors(nn.Sequential(layer, nn.ReLU(), layer))]
    raw = "parametrizations.weight.original"
    assert names == [
        ("0.bias", "2.bias"),
        (f"0.{raw}0", f"2.{raw}0"),
        ("0.weight", "2.weight", f"0.{raw}1", f"2.{raw}1"),
    ]
    tied = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7, bias=False))
    tied[1].weight = tied[0].weight
    parametrizations.spectral_norm(tied[1])
    assert [n for n, _ in named_tensors(tied)] == [("0.weight", "1.weight", f"1.{raw}")]


@pytest.mark.parametrize("layer", [nn.Linear(64, 64), nn.Conv2d(8, 16, 3), nn.Embedding(50, 20)])
@pytest.mark.parametrize("kind", ["weight_norm", "old weight_norm", "spectral_norm", "pruning"])
def test_a_new_layer_is_fresh_and_a_trained_one_is_not(kind, layer):
    model = EVERY[kind](copy.deepcopy(layer))
    assert {i.provenance for i in examine(model, analyze(model).params)} == {"fresh"}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    found = examine(model, analyze(model).params)
    assert {i.name: i.provenance for i in found}["weight"] != "fresh"


def test_only_layers_are_watched():
    model = net(EXACT["weight_norm"])
    assert [name for name, _, _ in watched(model)] == ["0", "2"]


def test_a_module_with_a_computed_buffer_is_left_as_it_is():
    model = nn.BatchNorm1d(4)
    doubled(model, "running_mean")
    doubled(model, "weight")
    assert derived(model) == []
    assert "parametrized" in analyze(model)["parametrizations.weight.original"].flags


def test_a_rule_without_inverse_is_read_as_any_other():
    layer = symmetric(nn.Linear(4, 4))
    (weight,) = derived(layer)
    assert torch.equal(weight.value(), weight.value().T)
    with pytest.raises(ValueError, match=r"Symmetric has no `right_inverse`, define one"):
        weight.assign(noise(4, 4))


def test_two_weights_of_one_layer():
    layer = chained(doubled(nn.Linear(6, 4), "bias"))
    assert [(w.name, w.kind) for w in derived(layer)] == [
        ("bias", "Doubled"),
        ("weight", "WeightNorm and Doubled"),
    ]
    with plain(layer):
        assert type(layer) is nn.Linear
        assert torch.equal(F.linear(noise(2, 6), layer.weight, layer.bias), layer(noise(2, 6)))


@pytest.mark.parametrize(
    ("kind", "norm"),
    [
        ("weight_norm", lambda layer: layer.parametrizations.weight.original0),
        ("old weight_norm", lambda layer: layer.weight_g),
    ],
)
def test_a_forward_pass_may_read_what_is_behind_a_weight(kind, norm):
    model = EXACT[kind](nn.Linear(6, 4))
    seen = analyze(model, lambda: model(noise(2, 6)).sum() + norm(model).sum())
    assert seen["weight"].usage.is_output
    assert norm(model).requires_grad


def test_the_mark_of_a_loader_counts():
    model = net(EXACT["weight_norm"])
    model[0].parametrizations.weight.original1._is_hf_initialized = True
    found = analyze(model)
    assert (found["0.weight"].provenance, found["2.weight"].provenance) == ("pretrained", "fresh")
