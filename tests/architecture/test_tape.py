"""What one forward pass shows: branches, nonlinearities, depth, outputs."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_init import analyze
from tests.zoo import noise


class Net(nn.Module):
    """Layers of width 8 and a function that runs them."""

    def __init__(self, run, **layers):
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def usages(self, x=None):
        x = noise(4, 8) if x is None else x
        return {i.name: i.usage for i in analyze(self, lambda: self.run(self, x))}


def ends(usages):
    return [name for name, usage in usages.items() if usage.ends_branch]


def lin(**kwargs):
    return nn.Linear(8, 8, bias=False, **kwargs)


@pytest.mark.parametrize(
    "run",
    [
        lambda m, x: x + m.b(m.a(x).relu()),
        lambda m, x: m.b(m.a(x).relu()) + x,
        lambda m, x: torch.add(x, m.b(m.a(x).relu())),
        lambda m, x: m.b(m.a(x).relu()).add(x),
        lambda m, x: m.b(m.a(x).relu()).add_(x),
        lambda m, x: x + F.dropout(m.b(m.a(x).relu()), 0.1),
        lambda m, x: x + 0.5 * m.b(m.a(x).relu()),
        lambda m, x: x + m.b(m.a(x).relu()).unsqueeze(0).squeeze(0),
        lambda m, x: x + m.b(m.a(x).relu()) * torch.ones(8),
        lambda m, x: sum([x, m.b(m.a(x).relu())]),
    ],
)
def test_ways_to_write_a_residual_branch(run):
    usages = Net(run, a=lin(), b=lin()).usages()
    assert ends(usages) == ["b.weight"]
    assert usages["b.weight"].branch_layers == 2
    assert usages["a.weight"].num_branches == 1


def test_in_place_addition_to_the_stream():
    def run(m, x):
        x = m.a(x)
        x += m.b(x)
        x += m.c(x)
        return m.d(x)

    usages = Net(run, a=lin(), b=lin(), c=lin(), d=lin()).usages()
    assert ends(usages) == ["b.weight", "c.weight"]
    assert [u.depth for u in usages.values()] == [1, 2, 3, 4]
    assert [u.branch for u in usages.values()] == [-1, 0, 1, -1]


@pytest.mark.parametrize(
    "run",
    [
        lambda m, x: m.b(m.a(x)) + torch.ones(8),  # a constant is not a skip path
        lambda m, x: m.b(m.a(x)) + noise(4, 8),  # nor another input
        lambda m, x: m.a(x) + m.b(x),  # two equal paths: neither is the branch
        lambda m, x: m.b(m.a(x)) + 1.0,
        lambda m, x: (lambda y: y + y)(m.b(m.a(x))),
    ],
)
def test_additions_that_are_no_residual_branch(run):
    assert not ends(Net(run, a=lin(), b=lin()).usages())


@pytest.mark.parametrize(
    "norm",
    [nn.LayerNorm(8), nn.GroupNorm(2, 8), nn.BatchNorm1d(8), nn.BatchNorm1d(8, affine=False)],
    ids=lambda norm: f"{type(norm).__name__}-{len(list(norm.parameters()))}",
)
@pytest.mark.parametrize("training", [True, False])
def test_a_norm_behind_the_branch_does_not_hide_its_layer(norm, training):
    model = Net(lambda m, x: m.out(x + m.norm(m.a(x))), a=lin(), norm=norm, out=lin())
    model.train(training)
    affine = ["norm.weight", "norm.bias"] if list(norm.parameters()) else []
    assert ends(model.usages()) == ["a.weight", *affine]


def test_the_longer_side_is_the_branch_where_both_have_layers():
    usages = Net(lambda m, x: m.a(x) + m.c(m.b(x)), a=lin(), b=lin(), c=lin()).usages()
    assert ends(usages) == ["c.weight"]
    assert usages["c.weight"].branch_layers == 2


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kdim", [None, 5])
@pytest.mark.parametrize("need_weights", [True, False])
def test_only_the_output_projection_of_fused_attention_ends_its_branch(bias, kdim, need_weights):
    attention = nn.MultiheadAttention(8, 2, bias=bias, kdim=kdim, batch_first=True)
    memory = noise(2, 4, kdim or 8)

    def run(m, x):
        value = memory if kdim is None else noise(2, 4, 8)
        y, _ = m.attn(x, memory, value, need_weights=need_weights)
        return m.out(x + y)

    usages = Net(run, attn=attention, out=lin()).usages(noise(2, 3, 8))
    expected = ["attn.out_proj.weight"] + ["attn.out_proj.bias"] * bias
    assert ends(usages) == expected


@pytest.mark.parametrize("training", [True, False])
def test_the_fused_encoder_layer_is_seen_in_both_modes(training):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
    layer.train(training)
    x = noise(2, 3, 8)
    before = torch.backends.mha.get_fastpath_enabled()
    seen = analyze(layer, lambda: layer(x))
    assert seen.num_branches == 2
    assert [i.name for i in seen if i.role == "weight" and i.usage.ends_branch] == [
        "self_attn.out_proj.weight",
        "linear2.weight",
    ]
    assert torch.backends.mha.get_fastpath_enabled() == before


@pytest.mark.parametrize(
    ("function", "name"),
    [
        *((f, "relu") for f in (torch.relu, F.relu, F.relu6, nn.ReLU(), nn.ReLU(inplace=True))),
        *((f, "relu") for f in (torch.Tensor.relu, torch.Tensor.relu_, torch.relu_)),
        *((f, "tanh") for f in (torch.tanh, F.tanh, nn.Tanh(), torch.Tensor.tanh)),
        *((f, "sigmoid") for f in (torch.sigmoid, F.sigmoid, nn.Sigmoid(), torch.Tensor.sigmoid)),
        *((f, "leaky_relu") for f in (F.leaky_relu, nn.LeakyReLU(0.1), nn.PReLU(), nn.RReLU())),
        *((f, "elu") for f in (F.elu, nn.ELU(), nn.CELU())),
        *((f, "selu") for f in (F.selu, torch.selu, nn.SELU())),
        *((f, "gelu") for f in (F.gelu, nn.GELU(), nn.GELU("tanh"))),
        *((f, "silu") for f in (F.silu, nn.SiLU(), F.hardswish, nn.Hardswish())),
        *((f, name) for f, name in ((F.mish, "mish"), (nn.Mish(), "mish"))),
        *((f, "softplus") for f in (F.softplus, nn.Softplus())),
        *((f, "sin") for f in (torch.sin, torch.Tensor.sin)),
        *((f, "linear") for f in (torch.abs, lambda x: x, lambda x: x.softmax(-1))),
    ],
    ids=lambda value: getattr(value, "__name__", None) or str(value),  # no addresses
)
def test_nonlinearities(function, name):
    usages = Net(lambda m, x: m.b(function(m.a(x))), a=lin(), b=lin()).usages()
    assert usages["a.weight"].nonlinearity == name


@pytest.mark.parametrize(
    ("between", "name"),
    [
        (lambda y: F.relu(F.layer_norm(y, (8,))), "relu"),
        (lambda y: F.relu(F.dropout(y.view(-1, 8).reshape(4, 8)).contiguous()), "relu"),
        (lambda y: F.relu(y.to(torch.float32) * 2.0), "relu"),
        (lambda y: F.silu(y) * y, "silu"),  # a gate looks at the layer itself
        (lambda y: F.relu(y.abs()), "linear"),
    ],
)
def test_what_lies_between_a_layer_and_its_nonlinearity(between, name):
    usages = Net(lambda m, x: m.b(between(m.a(x))), a=lin(), b=lin()).usages()
    assert usages["a.weight"].nonlinearity == name


def test_gated_units():
    run = lambda m, x: m.down(F.silu(m.gate(x)) * m.up(x))  # noqa: E731
    usages = Net(run, gate=lin(), up=lin(), down=lin()).usages()
    assert [u.nonlinearity for u in usages.values()] == ["silu", "linear", "linear"]
    assert [u.depth for u in usages.values()] == [1, 1, 2]
    assert [u.is_output for u in usages.values()] == [False, False, True]


def test_two_heads_are_both_outputs_also_behind_an_activation():
    usages = Net(
        lambda m, x: (lambda y: (m.a(y), m.b(y).softmax(-1).log()))(m.trunk(x).relu()),
        trunk=lin(),
        a=lin(),
        b=lin(),
    ).usages()
    assert [u.is_output for u in usages.values()] == [False, True, True]


def test_the_model_is_run_once():
    runs = []
    model = Net(lambda m, x: runs.append(1) or m.a(x), a=lin())
    model.usages()
    assert len(runs) == 1


@pytest.mark.parametrize("grad", [True, False])
def test_gradient_mode_is_the_callers(grad):
    seen = []
    model = Net(lambda m, x: seen.append(torch.is_grad_enabled()) or m.a(x), a=lin())
    with torch.set_grad_enabled(grad):
        model.usages()
    assert seen == [grad]
