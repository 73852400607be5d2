"""Schemes for residual branches: exact constants, what is left alone, and what they promise."""

import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from lightning_init import (
    InitSpec,
    Role,
    add_branch_scales_,
    analyze,
    initialize_,
    make_plan,
    param_groups,
    remove_norms_,
)
from lightning_init.strategies.auto import TABLE
from lightning_init.strategies.distributions import Constant, Keep
from lightning_init.strategies.needs import NotYetError, UnsuitableError
from tests.zoo import ZOO, noise

ZERO = Constant(0.0)


def planned(scheme, model, **params):
    module, forward = ZOO[model]()
    return make_plan(module, InitSpec(scheme, params), forward=forward)


def table(model):
    """What the changing schemes change if they stand alone: auto, whoever wrote a weight before."""
    module, forward = ZOO[model]()
    return make_plan(module, TABLE, forward=forward)


# zero_gamma


@pytest.mark.parametrize(
    ("model", "zeros"),
    [
        ("residual_cnn", [f"blocks.{i}.bn2" for i in range(3)]),
        ("bottleneck_cnn", [f"blocks.{i}.bn3" for i in range(3)]),
        ("se_resnet", ["2.bn2", "3.bn2"]),
        ("inverted_residual", ["3.project.1", "4.project.1"]),
        (
            "resnet",
            [
                f"resnet.encoder.stages.{s}.layers.{i}.layer.2.normalization"
                for s, i in ((0, 0), (0, 1), (1, 0))
            ],
        ),
    ],
)
def test_zero_gamma_is_the_last_norm_of_each_branch_only(model, zeros):
    plan, auto = planned("zero_gamma", model), table(model)
    scales = [e for e in plan if e.info.role is Role.NORM_SCALE]
    assert [e.info.name for e in scales if e.distribution == ZERO] == [f"{n}.weight" for n in zeros]
    assert all(e.distribution == Constant(1.0) for e in scales if e.distribution != ZERO)
    assert len(scales) > len(zeros)  # there are others, of shortcuts too
    for entry in plan:  # nothing else is changed
        if entry.info.role is not Role.NORM_SCALE:
            assert entry.distribution == auto[entry.info.name]


@pytest.mark.parametrize(
    ("model", "zeros"),
    [
        ("preactivation_cnn", ["blocks.0.conv2", "blocks.1.conv2"]),
        ("residual_mlp", [f"down.{i}" for i in range(4)]),
        ("gpt2", [f"transformer.h.{i}.{end}.c_proj" for i in (0, 1) for end in ("attn", "mlp")]),
        ("encoder", [f"layers.{i}.{n}" for i in (0, 1) for n in ("self_attn.out_proj", "linear2")]),
    ],
)
def test_without_a_norm_at_the_end_the_last_layer_is_zero(model, zeros):
    plan, auto = planned("zero_gamma", model), table(model)
    for entry in plan:
        owner = entry.info.name.rpartition(".")[0]
        assert entry.distribution == (ZERO if owner in zeros else auto[entry.info.name])
    kept = planned("zero_gamma", model, last_layer=False)
    assert [e.distribution for e in kept] == [e.distribution for e in auto]


@pytest.mark.parametrize(
    "model", ["preactivation_cnn", "residual_mlp", "norm_first_encoder", "gpt2", "shared_block"]
)
def test_the_stack_starts_as_its_skip_path(model):
    """With zero ends, all that the other layers of the branches do has no effect."""
    module, forward = ZOO[model]()
    module.eval()
    plan = initialize_(module, "zero_gamma", seed=0, forward=forward)
    out = forward()
    inside = [e.info for e in plan if e.info.usage and e.info.usage.within >= 0]
    assert len(inside) > 4
    with torch.no_grad():
        for info in inside:
            if not info.usage.ends_branch:
                module.get_parameter(info.name).mul_(3.0).add_(0.1)
        assert torch.equal(forward(), out)


def test_a_gemma_norm_that_ends_a_branch_becomes_minus_one():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.scale = nn.Linear(8, 8), nn.Parameter(torch.zeros(8))

        def forward(self, x):
            y = self.layer(x)
            y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
            return x + y * (1.0 + self.scale)

    block, x = Block(), noise(4, 8)
    plan = initialize_(block, "zero_gamma", seed=0, forward=lambda: block(x))
    assert plan["scale"] == Constant(-1.0)
    assert torch.equal(block(x), x)
    assert plan["layer.weight"].std > 0  # the norm is the end


def test_on_top_of_other_schemes():
    module, forward = ZOO["bottleneck_cnn"]()
    steps = {"steps": ["kaiming_normal", "zero_gamma"]}
    plan = make_plan(module, InitSpec("chain", steps), forward=forward)
    below = make_plan(module, "kaiming_normal", forward=forward)
    assert plan["blocks.0.conv3.weight"] == below["blocks.0.conv3.weight"]
    assert plan["blocks.0.bn3.weight"] == ZERO
    assert plan["stem.0.weight"] == below["stem.0.weight"]


# skip_gain


@pytest.mark.parametrize(("params", "gain"), [({}, 2**0.5), ({"gain": 0.5}, 0.5)])
@pytest.mark.parametrize("model", ["bottleneck_cnn", "gpt2", "residual_mlp"])
def test_skip_gain_multiplies_the_ends_of_branches(model, params, gain):
    plan, auto = planned("skip_gain", model, **params), table(model)
    ends = 0
    for entry in plan:
        usage, matrix = entry.info.usage, entry.info.role is Role.WEIGHT
        factor = gain if matrix and usage.ends_branch else 1.0
        ends += factor != 1.0
        assert entry.distribution.std == pytest.approx(factor * auto[entry.info.name].std, rel=1e-9)
        assert entry.distribution.mean == auto[entry.info.name].mean
    assert ends == analyze(*ZOO[model]()).num_branches


# Fixup


def he(shape, mode):
    """He's std from the shape of an (out, in, ...) kernel without groups and strides."""
    fan = shape[1] if mode == "fan_in" else shape[0]
    return math.sqrt(2 / (fan * math.prod(shape[2:])))


@pytest.mark.parametrize("mode", ["fan_in", "fan_out"])
@pytest.mark.parametrize(("model", "layers"), [("residual_cnn", 2), ("bottleneck_cnn", 3)])
def test_fixup_constants(model, layers, mode):
    """L = 3 branches: L^(-1/2) for m = 2, L^(-1/4) for m = 3."""
    plan = planned("fixup", model, mode=mode)
    power = {2: 3**-0.5, 3: 3**-0.25}[layers]
    checked = {"inside": 0, "end": 0, "outside": 0}
    for entry in plan:
        name, info = entry.info.name, entry.info
        if info.role is not Role.WEIGHT:
            continue
        if name == "head.weight" or name.endswith(f"conv{layers}.weight"):
            assert entry.distribution == ZERO
            checked["end"] += 1
            continue
        inside = ".conv" in name
        if mode == "fan_out" and name.startswith("blocks.2"):
            continue  # stride 2
        factor = power if inside else 1.0  # stem, shortcuts
        assert entry.distribution.std == pytest.approx(factor * he(info.shape, mode), rel=1e-9)
        checked["inside" if inside else "outside"] += 1
    strided = mode == "fan_out"
    assert checked == (
        {"inside": 3 - strided, "end": 4, "outside": 1}
        if layers == 2
        else {"inside": 6 - 2 * strided, "end": 4, "outside": 3 - strided}
    )


def test_fixup_counts_the_layers_of_each_branch():
    """Branches of 1, 2 and 4 layers in one model: each has its own m, all the same L."""

    class Block(nn.Module):
        def __init__(self, layers):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(layers))

        def forward(self, x):
            y = x
            for number, layer in enumerate(self.layers):
                y = layer(torch.relu(y) if number else y)
            return x + y

    model = nn.Sequential(nn.Linear(8, 8), Block(1), Block(2), Block(4), nn.Linear(8, 3))
    plan = make_plan(model, "fixup", forward=lambda: model(noise(2, 8)))
    std, count = math.sqrt(2 / 8), 3
    assert plan["0.weight"].std == pytest.approx(std)
    assert plan["1.layers.0.weight"] == ZERO
    assert plan["2.layers.0.weight"].std == pytest.approx(std * count**-0.5)
    for number in range(3):
        assert plan[f"3.layers.{number}.weight"].std == pytest.approx(std * count ** (-1 / 6))
    for name in ("2.layers.1.weight", "3.layers.3.weight", "4.weight", "4.bias"):
        assert plan[name] == ZERO


def test_fixup_with_its_scalars():
    module, forward = ZOO["bottleneck_cnn"]()
    assert [note.split(":")[0] for note in make_plan(module, "fixup", forward=forward).notes] == [
        "fixup wants a model without norm layers, but this one has some",
        "fixup wants a learned scale in each residual branch, but the branches have none",
    ]
    remove_norms_(module)
    add_branch_scales_(module, "fixup", forward=forward)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "branch" in name:
                parameter.fill_(3.0)
    plan = initialize_(module, "fixup", seed=0, forward=forward, scope="all")
    assert plan.notes == ()
    values = {n: p.item() for n, p in module.named_parameters() if "branch" in n}
    assert {v for n, v in values.items() if n.endswith("branch_scale")} == {1.0}
    assert {v for n, v in values.items() if "branch_bias" in n} == {0.0}
    assert len(values) == 3 * (1 + 2 * 3)
    assert not forward().any()  # the head is 0


def test_fixup_keeps_a_tied_table():
    plan = planned("fixup", "gpt2")
    assert plan["transformer.wte.weight"].std == pytest.approx(16**-0.5)
    assert plan["transformer.h.0.attn.c_attn.weight"].std == pytest.approx(
        math.sqrt(2 / 16) * 4**-0.5
    )


# SkipInit, ReZero, LayerScale


@pytest.mark.parametrize(
    ("scheme", "params", "value"),
    [
        ("skipinit", {}, 0.0),
        ("skipinit", {"value": 0.25}, 0.25),
        ("rezero", {}, 0.0),
        ("layerscale", {}, 0.1),
        ("layerscale", {"value": 1e-3}, 1e-3),
    ],
)
@pytest.mark.parametrize("model", ["rezero", "layer_scale", "convnext"])
def test_learned_scales_of_a_model_s_own_are_set(model, scheme, params, value):
    plan, auto = planned(scheme, model, **params), table(model)
    scales = [e for e in plan if e.info.role is Role.BRANCH_SCALE]
    assert len(scales) in (2, 3, 4)
    assert {e.distribution.value for e in scales} == {value}
    for entry in plan:
        if entry.info.role is not Role.BRANCH_SCALE and not isinstance(auto[entry.info.name], Keep):
            assert entry.distribution == auto[entry.info.name]


@pytest.mark.parametrize(("layers", "value"), [(18, 0.1), (24, 1e-5), (25, 1e-6)])
def test_layerscale_by_depth(layers, value):
    layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True, norm_first=True)
    model = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
    x = noise(1, 2, 8)
    add_branch_scales_(model, "layerscale", forward=lambda: model(x), value=0.5)
    plan = make_plan(model, "layerscale", forward=lambda: model(x))
    assert plan["layers.3.linear2.branch_scale"] == Constant(value)


@pytest.mark.parametrize("scheme", ["skipinit", "rezero", "layerscale"])
def test_without_scales_the_error_says_what_to_call(scheme):
    with pytest.raises(UnsuitableError, match=r"learned scale.*call add_branch_scales_.*zero_gam"):
        planned(scheme, "bottleneck_cnn")


@pytest.mark.parametrize(
    "scheme", ["zero_gamma", "skip_gain", "fixup", "skipinit", "rezero", "layerscale"]
)
def test_without_branches_the_error_names_them(scheme):
    with pytest.raises(UnsuitableError, match=f"{scheme} needs residual branches, but the forward"):
        planned(scheme, "relu_mlp")
    module, _ = ZOO["residual_mlp"]()
    with pytest.raises(NotYetError, match=f"{scheme} needs a forward pass"):
        make_plan(module, scheme)


@pytest.mark.parametrize(
    ("scheme", "params", "wrong"),
    [
        ("skip_gain", {"gain": 0.05}, "0.1 <= gain <= 10"),
        ("skipinit", {"value": 1.5}, "0 <= value <= 1"),
        ("layerscale", {"value": -0.1}, "0 <= value <= 1"),
        ("fixup", {"mode": "fan_avg"}, "unknown value 'fan_avg'"),
        ("zero_gamma", {"last_layer": 1}, "must be true or false"),
    ],
)
def test_values_out_of_range(scheme, params, wrong):
    with pytest.raises(ValueError, match=wrong):
        InitSpec(scheme, params)


# What the papers promise, on a residual CNN without norms


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x):
        return x + self.conv2(F.relu(self.conv1(x)))


class ResidualNet(nn.Module):
    def __init__(self, blocks, channels=16):
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(*[Block(channels) for _ in range(blocks)])
        self.head = nn.Linear(channels, 10)

    def forward(self, x):
        return self.head(self.blocks(F.relu(self.stem(x))).mean((2, 3)))


def digits():
    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1)
    return (x - x.mean()) / x.std(), torch.tensor(data.target)


def built(scheme, blocks, x, seed=0):
    model = ResidualNet(blocks)
    if scheme in ("fixup", "skipinit", "layerscale"):
        add_branch_scales_(model, scheme, forward=lambda: model(x))
    initialize_(model, scheme, seed=seed, forward=lambda: model(x))
    return model


@pytest.mark.parametrize("blocks", [8, 32])
def test_fixup_starts_at_the_loss_of_a_uniform_guess(blocks):
    x, y = digits()
    x, y = x[:64], y[:64]
    loss = F.cross_entropy(built("fixup", blocks, x)(x), y)
    assert loss.item() == pytest.approx(math.log(10), rel=1e-6)
    # He's law alone: the sum of branches doubles the variance in each block.
    baseline = built("kaiming_normal", blocks, x)
    assert F.cross_entropy(baseline(x), y).item() > (4 if blocks == 8 else 1e3)


@pytest.mark.parametrize("scheme", ["fixup", "skipinit", "zero_gamma"])
def test_the_blocks_start_as_the_identity(scheme):
    x = digits()[0][:64]
    model = built(scheme, 16, x)
    stream = F.relu(model.stem(x))
    assert torch.equal(model.blocks(stream), stream)


@pytest.mark.parametrize(("scheme", "ratio"), [("fixup", 1.0), ("layerscale", 1.03)])
def test_the_stream_does_not_grow(scheme, ratio):
    x = digits()[0][:64]
    model = built(scheme, 16, x)
    stream = F.relu(model.stem(x))
    assert model.blocks(stream).std() / stream.std() <= ratio + 1e-6
    grown = built("kaiming_normal", 16, x)
    stream = F.relu(grown.stem(x))
    assert grown.blocks(stream).std() / stream.std() > 16


def losses(scheme, blocks, steps, lr, seed):
    x, y = digits()
    x, y = x[:1400], y[:1400]
    model = built(scheme, blocks, x[:64], seed)
    groups = param_groups(model, None, lr)
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9)
    order = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(steps):
        rows = torch.randint(len(x), (64,), generator=order)
        loss = F.cross_entropy(model(x[rows]), y[rows])
        found.append(loss.item())
        if not math.isfinite(found[-1]):
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return found


@pytest.mark.slow
def test_fixup_trains_where_he_s_law_diverges():
    """16 blocks, lr 0.01: Kaiming is not finite within 20 steps; Fixup is, and learns.

    A zero head and scalars that learn slowly make the first steps small ones.
    """
    learned = 0
    for seed in range(3):
        assert not math.isfinite(losses("kaiming_normal", 16, 20, 0.01, seed)[-1])
        found = losses("fixup", 16, 120, 0.01, seed)
        assert all(map(math.isfinite, found))
        first, last = sum(found[:20]) / 20, sum(found[-20:]) / 20
        learned += last < first - 0.01
    assert learned >= 2


@pytest.mark.slow
def test_rezero_trains_a_transformer_without_norms():
    """12 layers of post-norm style without norms: with s = 1 the stream explodes."""
    x, y = digits()
    x, y = x[:1400].reshape(-1, 8, 8), y[:1400]

    def trained(rezero):
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 32, 0.0, batch_first=True)
        remove_norms_(layer)
        encoder = nn.TransformerEncoder(layer, 12, enable_nested_tensor=False)
        model = nn.Sequential(encoder, nn.Flatten(), nn.Linear(64, 10))
        if rezero:
            add_branch_scales_(model, "rezero", forward=lambda: model(x[:2]))
        below = "rezero" if rezero else "xavier_normal"
        initialize_(model, below, seed=0, forward=lambda: model(x[:2]))
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        loss = torch.tensor(0.0)
        for step in range(100):
            rows = torch.arange(64 * step, 64 * step + 64) % len(x)
            loss = F.cross_entropy(model(x[rows]), y[rows])
            if not loss.isfinite():
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()

    assert trained(True) < 0.7
    assert not trained(False) < 2 * trained(True)


def test_scale_is_a_factor_on_what_is_drawn():
    module, forward = ZOO["bottleneck_cnn"]()
    for scheme in ("zero_gamma", "skip_gain", "fixup"):
        one = make_plan(module, scheme, forward=forward)
        two = make_plan(module, InitSpec(scheme, {"scale": 2.0}), forward=forward)
        for a, b in zip(one, two, strict=True):
            assert b.distribution.std == pytest.approx(2 * a.distribution.std)
            assert b.distribution.mean == a.distribution.mean


class TimedBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.shift = nn.Linear(16, 8)

    def forward(self, x, time):
        return x + self.two((self.one(x.relu()) + self.shift(time.relu())[..., None, None]).relu())


class Timed(nn.Module):
    """The blocks of a diffusion model: one time embedding shifts them all."""

    def __init__(self):
        super().__init__()
        self.time = nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.Linear(16, 16))
        self.stem, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
        self.blocks = nn.ModuleList(TimedBlock() for _ in range(4))

    def forward(self, x, time):
        x, time = self.stem(x), self.time(time)
        for block in self.blocks:
            x = block(x, time)
        return self.out(x)


def test_what_serves_all_branches_is_part_of_none():
    model, batch = Timed(), (torch.ones(1, 3, 4, 4), torch.ones(1, 4))
    plan = make_plan(model, "fixup", forward=lambda: model(*batch))
    he = math.sqrt(2)
    assert plan["time.0.weight"].std == pytest.approx(he / 4**0.5)
    assert plan["time.2.weight"].std == pytest.approx(he / 16**0.5)
    for block in range(4):
        assert plan[f"blocks.{block}.shift.weight"].std == pytest.approx(he / 16**0.5 / 4**0.5)
        assert plan[f"blocks.{block}.one.weight"].std == pytest.approx(he / 72**0.5 / 4**0.5)
    added = add_branch_scales_(model, "fixup", forward=lambda: model(*batch))
    assert not [name for name in added if name.startswith("time")]
