"""Perceptrons and tables, and what every zoo file uses."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

Forward = Callable[[], object]
Built = tuple[nn.Module, Forward]


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def ids(*shape: int, below: int = 10) -> Tensor:
    return torch.randint(0, below, shape, generator=torch.Generator().manual_seed(0))


def relu_mlp() -> Built:
    model = nn.Sequential(
        nn.Linear(12, 32),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Linear(32, 24),
        nn.ReLU(),
        nn.Linear(24, 5),
    )
    return model, lambda: model(noise(16, 12))


def tanh_mlp(depth: int = 12) -> Built:
    layers: list[nn.Module] = []
    for _ in range(depth - 1):
        layers += [nn.Linear(16, 16), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(16, 3))
    return model, lambda: model(noise(16, 16))


def selu_mlp() -> Built:
    model = nn.Sequential(nn.Linear(12, 32), nn.SELU(), nn.AlphaDropout(0.1), nn.Linear(32, 5))
    return model, lambda: model(noise(16, 12))


class PaddedBag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 8, padding_idx=3)
        self.bag = nn.EmbeddingBag(20, 8, padding_idx=0)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.table(x).mean(1) + self.bag(x))


def padded() -> Built:
    model = PaddedBag()
    return model, lambda: model(ids(4, 7))


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(0.1 * torch.randn(16, 8))
        self.shift = nn.Parameter(torch.zeros(16))
        self.second = nn.Parameter(0.1 * torch.randn(3, 16))
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(F.linear(x, self.first, self.shift))
        return F.linear(x, self.second) * self.temperature


def functional() -> Built:
    model = Functional()
    return model, lambda: model(noise(16, 8))


class SwiGLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(12, 32, bias=False), nn.Linear(12, 32, bias=False)
        self.down = nn.Linear(32, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


def swiglu() -> Built:
    model = SwiGLU()
    return model, lambda: model(noise(16, 12))


class FusedSwiGLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_up = nn.Linear(12, 64)
        self.down = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


def swiglu_fused() -> Built:
    model = FusedSwiGLU()
    return model, lambda: model(noise(16, 12))


class GLUNet(nn.Module):
    """Gated by torch's own function, then by a silu and a GELU that are written out."""

    def __init__(self) -> None:
        super().__init__()
        self.gated = nn.Linear(12, 32)
        self.second = nn.Linear(16, 24)
        self.third = nn.Linear(24, 24)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(F.glu(self.gated(x), dim=-1))
        x = self.third(x * torch.sigmoid(x))
        x = 0.5 * x * (1 + torch.tanh(0.7978845608 * (x + 0.044715 * x**3)))
        return self.head(x)


def gated_mlp() -> Built:
    model = GLUNet()
    return model, lambda: model(noise(16, 12))


class ResidualMLP(nn.Module):
    """Residual blocks whose addition is written in four ways; the last one subtracts."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(12, 16)
        self.up = nn.ModuleList(nn.Linear(16, 24) for _ in range(4))
        self.down = nn.ModuleList(nn.Linear(24, 16) for _ in range(4))
        self.head = nn.Linear(16, 5)

    def branch(self, index: int, x: Tensor) -> Tensor:
        return self.down[index](F.elu(self.up[index](x)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.branch(0, x) + x
        x = torch.add(x, self.branch(1, x), alpha=0.5)
        y = self.branch(2, x)
        y += x
        y = y - self.branch(3, y)
        return self.head(y)


def residual_mlp() -> Built:
    model = ResidualMLP()
    return model, lambda: model(noise(16, 12))


class Bare(nn.Module):
    """Bare matrices behind operators, a class token, a table of positions, a temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.w_in = nn.Parameter(0.1 * torch.randn(6, 16))
        self.b_in = nn.Parameter(torch.zeros(16))
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, 16))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 5, 16))
        self.scale = nn.Parameter(torch.ones(16))
        self.shift = nn.Parameter(torch.zeros(16))
        self.mixing = nn.Parameter(0.1 * torch.randn(5, 5))
        self.w_out = nn.Parameter(0.1 * torch.randn(16, 3))
        self.log_temperature = nn.Parameter(torch.zeros(()))
        self.unused = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = x @ self.w_in + self.b_in
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.positions
        x = (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True) * self.scale + self.shift
        x = torch.einsum("btc,ts->bsc", x, self.mixing).tanh()
        return torch.matmul(x[:, 0], self.w_out) / self.log_temperature.exp()


def bare() -> Built:
    model = Bare()
    return model, lambda: model(noise(8, 4, 6))


def weight_normed() -> Built:
    model = nn.Sequential(
        weight_norm(nn.Linear(12, 32)),
        nn.LeakyReLU(0.2),
        weight_norm(nn.Linear(32, 24, bias=False)),
        nn.PReLU(),
        weight_norm(nn.Linear(24, 5)),
    )
    return model, lambda: model(noise(16, 12))


def spectral_normed() -> Built:
    model = nn.Sequential(
        spectral_norm(nn.Conv2d(3, 8, 3, stride=2, padding=1)),
        nn.LeakyReLU(0.2),
        spectral_norm(nn.Conv2d(8, 12, 3, stride=2, padding=1)),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        spectral_norm(nn.Linear(48, 1)),
    )
    return model, lambda: model(noise(4, 3, 8, 8))


class TwoTowers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 8))
        self.text = nn.Sequential(nn.Embedding(10, 16), nn.Linear(16, 24), nn.GELU())
        self.text_out = nn.Linear(24, 8)
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        one = F.normalize(self.image(image), dim=-1)
        two = F.normalize(self.text_out(self.text(text).mean(1)), dim=-1)
        return self.logit_scale.exp() * one @ two.t()


def two_towers() -> Built:
    model = TwoTowers()
    return model, lambda: model(noise(6, 12), ids(6, 4))


class Denoiser(nn.Module):
    """Its result is a loss: what is subtracted there is no skip path."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(12, 8), nn.Linear(8, 12)

    def forward(self, x: Tensor) -> Tensor:
        out = self.decode(F.softplus(self.encode(x)))
        return (out - x).square().mean()


def denoiser() -> Built:
    model = Denoiser()
    return model, lambda: model(noise(16, 12))
