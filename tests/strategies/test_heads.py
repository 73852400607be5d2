"""prior_head: output biases at the best constant answer, with the numbers of real labels."""

import math

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from torch import nn

from lightning_init import InitSpec, initialize_, make_plan
from lightning_init.callbacks.forward import training_forward
from lightning_init.strategies.needs import NotYetError, UnsuitableError
from tests.zoo import ZOO, noise


def net(inputs, outputs, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, outputs))


def prior(model, forward, seed=0, **params):
    return initialize_(model, InitSpec("prior_head", params), seed=seed, forward=forward)


def standardized(values):
    x = torch.tensor(values, dtype=torch.float32)
    return (x - x.mean(0)) / (x.std(0) + 1e-6)


def entropy(shares):
    shares = np.asarray(shares, dtype=np.float64)
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum())


def test_softmax_on_real_labels():
    """212 malignant and 357 benign: barely uneven in a batch of 64, and still set."""
    x, y = load_breast_cancer(return_X_y=True)
    x, y = standardized(x)[:64], torch.tensor(y)[:64]
    model = net(30, 2)
    prior(model, lambda: F.cross_entropy(model(x), y), weight="zero")
    shares = np.bincount(y.numpy(), minlength=2) / 64
    assert np.allclose(model[2].bias.detach().numpy(), np.log(shares), atol=1e-6)
    assert bool((model[2].weight == 0).all())
    # T11: the loss is the entropy of the labels.
    assert F.cross_entropy(model(x), y).item() == pytest.approx(entropy(shares), abs=1e-5)


def test_even_labels_too():
    """`auto` sets no prior where the counts of a batch may be chance; the named scheme does."""
    x, y = noise(40, 6), torch.tensor([0] * 22 + [1] * 18)
    model = net(6, 2)
    forward = lambda: F.cross_entropy(model(x), y)  # noqa: E731
    initialize_(model, "auto", seed=0, forward=forward)
    assert bool((model[2].bias == 0).all())
    prior(model, forward)
    assert model[2].bias.exp().tolist() == pytest.approx([0.55, 0.45], rel=1e-6)


def test_a_subset_of_digits_whose_loss_is_nll():
    x, y = load_digits(return_X_y=True)
    keep = np.flatnonzero((y < 3) | (np.arange(len(y)) % 10 == 0))[:300]
    x, y = torch.tensor(x[keep], dtype=torch.float32) / 16, torch.tensor(y[keep])
    model = net(64, 10)
    prior(model, lambda: F.nll_loss(F.log_softmax(model(x), -1), y), weight="zero")
    counts = np.bincount(y.numpy(), minlength=10)
    assert counts.min() > 0
    assert np.allclose(model[2].bias.detach().numpy(), np.log(counts / 300), atol=1e-5)
    assert F.cross_entropy(model(x), y).item() == pytest.approx(entropy(counts / 300), abs=1e-5)


def test_regression_on_real_targets():
    x, y = load_diabetes(return_X_y=True)
    x, y = standardized(x), torch.tensor(y, dtype=torch.float32)
    model = net(10, 1)
    prior(model, lambda: F.mse_loss(model(x).squeeze(-1), y), weight="zero")
    assert model[2].bias.item() == pytest.approx(152.1335, abs=1e-3)  # published with the data
    assert F.mse_loss(model(x)[:, 0], y).item() == pytest.approx(float(y.numpy().var()), rel=1e-5)


@pytest.mark.parametrize("logits", [True, False])
def test_several_binary_labels(logits):
    shares = torch.tensor([0.25, 0.5, 0.9])
    y = (torch.arange(40)[:, None] < 40 * shares).float()
    x, model = noise(40, 6), net(6, 3)

    def forward():
        out = model(x)
        if logits:
            return F.binary_cross_entropy_with_logits(out, y)
        return F.binary_cross_entropy(out.sigmoid(), y)

    prior(model, forward, weight="zero")
    assert model[2].bias.tolist() == pytest.approx([-math.log(3), 0.0, math.log(9)], abs=1e-6)
    expected = -(shares * shares.log() + (1 - shares) * (1 - shares).log()).mean()
    assert forward().item() == pytest.approx(float(expected), abs=1e-5)


def test_a_rare_object():
    """T11: -(p log pi + (1 - p) log(1 - pi)) at 1 in 1000, 0.693 at a bias of 0."""
    y = torch.zeros(4000, 1)
    y[:4] = 1
    x, model = noise(4000, 6), net(6, 1)
    forward = lambda: F.binary_cross_entropy_with_logits(model(x), y)  # noqa: E731
    for pi, expected in ((0.01, 0.0147), (0.001, 0.0079)):
        prior(model, forward, pi=pi, weight="zero")
        assert model[2].bias.item() == pytest.approx(-math.log((1 - pi) / pi), rel=1e-6)
        exact = -(0.001 * math.log(pi) + 0.999 * math.log(1 - pi))
        assert forward().item() == pytest.approx(exact, rel=1e-4)
        assert exact == pytest.approx(expected, abs=1e-4)
    prior(model, forward, weight="zero")
    assert model[2].bias.item() == pytest.approx(math.log(1 / 999), rel=1e-5)


def test_the_bias_of_retinanet():
    model, x = net(6, 4), noise(8, 6)
    plan = prior(model, lambda: model(x), pi=0.01, weight="small")
    assert model[2].bias.tolist() == pytest.approx([-4.59512] * 4, abs=1e-5)
    assert plan["2.weight"].std == 0.01
    assert bool((model[0].bias == 0).all())


def test_ignored_labels_and_probabilities_and_missing_classes():
    x, model = noise(20, 6), net(6, 3)
    y = torch.tensor([0] * 6 + [1] * 6 + [-100] * 8)
    prior(model, lambda: F.cross_entropy(model(x), y))
    half = 0.5 / 12.5  # of a label, for the class that is missing
    assert model[2].bias.exp().tolist() == pytest.approx([6 / 12.5, 6 / 12.5, half], rel=1e-5)
    soft = torch.tensor([[0.7, 0.2, 0.1]] * 20)
    prior(model, lambda: F.cross_entropy(model(x), soft))
    assert model[2].bias.exp().tolist() == pytest.approx([0.7, 0.2, 0.1], rel=1e-5)


def test_maps_of_labels():
    """Segmentation: features of a convolution are along dimension 1."""
    y = (torch.arange(3)[None, :, None, None] > torch.arange(4)).float().expand(8, 3, 4, 4)
    x, model = noise(8, 2, 4, 4), nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 1))
    prior(model, lambda: F.binary_cross_entropy_with_logits(model(x), y))
    absent = math.log(0.5 / 128)
    expected = [absent, -math.log(3), 0.0]
    assert model[2].bias.tolist() == pytest.approx(expected, abs=1e-5)
    classes = torch.tensor([0, 0, 1, 2]).expand(8, 4, 4)
    prior(model, lambda: F.cross_entropy(model(x), classes))
    assert model[2].bias.exp().tolist() == pytest.approx([0.5, 0.25, 0.25], rel=1e-5)


def test_two_heads_each_its_own():
    torch.manual_seed(0)
    stem, one, two = nn.Linear(6, 8), nn.Linear(8, 2), nn.Linear(8, 1)
    model, x = nn.ModuleList([stem, one, two]), noise(20, 6)
    y, z = torch.tensor([0] * 15 + [1] * 5), torch.full((20, 1), 3.0)

    def forward():
        h = stem(x).relu()
        return F.cross_entropy(one(h), y) + F.mse_loss(two(h), z)

    prior(model, forward, weight="zero")
    assert one.bias.exp().tolist() == pytest.approx([0.75, 0.25], rel=1e-6)
    assert two.bias.tolist() == [3.0]
    assert not bool(one.weight.any() or two.weight.any())


def test_below_stays_what_it_is():
    x, y = noise(40, 6), torch.tensor([0] * 30 + [1] * 10)
    model = net(6, 2)
    forward = lambda: F.cross_entropy(model(x), y)  # noqa: E731
    spec = InitSpec("chain", {"steps": ["kaiming_normal", "prior_head"]})
    plan, below = (make_plan(model, each, forward=forward) for each in (spec, "kaiming_normal"))
    changed = [e.info.name for e in plan if e.distribution != below[e.info.name]]
    assert changed == ["2.bias"]
    scaled = make_plan(
        model, InitSpec("prior_head", {"weight": "small", "scale": 2.0}), forward=forward
    )
    assert scaled["2.weight"].std == pytest.approx(0.02)
    assert scaled["2.bias"].values == pytest.approx((math.log(0.75), math.log(0.25)))


class Classifier(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = net(6, 3)

    def training_step(self, batch):
        x, y = batch
        loss = F.cross_entropy(self.net(x), y)
        self.log("loss", loss)
        return loss


def test_through_a_lightning_module():
    model, y = Classifier(), torch.tensor([0] * 10 + [1] * 20 + [2] * 10)
    prior(model, training_forward(model, (noise(40, 6), y)))
    assert model.net[2].bias.exp().tolist() == pytest.approx([0.25, 0.5, 0.25], rel=1e-6)


def test_what_is_missing_is_named():
    model, x = net(6, 2), noise(8, 6)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(NotYetError, match="prior_head needs a forward pass"):
        initialize_(model, "prior_head")
    with pytest.raises(UnsuitableError, match="needs labels, but the forward pass computes no"):
        prior(model, lambda: model(x))
    bare = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2, bias=False))
    with pytest.raises(UnsuitableError, match="output layer with a bias"):
        prior(bare, lambda: bare(x), pi=0.01)
    with pytest.raises(UnsuitableError, match="output layer with a bias"):
        prior(bare, lambda: F.cross_entropy(bare(x), torch.tensor([0, 1] * 4)))
    with pytest.raises(ValueError, match="pi"):
        prior(model, lambda: model(x), pi=1.5)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("name", ["plain_cnn", "gru", "lstm", "convnext"])
def test_every_output_layer_at_a_given_prior(name):
    model, forward = ZOO[name]()
    plan = prior(model, forward, pi=0.1)
    heads = [e for e in plan if e.info.role == "bias" and e.info.usage and e.info.usage.is_output]
    assert heads
    assert all(e.distribution.mean == pytest.approx(-math.log(9)) for e in heads)


@pytest.mark.slow
def test_no_step_is_spent_on_frequencies():
    """Real, imbalanced labels: 5 SGD steps from zero biases are behind none from the prior."""
    x, y = load_digits(return_X_y=True)
    x, y = (
        torch.tensor(x, dtype=torch.float32) / 16,
        torch.tensor((y == 8).astype("float32"))[:, None],
    )
    results: dict[str, list[float]] = {}
    for spec in (InitSpec("auto", overrides={"role:bias": "constant"}), InitSpec("prior_head")):
        for seed in range(3):
            model = net(64, 1, seed)
            forward = lambda m=model: F.binary_cross_entropy_with_logits(m(x), y)  # noqa: E731
            initialize_(model, spec, seed=seed, forward=forward)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.03)
            for _ in range(5):
                optimizer.zero_grad()
                forward().backward()
                optimizer.step()
            results.setdefault(spec.strategy, []).append(forward().item())
    assert min(results["auto"]) > 0.45
    assert max(results["prior_head"]) < 0.36


WEIGHT = torch.tensor([1.0, 2.0, 5.0])
CLASSES = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
SHARES = noise(100, 3).softmax(-1)
SEVERAL = (noise(100, 3) > torch.tensor([-1.0, 0.0, 1.0])).float()
TARGETS = noise(100, 3).exp() * torch.tensor([1.0, 10.0, 100.0])
EACH = noise(100, 3).abs()


@pytest.mark.parametrize(
    "loss",
    [
        lambda out: F.cross_entropy(out, CLASSES, weight=WEIGHT),
        lambda out: F.cross_entropy(out, CLASSES, label_smoothing=0.2),
        lambda out: F.cross_entropy(out, CLASSES, WEIGHT, label_smoothing=0.2),
        lambda out: F.cross_entropy(out, SHARES, weight=WEIGHT, label_smoothing=0.2),
        lambda out: nn.CrossEntropyLoss(WEIGHT)(out, CLASSES),
        lambda out: F.nll_loss(F.log_softmax(out, -1), CLASSES, WEIGHT),
        lambda out: F.binary_cross_entropy_with_logits(out, SEVERAL, pos_weight=WEIGHT),
        lambda out: F.binary_cross_entropy_with_logits(out, SEVERAL, EACH, pos_weight=WEIGHT),
        lambda out: F.binary_cross_entropy_with_logits(out, SEVERAL, EACH[:, :1]),
        lambda out: F.binary_cross_entropy(out.sigmoid(), SEVERAL, EACH),
        lambda out: F.binary_cross_entropy_with_logits(out, 0.9 * SEVERAL + 0.05),
        lambda out: F.l1_loss(out, TARGETS),
        lambda out: F.huber_loss(out, TARGETS, delta=0.3),
        lambda out: F.smooth_l1_loss(out, TARGETS, beta=0.5),
        lambda out: F.mse_loss(out, TARGETS),
    ],
)
def test_no_other_constant_answer_has_a_smaller_loss(loss):
    """Whatever the loss was told: weights, smoothing, a weight of each label."""
    model, x = net(6, 3), noise(100, 6)
    prior(model, lambda: loss(model(x)), weight="zero")
    bias = model[2].bias.detach().double()

    def at(values):
        return loss(values.float().expand(100, 3)).item()

    start = at(bias)
    for output in range(3):
        for step in (-0.1, 0.1):
            moved = bias.clone()
            moved[output] += step * max(1.0, abs(float(bias[output])))
            assert start < at(moved)


def test_what_the_loss_ignores_is_no_label():
    """An ignored class is as one that was never seen; the others keep their odds."""
    model, x = net(6, 3), noise(100, 6)
    prior(model, lambda: F.cross_entropy(model(x), CLASSES, ignore_index=1))
    found = model[2].bias.exp().tolist()
    assert found == pytest.approx([60 / 70.5, 0.5 / 70.5, 10 / 70.5], rel=1e-5)
