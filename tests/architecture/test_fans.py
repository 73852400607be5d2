"""Fans against measured variances: weights of variance 1/fan keep the variance of the signal."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_init import analyze
from lightning_init.strategies.parts import split
from tests.zoo import noise

LAYERS = {
    "linear": nn.Linear(24, 40, bias=False),
    "conv": nn.Conv2d(8, 16, 3, bias=False),
    "rectangular kernel": nn.Conv2d(8, 16, (3, 5), bias=False),
    "grouped": nn.Conv2d(8, 16, 3, groups=4, bias=False),
    "depthwise": nn.Conv2d(8, 8, 3, groups=8, bias=False),
    "depthwise, two per channel": nn.Conv2d(8, 16, 3, groups=8, bias=False),
    "strided": nn.Conv2d(8, 16, 4, stride=2, bias=False),
    "strided, uneven": nn.Conv2d(8, 16, 3, stride=2, bias=False),
    "patches": nn.Conv2d(3, 16, 4, stride=4, bias=False),
    "dilated": nn.Conv2d(8, 16, 3, dilation=2, bias=False),
    "circular": nn.Conv2d(8, 16, 3, padding=1, padding_mode="circular", bias=False),
    "conv1d": nn.Conv1d(8, 16, 5, stride=2, bias=False),
    "transposed": nn.ConvTranspose2d(16, 8, 3, bias=False),
    "transposed, strided": nn.ConvTranspose2d(16, 8, 4, stride=2, bias=False),
    "transposed, strided, uneven": nn.ConvTranspose2d(16, 8, 5, stride=2, bias=False),
    "transposed, grouped": nn.ConvTranspose2d(16, 8, 4, stride=2, groups=4, bias=False),
    "transposed 1d": nn.ConvTranspose1d(16, 8, 6, stride=3, bias=False),
}


def inputs(layer: nn.Module) -> torch.Tensor:
    if isinstance(layer, nn.Linear):
        return noise(8000, layer.in_features)
    sides = (96, 96) if len(layer.kernel_size) == 2 else (2400,)
    return noise(16, layer.in_channels, *sides)


def interior(x: torch.Tensor, margin: int = 12) -> torch.Tensor:
    """Away from borders, a whole number of every stride that is used here."""
    for axis in range(2, x.ndim):
        x = x.narrow(axis, margin, (x.shape[axis] - 2 * margin) // 12 * 12)
    return x


def signs_(weight: nn.Parameter, fan: float) -> None:
    """Variance 1/fan without sampling noise: random signs of one magnitude."""
    with torch.no_grad():
        weight.copy_(noise(*weight.shape).sign() / fan**0.5)


@pytest.mark.parametrize("name", LAYERS)
def test_fan_in_keeps_the_forward_variance(name):
    layer = LAYERS[name]
    signs_(layer.weight, analyze(layer)["weight"].fan_in)
    out = layer(inputs(layer)).detach()
    out = interior(out) if hasattr(layer, "stride") and layer.transposed else out
    assert out.numel() >= 1e5
    assert float(out.var()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("name", LAYERS)
def test_fan_out_keeps_the_backward_variance(name):
    layer = LAYERS[name]
    signs_(layer.weight, analyze(layer)["weight"].fan_out)
    x = inputs(layer).requires_grad_()
    out = layer(x)
    out.backward(noise(*out.shape))
    grad = interior(x.grad) if hasattr(layer, "stride") and not layer.transposed else x.grad
    assert grad.numel() >= 1e5
    assert float(grad.var()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("name", ["linear", "conv", "grouped", "depthwise", "transposed, strided"])
def test_normal_weights_too(name):
    """The law as schemes use it, averaged over draws."""
    layer, variances = LAYERS[name], []
    fan_in = analyze(layer)["weight"].fan_in
    for draw in range(60):
        generator = torch.Generator().manual_seed(draw)
        with torch.no_grad():
            layer.weight.normal_(0, fan_in**-0.5, generator=generator)
            variances.append(
                float(interior(layer(inputs(layer)[: 8000 if name == "linear" else 4])).var())
            )
    spread = torch.tensor(variances).std() / len(variances) ** 0.5
    assert sum(variances) / len(variances) == pytest.approx(1, abs=max(4 * float(spread), 0.02))


# Layers that stack several matrices, or use a matrix otherwise than `nn.Linear` does. Each gives the
# model, the name of the tensor, its input, and a run to the results of the single matrices.
class Fused(nn.Module):
    """Query, key and value in one matrix, of unequal size, the rows in the order that is asked."""

    def __init__(self, interleaved):
        super().__init__()
        self.interleaved = interleaved
        self.qkv = nn.Linear(64, 96 if interleaved else 80, bias=False)

    def parts(self, x):
        y = self.qkv(x)
        if not self.interleaved:
            return y.split([32, 16, 32], -1)
        y = y.view(*y.shape[:-1], 4, 3, 8)
        return [part.flatten(-2) for part in y.unbind(-2)]

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (-1, 8)).transpose(1, 2) for part in self.parts(x))
        k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
        return F.scaled_dot_product_attention(q, k, v)


class Bare(nn.Module):
    """One bare tensor, used by the function that is given."""

    def __init__(self, use, *shape):
        super().__init__()
        self.use, self.w = use, nn.Parameter(torch.empty(shape))

    def forward(self, x):
        return self.use(x, self.w)


def conv1d_of_gpt2():
    from transformers.pytorch_utils import Conv1D

    return Conv1D(40, 24)


FUNCTIONS = {
    "x @ w": (lambda: Bare(torch.matmul, 24, 40), "w", (8000, 24)),
    "w @ x": (lambda: Bare(lambda x, w: w @ x, 40, 24), "w", (24, 8000)),
    "x @ w.T": (lambda: Bare(lambda x, w: x @ w.T, 40, 24), "w", (8000, 24)),
    "einsum": (lambda: Bare(lambda x, w: torch.einsum("bi,oi->bo", x, w), 40, 24), "w", (8000, 24)),
    "heads in, by einsum": (
        lambda: Bare(lambda x, w: torch.einsum("bhd,hdo->bo", x, w), 3, 8, 40),
        "w",
        (8000, 3, 8),
    ),
    "addmm": (
        lambda: Bare(lambda x, w: torch.addmm(torch.zeros(40), x, w), 24, 40),
        "w",
        (8000, 24),
    ),
    "tensordot": (lambda: Bare(lambda x, w: torch.tensordot(x, w, 1), 24, 40), "w", (8000, 24)),
    "Conv1D of GPT-2": (conv1d_of_gpt2, "weight", (8000, 24)),
    "functional, grouped": (
        lambda: Bare(lambda x, w: F.conv2d(x, w, groups=4), 16, 2, 3, 3),
        "w",
        (16, 8, 96, 96),
    ),
    "functional, transposed": (
        lambda: Bare(lambda x, w: F.conv_transpose2d(x, w, stride=2), 16, 8, 4, 4),
        "w",
        (16, 16, 96, 96),
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("backward", [False, True])
def test_bare_matrices(name, backward):
    build, tensor, shape = FUNCTIONS[name]
    torch.manual_seed(0)
    model, x = build(), noise(*shape)
    info = analyze(model, lambda: model(x))[tensor]
    assert info.role == "weight"
    signs_(model.get_parameter(tensor), info.fan_out if backward else info.fan_in)
    assert measured(model, x, backward) == pytest.approx(1, abs=0.02)


def measured(model, x, backward):
    """Variance of the result, or of the input's gradient, for noise of variance 1."""
    x = x.requires_grad_(backward)
    out = model(x)
    if backward:
        out.backward(noise(*out.shape))
        out = x.grad
    out = interior(out.detach()) if out.ndim == 4 else out.detach()
    assert out.numel() >= 1e5
    return float(out.var())


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("backward", [False, True])
def test_each_part_of_a_fused_matrix(interleaved, backward):
    model, x = Fused(interleaved), noise(2000, 4, 64)
    info = analyze(model, lambda: model(x))["qkv.weight"]
    sizes = (32, 32, 32) if interleaved else (32, 16, 32)
    assert [part.size for part in info.parts] == list(sizes)
    for number, (part, own) in enumerate(split(info)):
        signs_(model.qkv.weight, own.fan_out if backward else own.fan_in)
        variance = measured(lambda x, n=number: model.parts(x)[n].contiguous(), x.clone(), backward)
        assert variance == pytest.approx(1, abs=0.02), part.name


@pytest.mark.parametrize("layout", ["in, out", "out, in"])
@pytest.mark.parametrize("backward", [False, True])
def test_each_expert(layout, backward):
    equation = "ebi,eio->ebo" if layout == "in, out" else "ebi,eoi->ebo"
    shape = (6, 24, 40) if layout == "in, out" else (6, 40, 24)
    model = Bare(lambda x, w: torch.einsum(equation, x, w), *shape)
    x = noise(6, 2000, 24)
    info = analyze(model, lambda: model(x))["w"]
    assert info.blocks == 6
    signs_(model.w, info.fan_out if backward else info.fan_in)
    assert measured(model, x, backward) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0"])
@pytest.mark.parametrize("backward", [False, True])
def test_each_gate(kind, name, backward):
    """A gate's own matrix, as the kernel's formula multiplies it."""
    layer = kind(24, 40)
    info, weight = analyze(layer)[name], layer.get_parameter(name)
    signs_(weight, info.fan_out if backward else info.fan_in)
    for gate in weight.detach().chunk(info.blocks):
        x = noise(8000, gate.shape[1])
        assert measured(lambda x, w=gate: x @ w.T, x, backward) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("backward", [False, True])
def test_bilinear(backward):
    """Both inputs of variance 1; the gradient is that of the first."""
    layer = nn.Bilinear(24, 20, 40, bias=False)
    info = analyze(layer)["weight"]
    signs_(layer.weight, info.fan_out if backward else info.fan_in)
    other = noise(8000, 24)[:, :20].flip(0)
    assert measured(lambda x: layer(x, other), noise(8000, 24), backward) == pytest.approx(
        1, abs=0.02
    )


@pytest.mark.parametrize("backward", [False, True])
def test_embedding(backward):
    """A row is looked up as it is; the gradient of a one-hot input sums over the width."""
    table = nn.Embedding(2500, 64)
    info = analyze(table)["weight"]
    signs_(table.weight, info.fan_out if backward else info.fan_in)
    if backward:
        variance = measured(lambda x: x @ table.weight, noise(100, 2500), True)
    else:
        variance = float(table(torch.arange(2500)).detach().var())
    assert variance == pytest.approx(1, abs=0.02)
