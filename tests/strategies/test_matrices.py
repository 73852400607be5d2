"""Orthogonal and delta-orthogonal matrices: exact, Haar distributed, and what they do to depth."""

import math

import pytest
import torch
from scipy import stats
from torch import nn

from lightning_init import InitSpec, initialize_, make_plan
from lightning_init.strategies.layout import Layout
from lightning_init.strategies.matrices import DeltaOrthogonal, Orthogonal
from lightning_init.strategies.parts import Stacked
from tests.strategies.small_scale import cnn, gradient_ratio, mlp, train
from tests.zoo import ZOO


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def assert_orthonormal(matrix, gain=1.0, tolerance=1e-5):
    values = torch.linalg.svdvals(matrix.detach().double())
    assert values.numel()
    assert float((values - gain).abs().max()) < tolerance * gain


def samples(n, count=4000):
    gen = generator(3)
    return torch.stack([Orthogonal((n, n)).sample((n, n), gen) for _ in range(count)]).double()


@pytest.mark.parametrize("n", [2, 3, 8])
def test_moments_are_those_of_the_haar_measure(n):
    q = samples(n)
    count = len(q)
    second, fourth = 1 / n, 3 / (n * (n + 2))
    assert float(q.mean((0, 1, 2)).abs()) < 5 * second**0.5 / math.sqrt(count)
    # every entry by itself: a wrong sign convention shows on the diagonal
    slack = 5 * math.sqrt((fourth - second**2) / count)
    assert float((q.square().mean(0) - second).abs().max()) < slack
    eighth = 105 / (n * (n + 2) * (n + 4) * (n + 6))
    slack = 5 * math.sqrt((eighth - fourth**2) / count)
    assert float((q**4).mean(0).sub(fourth).abs().max()) < slack
    trace = q.diagonal(dim1=1, dim2=2).sum(1)  # E tr = 0, E tr^2 = 1 for n >= 2
    assert abs(float(trace.mean())) < 5 / math.sqrt(count)
    assert float(trace.square().mean()) == pytest.approx(1, abs=5 * math.sqrt(3 / count))


def test_entries_and_angles_are_distributed_as_scipys():
    n, count = 4, 4000
    ours, theirs = samples(n, count), stats.ortho_group(n, seed=1).rvs(count)
    for at in ((0, 0), (1, 1), (3, 3), (0, 3)):
        assert stats.ks_2samp(ours[:, *at], theirs[:, *at]).pvalue > 1e-4
    angles = [
        torch.linalg.eigvals(torch.as_tensor(q)).angle().flatten().abs() for q in (ours, theirs)
    ]
    assert stats.ks_2samp(*angles).pvalue > 1e-4
    determinants = torch.linalg.det(ours)
    assert abs(float(determinants.mean())) < 5 / math.sqrt(count)  # half of them reflect


def test_without_the_signs_of_r_it_would_show():
    """What the test above is for: LAPACK's Q alone is not Haar distributed."""
    draws = torch.randn(4000, 4, 4, generator=generator(3))
    q = torch.linalg.qr(draws).Q
    theirs = stats.ortho_group(4, seed=1).rvs(4000)
    assert stats.ks_2samp(q[:, 0, 0], theirs[:, 0, 0]).pvalue < 1e-6


@pytest.mark.parametrize("gain", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_gate_head_and_block(gain, dtype):
    model = nn.ModuleDict(
        {
            "lstm": nn.LSTM(6, 8, 2, bidirectional=True),
            "gru": nn.GRU(5, 8),
            "cell": nn.LSTMCell(6, 8),
            "attention": nn.MultiheadAttention(16, 4),
            "grouped": nn.Conv2d(8, 16, 3, groups=4),
            "wide": nn.Linear(8, 24),
        }
    ).to(dtype)
    initialize_(model, InitSpec("orthogonal", {"gain": gain}), seed=0)
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    for name, blocks in (("lstm", 4), ("gru", 3), ("cell", 4)):
        for key, tensor in model[name].named_parameters():
            if "weight" in key:
                assert tensor.dtype is dtype
                for gate in tensor.float().chunk(blocks):
                    assert_orthonormal(gate, gain, tolerance)
    for block in model["attention"].in_proj_weight.float().chunk(3):
        assert_orthonormal(block, gain, tolerance)
        for head in block.chunk(4):  # rows of a square orthogonal matrix are orthonormal
            assert_orthonormal(head, gain, tolerance)
    for group in model["grouped"].weight.float().chunk(4):
        assert_orthonormal(group.flatten(1), gain, tolerance)
    assert_orthonormal(model["wide"].weight.float(), gain, tolerance)


@pytest.mark.parametrize(
    "model", ["nanogpt", "gpt2", "grouped_attention", "stacked_experts", "gru"]
)
def test_what_claims_blocks_has_them(model):
    module, forward = ZOO[model]()
    plan = initialize_(module, "orthogonal", seed=0, forward=forward)
    tensors, seen = dict(module.named_parameters()), 0
    for entry in plan:
        info, drawn = entry.info, tensors[entry.info.name].detach()
        axis, blocks = info.axis, info.blocks
        laws = [(drawn, entry.distribution, blocks)]
        if isinstance(entry.distribution, Stacked):
            parts = [(torch.cat([torch.arange(*r) for r in p.rows]), law)
                     for p, law in entry.distribution.parts]  # fmt: skip
            laws = [(drawn.index_select(axis, rows), law, 1) for rows, law in parts]
        for tensor, law, count in laws:
            if isinstance(law, Orthogonal):
                for block in tensor.chunk(count):
                    block = block.movedim(axis, 0) if block.ndim > 2 or count == 1 else block
                    assert_orthonormal(block.flatten(1))
                    seen += 1
    assert seen >= 6


# (in, out, groups): the kernel of a convolution of d dimensions
SIZES = [(4, 4, 1), (3, 8, 1), (8, 8, 4), (4, 8, 2)]


def circular(kernel, groups, size):
    """All singular values of a circular convolution: of its transfer matrix at each frequency."""
    spatial = tuple(range(2, kernel.ndim))
    spectrum = torch.fft.fftn(kernel.double(), s=[size] * len(spatial), dim=spatial)
    out, inner = kernel.shape[0] // groups, kernel.shape[1]
    blocks = spectrum.reshape(groups, out, inner, -1).movedim(-1, 0)
    return torch.linalg.svdvals(blocks)


@pytest.mark.parametrize("gain", [1.0, 1.3])
@pytest.mark.parametrize("taps", [1, 3, 4])
@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize(("inner", "out", "groups"), SIZES)
def test_a_delta_orthogonal_convolution_is_an_isometry(dim, inner, out, groups, taps, gain):
    layer = [nn.Conv1d, nn.Conv2d, nn.Conv3d][dim - 1](inner, out, taps, groups=groups)
    initialize_(layer, InitSpec("delta_orthogonal", {"gain": gain}), seed=0)
    values = circular(layer.weight.detach(), groups, 6)
    assert values.shape[-1] == inner // groups  # none is missing
    assert float((values - gain).abs().max()) < 1e-5
    assert float(layer.bias.detach().abs().max()) == 0
    centre = (..., *[taps // 2] * dim)
    rest = layer.weight.detach().clone()
    rest[centre] = 0
    assert not rest.any()


def test_fewer_outputs_keep_as_many_directions():
    layer = nn.Conv2d(8, 3, 3)
    plan = initialize_(layer, "delta_orthogonal", seed=0)
    values = circular(layer.weight.detach(), 1, 5)
    assert float((values - 1).abs().max()) < 1e-5
    assert values.shape[-1] == 3
    assert "keeps 3 of 8 directions" in plan["weight"].reason


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolutions_keep_norms_too(groups):
    layer = nn.ConvTranspose2d(4, 8, 3, stride=2, groups=groups, bias=False)
    initialize_(layer, "delta_orthogonal", seed=0)
    x = torch.randn(2, 4, 5, 5, generator=generator())
    with torch.no_grad():
        ratio = float(layer(x).norm() / x.norm())
    assert ratio == pytest.approx(1, abs=1e-5)


def test_a_circular_stack_keeps_norms_where_flattened_matrices_do_not():
    layers = [nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular") for _ in range(30)]
    model = nn.Sequential(*layers)
    initialize_(model, "delta_orthogonal", seed=0)
    x = torch.randn(2, 8, 6, 6, generator=generator())
    with torch.no_grad():
        assert float(model(x).norm() / x.norm()) == pytest.approx(1, abs=1e-4)
    initialize_(model, "orthogonal", seed=0, scope="all")
    values = circular(model[0].weight.detach(), 1, 6)
    assert float(values.max() / values.min()) > 2  # the flattened matrix is no isometry


def test_other_layers_are_orthogonal():
    model = nn.Sequential(nn.Linear(6, 6), nn.Bilinear(2, 3, 4))
    plan = make_plan(model, "delta_orthogonal")
    assert plan["0.weight"] == Orthogonal((6, 6), 1.0)
    assert plan["1.weight"] == Orthogonal((4, 2, 3), 1.0)


@pytest.mark.parametrize(
    "layout",
    [Layout((6, 4, 3, 3), 2, taps=2), Layout((4, 6, 5), taps=1, swapped=True), Layout((4, 3))],
)
def test_std_is_the_root_mean_square(layout):
    law = DeltaOrthogonal(layout, 1.5)
    draw = law.sample(layout.shape, generator())
    assert float(draw.square().mean().sqrt()) == pytest.approx(law.std, rel=1e-5)
    assert law.scaled(2.0).std == pytest.approx(2 * law.std)


def test_bad_input():
    with pytest.raises(ValueError, match="blocks"):
        Layout((5, 4, 3), blocks=2, taps=1)
    with pytest.raises(ValueError, match="dimensions"):
        Layout((5,))
    with pytest.raises(ValueError, match="gain"):
        DeltaOrthogonal(Layout((2, 2)), -1.0)
    with pytest.raises(ValueError, match="shape"):
        DeltaOrthogonal(Layout((2, 2))).sample((3, 3), generator())


def prepared(model, name, params, seed=0):
    initialize_(model, InitSpec(name, params), seed=seed)
    return model


def learns(build, name, params, steps, rates, bar, shape=(64,)):
    """Whether any learning rate brings the accuracy above a bar."""
    return any(train(prepared(build(), name, params), steps, lr, shape) > bar for lr in rates)


@pytest.mark.slow
def test_deep_tanh_nets_train_from_orthogonal_matrices_alone():
    def deep():
        return mlp(50, nn.Tanh)

    ratios = {
        key: gradient_ratio(prepared(mlp(100, nn.Tanh), name, params))
        for key, name, params in (
            ("orthogonal", "orthogonal", {}),
            ("unit variance", "orthogonal", {"activation": "observed"}),
            ("default", "torch_default", {}),
        )
    }
    assert 0.5 < ratios["orthogonal"] < 2
    chi = 1.178**50  # the norm of the gradient grows by sqrt(chi) per layer
    assert chi / 3 < ratios["unit variance"] < 3 * chi
    assert ratios["default"] < 1e-10
    assert learns(deep, "orthogonal", {}, 200, (0.003, 0.03), 0.88)
    assert not learns(deep, "torch_default", {}, 200, (0.03,), 0.3)
    assert not learns(deep, "normal", {"std": 1.0}, 200, (0.003,), 0.3)


@pytest.mark.slow
def test_a_hundred_tanh_layers():
    def deep():
        return mlp(100, nn.Tanh)

    assert learns(deep, "orthogonal", {}, 200, (0.003, 0.03), 0.88)
    assert not learns(deep, "orthogonal", {"activation": "observed"}, 100, (0.003,), 0.4)


@pytest.mark.slow
def test_deep_relu_nets_need_kaiming_or_orthogonal_with_its_gain():
    def deep():
        return mlp(40, nn.ReLU)

    rates = (0.01, 0.003, 0.03)
    assert not learns(deep, "torch_default", {}, 200, rates[:1], 0.3)
    assert not learns(deep, "xavier_normal", {}, 200, rates[:1], 0.3)
    assert learns(deep, "kaiming_normal", {}, 200, rates, 0.4)
    assert learns(deep, "orthogonal", {"gain": 2**0.5}, 200, rates, 0.4)
    assert gradient_ratio(prepared(deep(), "torch_default", {})) < 1e-10
    assert 0.05 < gradient_ratio(prepared(deep(), "kaiming_normal", {})) < 5


@pytest.mark.slow
def test_plain_convolutions():
    shape = (1, 8, 8)

    def wrapped():
        return cnn(24, nn.ReLU, padding_mode="circular")

    assert not learns(lambda: cnn(12, nn.ReLU), "torch_default", {}, 40, (0.03,), 0.3, shape)
    assert learns(wrapped, "kaiming_normal", {}, 120, (0.03, 0.01), 0.85, shape)
    assert learns(wrapped, "delta_orthogonal", {"gain": 2**0.5}, 120, (0.01, 0.03), 0.85, shape)
