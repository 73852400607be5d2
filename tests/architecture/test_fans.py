"""Fans against measured variances: weights of variance 1/fan keep the variance of the signal."""

import pytest
import torch
from torch import nn

from lightning_init import analyze
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
