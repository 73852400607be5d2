"""Paths that multiply other paths: gates, routers, pooling by attention, tables of biases."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo_basic import Built, noise


class Highway(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.transform, self.carry = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.carry(x))
        return gate * F.relu(self.transform(x)) + (1 - gate) * x


def highway() -> Built:
    model = nn.Sequential(nn.Linear(6, 16), Highway(16), Highway(16), nn.Linear(16, 3))
    return model, lambda: model(noise(8, 6))


class FeatureGate(nn.Module):
    """Squeeze-excite on features, as the last thing in a branch and after the trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 16), nn.Linear(16, 3)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.squeeze, self.excite = nn.Linear(16, 4), nn.Linear(4, 16)
        self.attend = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.down(F.mish(self.up(x)))
        x = x + y * torch.sigmoid(self.excite(F.relu(self.squeeze(y))))
        y = self.head(F.layer_norm(x, (16,)))
        return y * torch.sigmoid(self.attend(y))


def feature_gate() -> Built:
    model = FeatureGate()
    return model, lambda: model(noise(8, 6))


class AttentionPooling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 16), nn.Linear(16, 3)
        self.hidden, self.score = nn.Linear(16, 8), nn.Linear(8, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.selu(self.stem(x))
        weights = torch.softmax(self.score(torch.tanh(self.hidden(x))), dim=1)
        return self.head((weights * x).sum(dim=1))


def attention_pooling() -> Built:
    model = AttentionPooling()
    return model, lambda: model(noise(4, 5, 6))


class Experts(nn.Module):
    """A loop over experts that a router weighs."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, 3, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 24), nn.GELU(), nn.Linear(24, width)) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        weights = F.softmax(self.router(x), dim=-1)
        out = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            out = out + weights[..., index, None] * expert(x)
        return out


class SparseExperts(nn.Module):
    """Each token visits its two best experts, whose outputs are scattered back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, 3, bias=False)
        self.w1 = nn.ModuleList(nn.Linear(width, 24, bias=False) for _ in range(3))
        self.w3 = nn.ModuleList(nn.Linear(width, 24, bias=False) for _ in range(3))
        self.w2 = nn.ModuleList(nn.Linear(24, width, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.gate(x).softmax(-1).topk(2, dim=-1)
        weights = weights / weights.sum(-1, keepdim=True)
        out = torch.zeros_like(x)
        for index, (w1, w3, w2) in enumerate(zip(self.w1, self.w3, self.w2, strict=True)):
            rows, slots = torch.where(chosen == index)
            y = x[rows]
            y = w2(F.silu(w1(y)) * w3(y)) * weights[rows, slots, None]
            out.index_add_(0, rows, y)
        return out


class StackedExperts(nn.Module):
    """Matrices of all experts in one tensor: by einsum, then by a batched product."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, 3)
        self.w_in = nn.Parameter(0.1 * torch.randn(3, width, 24))
        self.w_out = nn.Parameter(0.1 * torch.randn(3, 24, width))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.router(x).softmax(-1)
        y = F.gelu(torch.einsum("nd,edh->enh", x, self.w_in))
        y = torch.bmm(y, self.w_out)
        return (weights.t()[..., None] * y).sum(0)


class ExpertNet(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 16), nn.Linear(16, 3)
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in layers)
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x))
        return self.head(x)


def experts() -> Built:
    model = ExpertNet(Experts(16), Experts(16))
    return model, lambda: model(noise(8, 6))


def sparse_experts() -> Built:
    model = ExpertNet(SparseExperts(16), SparseExperts(16))
    return model, lambda: model(noise(12, 6))


def stacked_experts() -> Built:
    model = ExpertNet(StackedExperts(16), StackedExperts(16))
    return model, lambda: model(noise(8, 6))


class RelativeBias(nn.Module):
    """T5's: a table of distances, looked up and added to the scores of every head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 16), nn.Linear(16, 3)
        self.norm = nn.LayerNorm(16)
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16, bias=False) for _ in range(4))
        self.distances = nn.Embedding(9, 2)
        self.cls = nn.Parameter(torch.zeros(1, 1, 16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], dim=1)
        time = torch.arange(x.shape[1])
        bias = self.distances(time[:, None] - time[None, :] + 4).permute(2, 0, 1)[None]
        y = self.norm(x)
        q, k, v = (f(y).unflatten(2, (2, 8)).transpose(1, 2) for f in (self.q, self.k, self.v))
        weights = F.softmax(torch.matmul(q, k.mT) * 8**-0.5 + bias, dim=-1)
        context = torch.matmul(weights, v).transpose(1, 2).flatten(2)
        return self.head((self.o(context) + x)[:, 0])


def relative_bias() -> Built:
    model = RelativeBias()
    return model, lambda: model(noise(4, 4, 6))


class NormalizedQueries(nn.Module):
    """Norms on queries and keys, a learned temperature per head (ViT-22B, Swin v2)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 16), nn.Linear(16, 3)
        self.qkv, self.proj = nn.Linear(16, 48, bias=False), nn.Linear(16, 16)
        self.q_norm, self.k_norm = nn.RMSNorm(8), nn.RMSNorm(8)
        self.temperature = nn.Parameter(torch.ones(2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        batch, time, width = x.shape
        qkv = self.qkv(x).reshape(batch, time, 3, 2, 8).permute(2, 0, 3, 1, 4)
        q, k, v = self.q_norm(qkv[0]), self.k_norm(qkv[1]), qkv[2]
        weights = (q @ k.transpose(-2, -1) * self.temperature).softmax(dim=-1)
        x = x + self.proj((weights @ v).transpose(1, 2).reshape(batch, time, width))
        return self.head(x.mean(1))


def normalized_queries() -> Built:
    model = NormalizedQueries()
    return model, lambda: model(noise(4, 5, 6))
