"""Pruned layers: a std per output unit by the inputs that are left, honest after masking."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from lightning_init import InitSpec, initialize_, make_plan
from lightning_init.architecture.plain import plain
from lightning_init.strategies.assigned import Assigned
from lightning_init.strategies.needs import UnsuitableError
from lightning_init.strategies.sparse import RowNormal


def pruned(layer, amount=0.9, name="weight"):
    torch.manual_seed(0)
    return prune.random_unstructured(layer, name, amount)


def left(mask, axis=0):
    dims = [d for d in range(mask.ndim) if d != axis]
    return mask.sum(dims)


@pytest.mark.parametrize(
    ("layer", "axis", "share"),
    [
        (nn.Linear(400, 50), 0, 1.0),
        (nn.Conv2d(32, 24, 3), 0, 1.0),
        (nn.Conv2d(32, 24, 3, groups=4), 0, 1.0),
        (nn.ConvTranspose2d(64, 24, 3), 1, 1.0),
        (nn.ConvTranspose2d(64, 24, 4, stride=2), 1, 0.25),  # of its taps, each output sees a part
    ],
)
def test_std_by_the_inputs_that_are_left(layer, axis, share):
    model = nn.Sequential(pruned(layer), nn.ReLU())
    plan = initialize_(model, "sparse_aware", seed=0)
    counts = left(layer.weight_mask, axis)
    drawn = plan["0.weight"].drawn
    expected = torch.sqrt(2 / (counts * share))
    assert torch.tensor(drawn.stds) == pytest.approx(expected, rel=1e-6)
    values = layer.weight_orig.detach().movedim(axis, 0).flatten(1) / expected[:, None]
    assert float(values.std()) == pytest.approx(1, abs=5 / math.sqrt(2 * values.numel()))
    spread = values.std(1) - 1
    assert float(spread.abs().max()) < 5 / math.sqrt(2 * values.shape[1])


def test_groups_of_a_transposed_convolution():
    layer = pruned(nn.ConvTranspose1d(6, 8, 5, groups=2), 0.5)
    plan = make_plan(nn.Sequential(layer, nn.ReLU()), "sparse_aware")
    mask = layer.weight_mask.view(2, 3, 4, 5)
    counts = mask.sum((1, 3)).flatten()
    found = torch.tensor(plan["0.weight"].drawn.stds)
    assert found == pytest.approx(torch.where(counts > 0, (2 / counts) ** 0.5, 0.0), rel=1e-6)


def test_pre_activations_have_the_variance_that_was_meant():
    """Target 2, before ReLU: the fan of the dense layer gives a tenth of it."""
    model = nn.Sequential(pruned(nn.Linear(1000, 400)), nn.ReLU())
    x = torch.randn(500, 1000, generator=torch.Generator().manual_seed(0))
    found = {}
    for name in ("sparse_aware", "kaiming_normal"):
        initialize_(model, name, seed=0, scope="all")
        with torch.no_grad():
            found[name] = float((model[0](x)).var())
    assert found["sparse_aware"] == pytest.approx(2.0, rel=0.05)
    assert found["kaiming_normal"] == pytest.approx(0.2, rel=0.1)


def test_the_plan_says_what_is_left_after_masking():
    layer = pruned(nn.Linear(400, 300), 0.75)
    model = nn.Sequential(layer, nn.ReLU())
    plan = initialize_(model, "sparse_aware", seed=0)
    law = plan["0.weight"]
    assert isinstance(law, Assigned)
    with plain(model):
        real = float(model[0].weight.detach().std())
    assert law.std == pytest.approx(real, rel=0.02)
    assert law.std == pytest.approx(math.sqrt(2 / 400), rel=0.02)  # a quarter is 4 times as varied
    assert "25.0%" in law.reason
    assert "pruning" in str(law)


def test_the_factor_two_is_for_relu_only_and_the_observed_gain_for_all():
    model = nn.Sequential(pruned(nn.Linear(100, 10), 0.5), nn.Tanh(), nn.Linear(10, 2))
    counts = left(model[0].weight_mask)
    stds = torch.tensor(make_plan(model, "sparse_aware")["0.weight"].drawn.stds)
    assert stds == pytest.approx(counts**-0.5, rel=1e-6)
    observed = InitSpec("sparse_aware", {"activation": "observed"})
    stds = torch.tensor(make_plan(model, observed)["0.weight"].drawn.stds)
    assert stds == pytest.approx(1.592537 * counts**-0.5, rel=1e-5)


def test_a_layer_yet_to_be_pruned():
    model = nn.Sequential(nn.Linear(100, 10), nn.ReLU(), nn.Linear(10, 2))
    plan = make_plan(model, InitSpec("sparse_aware", {"density": 0.1, "gain": 0.5}))
    assert plan["0.weight"].std == pytest.approx(0.5 * math.sqrt(2 / (100 * 0.1)))
    assert plan["2.weight"].std == pytest.approx(0.5 * math.sqrt(1 / (10 * 0.1)))
    assert "density 0.1" in plan["0.weight"].reason


def test_a_unit_without_inputs_stays_zero():
    layer = nn.Linear(6, 3)
    mask = torch.ones(3, 6)
    mask[1] = 0
    prune.custom_from_mask(layer, "weight", mask)
    initialize_(nn.Sequential(layer, nn.ReLU()), "sparse_aware", seed=0)
    assert bool(layer.weight_orig.isfinite().all())
    assert not layer.weight_orig[1].any()
    assert bool((layer.weight_orig[0] != 0).all())


def test_pruned_gates_and_repeated_pruning():
    layer = nn.Linear(64, 32)
    prune.random_unstructured(layer, "weight", 0.5)
    prune.random_unstructured(layer, "weight", 0.5)  # a container of both
    model = nn.Sequential(layer, nn.ReLU())
    stds = torch.tensor(make_plan(model, "sparse_aware")["0.weight"].drawn.stds)
    assert stds == pytest.approx((2 / left(layer.weight_mask)) ** 0.5, rel=1e-6)
    cell = nn.LSTMCell(20, 8)
    prune.random_unstructured(cell, "weight_ih", 0.5)
    plan = make_plan(cell, "sparse_aware")
    stds = torch.tensor(plan["weight_ih"].drawn.stds)
    assert stds == pytest.approx(left(cell.weight_ih_mask) ** -0.5, rel=1e-6)


def test_scale():
    model = nn.Sequential(pruned(nn.Linear(100, 10)), nn.ReLU())
    one, two = (
        make_plan(model, InitSpec("sparse_aware", {"scale": s}))["0.weight"].drawn
        for s in (1.0, 2.0)
    )
    assert two.std == pytest.approx(2 * one.std)
    assert RowNormal((3.0, 4.0), (2, 1)).std == pytest.approx(math.sqrt(12.5))


def test_a_model_without_masks_is_refused():
    with pytest.raises(UnsuitableError, match=r"masks.*density.*kaiming_normal"):
        make_plan(nn.Linear(2, 2), "sparse_aware")
    with pytest.raises(ValueError, match="density"):
        InitSpec("sparse_aware", {"density": 0.0})
