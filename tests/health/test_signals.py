"""Every number of a probe against a computation by hand in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_init import audit, make_plan
from lightning_init.architecture.probe import Probe
from lightning_init.architecture.readings import StepReading


def near(value: float, rel: float = 1e-4) -> Any:
    return pytest.approx(value, rel=rel, abs=1e-6)


def heard(model: nn.Module, call: Callable[[], object], full: bool = True) -> StepReading:
    probe = Probe(model)
    probe.start(full=full)
    try:
        call()
    finally:
        probe.stop()
    reading = probe.step(0)
    assert probe.error is None
    return reading


def mean_cosine(vectors: Tensor) -> float:
    """Over all pairs of two different rows, zero rows aside."""
    rows = vectors.double()
    rows = rows[rows.norm(dim=1) > 0]
    rows = rows / rows.norm(dim=1, keepdim=True)
    gram = rows @ rows.T
    n = len(rows)
    return float((gram.sum() - gram.diagonal().sum()) / (n * (n - 1)))


# cosines


def test_cosines_of_a_linear_layer() -> None:
    model, x = nn.Linear(6, 9), torch.randn(40, 6) + 0.5
    with torch.no_grad():
        model.weight[2] = model.bias[2] = 0  # a unit that is always zero has no direction
    (layer,) = heard(model, lambda: model(x)).layers
    out = model(x).detach()
    assert layer.sample_cosine == near(mean_cosine(out))
    assert layer.unit_cosine == near(mean_cosine(out[:16].T))


@pytest.mark.parametrize("full", [True, False])
def test_cosines_of_a_convolution(full: bool) -> None:
    model, x = nn.Conv2d(2, 5, 3), torch.randn(20, 2, 7, 7) + 1
    (layer,) = heard(model, lambda: model(x), full).layers
    out = model(x).detach()
    rows = out if full else out[:16]
    assert layer.sample_cosine == near(mean_cosine(rows.flatten(1)))
    assert layer.unit_cosine == near(mean_cosine(out[:16].transpose(0, 1).flatten(1)))


def test_equal_samples_and_equal_units() -> None:
    model = nn.Linear(4, 6)
    nn.init.constant_(model.weight, 0.5)
    nn.init.zeros_(model.bias)
    (layer,) = heard(model, lambda: model(torch.randn(32, 4))).layers
    assert layer.unit_cosine == near(1.0)
    (layer,) = heard(model, lambda: model(torch.ones(32, 4))).layers
    assert layer.sample_cosine == near(1.0)
    (layer,) = heard(model, lambda: model(torch.randn(1, 4))).layers
    assert math.isnan(layer.sample_cosine)


# what follows a layer

X = torch.randn(300, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("function", "called", "flat"),
    [
        (nn.Tanh(), "tanh", lambda y: y.abs() > 0.97),
        (F.tanh, "tanh", lambda y: y.abs() > 0.97),
        (nn.Sigmoid(), "sigmoid", lambda y: (y < 0.03) | (y > 0.97)),
        (nn.Softsign(), "softsign", lambda y: y.abs() > 0.97),
        (nn.Hardtanh(), "hardtanh", lambda y: y.abs() == 1),
        (nn.Hardsigmoid(), "hardsigmoid", lambda y: (y == 0) | (y == 1)),
        (nn.ReLU6(), "relu6", lambda y: y == 6),
        (lambda x: x.clamp(-2, 2), "hardtanh", lambda y: y.abs() == 2),
        (nn.ReLU(), "relu", None),
        (nn.ReLU(inplace=True), "relu", None),
        (lambda x: x.relu(), "relu", None),
        (lambda x: x.clamp(min=0), "relu", None),
        (nn.GELU(), "gelu", None),
        (F.silu, "silu", None),
        (F.leaky_relu, "leaky_relu", None),
        (nn.ELU(), "elu", None),
    ],
)
def test_an_activation(function: Any, called: str, flat: Any) -> None:
    layer = nn.Linear(8, 12)
    with torch.no_grad():
        layer.weight.mul_(12)
        layer.bias[:3] = -1000  # a quarter of the units is dead where the function is flat there
    reading = heard(layer, lambda: function(layer(X)))
    after = reading.layers[0].after
    assert after is not None
    assert after.function == called
    y = function(layer(X)).detach().double()
    assert after.mean == near(float(y.mean()))
    assert after.std == near(float(y.std(correction=0)))
    assert after.rms == near(float((y**2).mean().sqrt()))
    assert after.absmax == near(float(y.abs().max()))
    assert after.zeros == near(float((y == 0).double().mean()))
    if flat is None:
        assert math.isnan(after.saturated)
    else:
        assert after.saturated == near(float(flat(y).double().mean()))
    if called in ("relu", "relu6"):
        assert (after.dead, after.units, after.rows) == (0.25, 12, 256)
    else:
        assert math.isnan(after.dead)
    pre = layer(X).detach().double()
    assert reading.layers[0].rms == near(float((pre**2).mean().sqrt()))  # before it is overwritten


def test_dead_channels() -> None:
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
    with torch.no_grad():
        net[1].bias[:2] = -100
    for full in (True, False):
        reading = heard(net, lambda: net(torch.randn(20, 1, 6, 6)), full)
        after = reading.layers[0].after
        assert after is not None
        assert (after.dead, after.units) == (0.25, 8)
        assert after.rows == (20 if full else 16) * 16


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate(x), self.up(x)
        return self.down(F.silu(gate) * up)


def test_an_activation_belongs_to_the_layer_that_it_takes() -> None:
    model = Gated()
    found = {layer.name: layer.after for layer in heard(model, lambda: model(X)).layers}
    assert found["gate"] is not None
    assert found["gate"].function == "silu"
    assert found["up"] is None
    assert found["down"] is None


def test_through_norm_dropout_and_addition_but_once() -> None:
    one, two, norm = nn.Linear(8, 8), nn.Linear(8, 8), nn.LayerNorm(8)
    net = nn.ModuleList([one, two, norm])

    def forward() -> Tensor:
        h = F.dropout(norm(one(X)), 0.1)
        h = torch.tanh(h + X).relu()
        return two(h)

    first, second = heard(net, forward).layers
    assert first.after is not None
    assert first.after.function == "tanh"
    assert second.after is None
    assert second.is_output
    assert not first.is_output


# inputs, expected scale


def test_inputs_by_hand() -> None:
    net = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    x = X * torch.tensor([1.0, 1, 1, 1, 1, 1, 1, 50]) + 700
    x[:, 3] = 5  # does not vary
    reading = heard(net, lambda: net(x))
    (given,) = reading.inputs
    d = x.double()
    assert given.name == "0"
    assert given.mean == near(float(d.mean()))
    assert given.std == near(float(d.std(correction=0)))
    assert given.rms == near(float((d**2).mean().sqrt()))
    assert given.absmax == near(float(d.abs().max()))
    stds = d.std(0, correction=0)
    kept = stds[stds > 0]
    assert given.spread == near(float(kept.max() / kept.min()), 1e-3)
    assert not given.normalized
    assert given.finite
    first, last = reading.layers
    weight = net[0].weight.detach().double()
    assert first.input_rms == near(float((d**2).mean().sqrt()))
    own = math.sqrt(8) * float((weight**2).mean().sqrt()) * first.input_rms
    assert first.expected_rms == near(own)
    plan = make_plan(net, "kaiming_normal")
    report = audit(net, lambda: net(x), plan=plan)
    planned = math.sqrt(8) * plan["0.weight"].std * first.input_rms
    assert report.readings.steps[0].layers[0].expected_rms == near(planned)
    assert last.input_rms == near(float((net[1](net[0](x)).detach() ** 2).mean().sqrt()))


def test_images_have_channels_and_norms_undo_scale() -> None:
    x = torch.rand(20, 3, 8, 8) * torch.tensor([1.0, 2, 30])[:, None, None]
    stds = x.double().transpose(0, 1).flatten(1).std(1, correction=0)
    spread = float(stds.max() / stds.min())
    straight = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    (given,) = heard(straight, lambda: straight(x)).inputs
    assert given.normalized
    assert given.spread == near(spread)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4))
    (given,) = heard(plain, lambda: plain(x)).inputs
    assert not given.normalized
    before = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.ReLU())
    (given,) = heard(before, lambda: before(x)).inputs
    assert (given.name, given.normalized) == ("0", True)


def test_tokens_are_no_input() -> None:
    net = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 4))
    assert heard(net, lambda: net(torch.arange(10)[None])).inputs == ()


def test_a_bad_batch_is_marked() -> None:
    net = nn.Linear(8, 2)
    x = X.clone()
    x[-1, -1] = math.nan
    assert audit(net, lambda: net(x).sum()).readings.bad_batches == (0,)
    assert audit(net, lambda: net(X).sum()).readings.bad_batches == ()
    reading = heard(net, lambda: net(x), full=False)
    assert not reading.inputs[0].finite  # in a row that is not read otherwise


# attention


def attend(logits: Tensor, visible: Tensor) -> tuple[float, float, float, float]:
    entropy, stds, keys = [], [], []
    for row, seen in zip(
        logits.double().flatten(0, -2), visible.expand_as(logits).flatten(0, -2), strict=True
    ):
        kept = row[seen]
        keys.append(len(kept))
        if len(kept) > 1:
            p = kept.softmax(0)
            entropy.append(float(-(p * p.clamp_min(1e-300).log()).sum() / math.log(len(kept))))
            stds.append(float(kept.var(correction=0)))
    largest = float(logits[visible.expand_as(logits)].abs().max())
    average = sum(entropy) / len(entropy)
    return average, largest, math.sqrt(sum(stds) / len(stds)), sum(keys) / len(keys)


class Attend(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.mask = how, torch.rand(10, 10) > 0.4
        self.mask |= torch.eye(10, dtype=torch.bool)
        self.qkv = nn.Linear(16, 48)

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        b, t, _ = x.shape
        return tuple(p.view(b, t, 2, 8).transpose(1, 2) for p in self.qkv(x).chunk(3, -1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x)
        added = torch.where(self.mask, 0.5, -math.inf)
        match self.how:
            case "causal":
                return F.scaled_dot_product_attention(q, k, v, is_causal=True)
            case "bool":
                return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)
            case "float":
                return F.scaled_dot_product_attention(q, k, v, attn_mask=added, scale=0.7)
        scores = q @ k.transpose(-2, -1) / math.sqrt(8)
        scores = scores.masked_fill(~self.mask, -1e9 if self.how == "by hand" else -math.inf)
        return scores.softmax(-1) @ v


@pytest.mark.parametrize("how", ["causal", "bool", "float", "by hand", "by hand, -inf"])
def test_attention_by_hand(how: str) -> None:
    model, x = Attend(how), torch.randn(3, 10, 16) * 2
    (found,) = heard(model, lambda: model(x)).attentions
    q, k, _ = model.project(x[:1] if "hand" not in how else x)
    scale = 0.7 if how == "float" else 1 / math.sqrt(8)
    visible = torch.ones(10, 10).tril().bool() if how == "causal" else model.mask
    logits = (q @ k.transpose(-2, -1) * scale + (0.5 if how == "float" else 0)).detach()
    entropy, largest, std, keys = attend(logits, visible)
    assert found.entropy == near(entropy)
    assert found.logit_max == near(largest)
    assert found.logit_std == near(std)
    assert found.keys == near(keys)


@pytest.mark.parametrize("weights", [True, False])
def test_multihead_attention_is_opened(weights: bool) -> None:
    model, x = nn.MultiheadAttention(16, 2, batch_first=True), torch.randn(2, 10, 16)
    (found,) = heard(model, lambda: model(x, x, x, need_weights=weights)).attentions
    q, k, _ = F.linear(x, model.in_proj_weight, model.in_proj_bias).chunk(3, -1)
    q, k = (p.view(2, 10, 2, 8).transpose(1, 2) for p in (q, k))
    logits = (q @ k.mT / math.sqrt(8)).detach()
    logits = logits if weights else logits[:1]
    entropy, largest, std, keys = attend(logits, torch.ones(10, 10, dtype=torch.bool))
    assert found.name == ""
    assert (found.entropy, found.logit_max) == (near(entropy), near(largest))
    assert (found.logit_std, found.keys) == (near(std), near(keys))


def test_a_classifier_does_not_attend() -> None:
    net = nn.Sequential(nn.Linear(8, 10), nn.Softmax(-1))
    assert heard(net, lambda: net(torch.randn(2, 5, 8))).attentions == ()


# weights, updates


def test_updates_rates_and_gradients_of_a_step() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3))
    nn.init.zeros_(net[2].bias)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    probe = Probe(net)
    probe.start()
    (F.cross_entropy(net(X), torch.arange(300) % 3) * 128).backward()
    probe.gradients(net.parameters(), scale=128)
    grads = [p.grad.double() / 128 for p in net.parameters()]
    for p in net.parameters():
        p.grad /= 128
    before = [p.detach().double().clone() for p in net.parameters()]
    probe.before_update(net.parameters())
    optimizer.step()
    probe.stop()
    read = probe.step(3, {id(p): 0.1 for p in net.parameters()}, loss_scale=128)
    assert read.step == 3
    for reading, p, old, grad in zip(read.weights, net.parameters(), before, grads, strict=True):
        new = p.detach().double()
        assert reading.rms == near(float((new**2).mean().sqrt()))
        assert reading.grad_rms == near(float((grad**2).mean().sqrt()))
        assert reading.lr == 0.1
        assert reading.shape == tuple(p.shape)
        if old.ndim > 1:
            assert reading.update == near(float((new - old).norm() / old.norm()))
        else:
            assert math.isnan(reading.update)
    first = read.weights[0]
    assert (first.role, first.module, first.fan_in, first.names) == (
        "weight",
        "0",
        8,
        ("0.weight",),
    )
    assert all(math.isnan(w.update) for w in probe.step(4).weights)


def test_twins() -> None:
    net = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 3))
    with torch.no_grad():
        net[0].weight[:6] = net[0].weight[0]
        net[0].bias[:6] = net[0].bias[0]
    y = torch.arange(300) % 3
    found = {
        w.name: w.twins
        for w in audit(net, lambda: F.cross_entropy(net(X), y)).readings.steps[0].weights
    }
    assert found["0.weight"] == 0  # alike, but led apart by the next layer
    assert math.isnan(found["0.bias"])
    with torch.no_grad():
        net[2].weight[:, :6] = net[2].weight[:, :1]
    found = {
        w.name: w.twins
        for w in audit(net, lambda: F.cross_entropy(net(X), y)).readings.steps[0].weights
    }
    assert found["0.weight"] == 0.5
    assert found["2.weight"] == 0


# precision


def test_autocast_is_read_in_float32() -> None:
    net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4))

    def forward() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return net(X)

    for full in (True, False):
        reading = heard(net, forward, full)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = net[0](X).detach()
        rows = out if full else out[:18]
        assert out.dtype is torch.bfloat16
        assert reading.layers[0].mean == near(float(rows.double().mean()))
        assert reading.layers[0].rms == near(float((rows.double() ** 2).mean().sqrt()))
        assert reading.layers[0].sample_cosine == near(mean_cosine(rows))


@pytest.mark.parametrize("scale", [300.0, 1e-4])
def test_half_precision_neither_overflows_nor_vanishes(scale: float) -> None:
    net = nn.Linear(4, 4096, bias=False).half()
    x = torch.ones(64, 4).half()
    with torch.no_grad():
        net.weight.copy_(torch.randn(4096, 4) * scale)
    (layer,) = heard(net, lambda: net(x)).layers
    out = net(x).detach().double()
    assert layer.rms == near(float((out**2).mean().sqrt()), 1e-3)


def test_a_recurrent_layer() -> None:
    net = nn.LSTM(8, 6, batch_first=True)
    x = torch.randn(20, 5, 8)
    reading = heard(net, lambda: net(x))
    (layer,) = reading.layers
    out = net(x)[0].detach().double()
    assert layer.rms == near(float((out**2).mean().sqrt()))
    assert [given.name for given in reading.inputs] == [""]


def test_weights_without_a_module() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Parameter(torch.randn(8, 12))
            self.two = nn.Parameter(torch.randn(12, 3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x @ self.one) @ self.two

    net = Bare()
    reading = heard(net, lambda: net(X))
    assert [layer.name for layer in reading.layers] == ["one", "two"]
    h = (X @ net.one).detach().double()
    first, second = reading.layers
    assert first.rms == near(float((h**2).mean().sqrt()))
    assert first.after is not None
    assert first.after.zeros == near(float((h <= 0).double().mean()))
    assert second.is_output
    assert [given.name for given in reading.inputs] == ["one"]


def test_a_compiled_part_stays_as_it_is() -> None:
    double = torch.compile(lambda x: torch.relu(x) * 2, backend="eager")

    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(8, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(double(self.one(x)))

    net = Partly()
    with torch.no_grad():
        expected, out = net(X), []
        reading = heard(net, lambda: out.append(net(X)))
    assert torch.equal(out[0], expected)
    assert [layer.name for layer in reading.layers] == ["one", "two"]
    whole = torch.compile(nn.Sequential(nn.Linear(8, 6)), backend="eager")
    assert heard(whole, lambda: whole(X)).layers == ()
