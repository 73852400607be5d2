"""Weight selection: evenly spaced neurons of a larger sibling, as the paper has it."""

import pickle

import numpy
import pytest
import torch
from torch import nn

from lightning_init import InitSpec, initialize_, make_plan
from lightning_init.strategies.loaded import Loaded
from lightning_init.strategies.needs import UnsuitableError


def chosen_by_the_paper(old, new):
    """Section 3: uniform selection along one dimension."""
    if old % new == 0:
        return numpy.arange(0, old, old // new)
    return numpy.round(numpy.linspace(0, old - 1, new)).astype(int)


def spec(path, **params):
    return InitSpec("weight_selection", {"path": str(path), **params})


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def convnet(width, classes=3):
    return nn.Sequential(
        nn.Conv2d(2, width, 3),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, classes),
    )


@pytest.mark.parametrize(("old", "new"), [(16, 8), (16, 4), (15, 6), (16, 16)])
def test_every_dimension_by_the_rule_of_the_paper(old, new, tmp_path):
    donor, model, x = convnet(old), convnet(new), torch.randn(2, 2, 8, 8)
    for _ in range(2):
        donor(torch.randn(4, 2, 8, 8) + 1)
    torch.save(donor.state_dict(), tmp_path / "a.pt")
    fresh = model[8].weight.clone()
    plan = initialize_(model, spec(tmp_path / "a.pt"), seed=0, forward=lambda: model(x))
    one, two = (chosen_by_the_paper(k * old, k * new) for k in (1, 2))
    theirs, ours = donor.state_dict(), model.state_dict()
    assert torch.equal(ours["0.weight"], theirs["0.weight"][one])
    assert torch.equal(ours["0.bias"], theirs["0.bias"][one])
    assert torch.equal(ours["3.weight"], theirs["3.weight"][two][:, one])
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert torch.equal(ours[f"1.{name}"], theirs[f"1.{name}"][one])
        assert torch.equal(ours[f"4.{name}"], theirs[f"4.{name}"][two])
    assert not isinstance(plan["8.weight"], Loaded)
    assert not torch.equal(model[8].weight, fresh)  # the head is auto's
    assert any("8.weight (output layer)" in note for note in plan.notes)


def vit(width, layers, heads):
    transformers = pytest.importorskip("transformers")
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=2 * width,
            image_size=16,
            patch_size=8,
            num_labels=3,
        )
    ).eval()


def test_the_first_layers_of_a_larger_sibling(tmp_path):
    donor, model = vit(24, 3, 2), vit(12, 2, 2)
    torch.save(donor.state_dict(), tmp_path / "a.pt")
    x = torch.randn(2, 3, 16, 16)
    plan = initialize_(
        model, spec(tmp_path / "a.pt"), seed=0, forward=lambda: model(pixel_values=x)
    )
    theirs, ours = donor.state_dict(), model.state_dict()
    # Here sizes divide and heads are as many, so the plain rule gives each head its own features.
    for name, tensor in ours.items():
        if name.startswith("classifier."):
            continue
        expected = theirs[name]
        for dim in range(tensor.ndim):
            index = torch.from_numpy(chosen_by_the_paper(expected.shape[dim], tensor.shape[dim]))
            expected = expected.index_select(dim, index)
        assert torch.equal(tensor, expected), name
    assert not isinstance(plan["classifier.weight"], Loaded)
    assert "of the file unused" in plan.notes[0]
    assert bool(model(x).logits.isfinite().all())


class Fused(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.embed, self.qkv = nn.Linear(3, width), nn.Linear(width, 3 * width)
        self.out, self.head = nn.Linear(width, width), nn.Linear(width, 2)

    def forward(self, x):
        x = self.embed(x)
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.head(x + self.out(y.transpose(1, 2).reshape(batch, length, width)))


def test_fused_parts_and_heads_where_widths_do_not_divide(tmp_path):
    donor, model, x = Fused(15, 3), Fused(9, 3), torch.randn(2, 4, 3)
    torch.save(donor.state_dict(), tmp_path / "a.pt")
    initialize_(model, spec(tmp_path / "a.pt"), seed=0, forward=lambda: model(x))
    head = chosen_by_the_paper(5, 3)
    inner = numpy.concatenate([head + 5 * i for i in range(3)])
    stream = chosen_by_the_paper(15, 9)
    rows = numpy.concatenate([inner + 15 * part for part in range(3)])
    assert torch.equal(model.qkv.weight, donor.qkv.weight[rows][:, stream])
    assert torch.equal(model.qkv.bias, donor.qkv.bias[rows])
    assert torch.equal(model.out.weight, donor.out.weight[stream][:, inner])


def test_fewer_heads_of_the_same_width(tmp_path):
    donor, model, x = Fused(128, 4), Fused(64, 2), torch.randn(2, 4, 3)
    torch.save(donor.state_dict(), tmp_path / "a.pt")
    plan = initialize_(model, spec(tmp_path / "a.pt"), seed=0, forward=lambda: model(x))
    assert "heads of attention, as far as known: 4 -> 2" in plan.notes
    heads = torch.cat([torch.arange(32), torch.arange(64, 96)])  # every second head
    assert torch.equal(model.out.weight, donor.out.weight[::2][:, heads])


def test_a_smaller_donor_is_refused(tmp_path):
    torch.save(convnet(4).state_dict(), tmp_path / "a.pt")
    model = convnet(8)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(UnsuitableError, match=r"at least as large.*0\.weight.*'warm_start'"):
        initialize_(model, spec(tmp_path / "a.pt"), seed=0)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_no_path_and_yaml(tmp_path):
    with pytest.raises(UnsuitableError, match="weight_selection needs a file with weights"):
        make_plan(convnet(4), "weight_selection")
    made = spec("a.pt", heads=2)
    made.save(tmp_path / "spec.yaml")
    assert InitSpec.load(tmp_path / "spec.yaml") == made
    assert pickle.loads(pickle.dumps(made)) == made
