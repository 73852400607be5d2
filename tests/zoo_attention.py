"""Attention written by hand, and the ways of placing it in a residual stream."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo_basic import Built, ids, noise


def heads(x: Tensor, count: int) -> Tensor:
    """(batch, time, width) -> (batch, head, time, width of a head)."""
    return x.view(*x.shape[:2], count, -1).transpose(1, 2)


def merged(x: Tensor) -> Tensor:
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1)


class FusedAttention(nn.Module):
    """nanoGPT's: one linear layer for query, key and value, in this order."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)
        self.resid_dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads(part, 4) for part in self.c_attn(x).split(x.shape[2], dim=2))
        p = 0.1 if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
        return self.resid_dropout(self.c_proj(merged(y)))


class MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x)))


class PreNormBlock(nn.Module):
    def __init__(self, width: int, attn: nn.Module) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp = attn, MLP(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class FusedGPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(11, 16), nn.Embedding(8, 16)
        self.h = nn.ModuleList(PreNormBlock(16, FusedAttention(16)) for _ in range(2))
        self.ln_f = nn.LayerNorm(16)
        self.lm_head = nn.Linear(16, 11, bias=False)
        self.wte.weight = self.lm_head.weight

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.wte(tokens) + self.wpe(positions)
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


def fused_gpt() -> Built:
    model = FusedGPT()
    return model, lambda: model(ids(4, 8))


class HandmadeAttention(nn.Module):
    """Softmax written out, with a causal mask and separate layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(width, width), nn.Linear(width, width)
        self.v, self.o = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = heads(self.q(x), 2), heads(self.k(x), 2), heads(self.v(x), 2)
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        hidden = torch.ones(x.shape[1], x.shape[1]).triu(1).bool()
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        return self.o(merged(F.dropout(weights, 0.1, self.training) @ v))


def handmade_attention() -> Built:
    blocks = (PreNormBlock(16, HandmadeAttention(16)) for _ in range(2))
    model = nn.Sequential(nn.Linear(6, 16), *blocks, nn.LayerNorm(16), nn.Linear(16, 3))
    return model, lambda: model(noise(4, 5, 6))


class InterleavedAttention(nn.Module):
    """GPT-NeoX's: query, key and value of each head are neighbours in the fused layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query_key_value = nn.Linear(width, 3 * width)
        self.dense = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.query_key_value(x).view(*x.shape[:2], 2, 3, x.shape[2] // 2)
        q, k, v = qkv.permute(3, 0, 2, 1, 4).unbind(0)
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * q.shape[-1] ** -0.5
        return self.dense(merged(torch.einsum("bhqk,bhkd->bhqd", scores.softmax(dim=-1), v)))


def interleaved_attention() -> Built:
    blocks = (PreNormBlock(16, InterleavedAttention(16)) for _ in range(2))
    model = nn.Sequential(nn.Linear(6, 16), *blocks, nn.LayerNorm(16), nn.Linear(16, 3))
    return model, lambda: model(noise(4, 5, 6))


class GroupedAttention(nn.Module):
    """Four heads of queries share two of keys and values; one fused layer of unequal parts."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        width = x.shape[2]
        q, k, v = self.qkv(x).split([width, width // 2, width // 2], dim=-1)
        q, k, v = heads(q, 4), heads(k, 2), heads(v, 2)
        k, v = k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1)
        return self.out(merged(F.scaled_dot_product_attention(q, k, v, is_causal=True)))


def grouped_attention() -> Built:
    blocks = (PreNormBlock(16, GroupedAttention(16)) for _ in range(2))
    model = nn.Sequential(nn.Linear(6, 16), *blocks, nn.LayerNorm(16), nn.Linear(16, 3))
    return model, lambda: model(noise(4, 5, 6))


class ParallelBlock(nn.Module):
    """Attention and perceptron read the same norm and are added at once."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(width)
        self.attn, self.mlp = HandmadeAttention(width), MLP(width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln(x)
        return x + self.attn(y) + self.mlp(y)


def parallel_block() -> Built:
    blocks = (ParallelBlock(16) for _ in range(2))
    model = nn.Sequential(nn.Linear(6, 16), *blocks, nn.LayerNorm(16), nn.Linear(16, 3))
    return model, lambda: model(noise(4, 5, 6))


class ScaledBlock(nn.Module):
    """CaiT's LayerScale: a vector multiplies each branch before it is added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp = FusedAttention(width), MLP(width)
        self.gamma_1 = nn.Parameter(1e-4 * torch.ones(width))
        self.gamma_2 = nn.Parameter(1e-4 * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gamma_1 * self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x)) * self.gamma_2


def layer_scale() -> Built:
    blocks = (ScaledBlock(16) for _ in range(2))
    model = nn.Sequential(nn.Linear(6, 16), *blocks, nn.LayerNorm(16), nn.Linear(16, 3))
    return model, lambda: model(noise(4, 5, 6))


class ReZero(nn.Module):
    """No norms: one scalar, zero at first, multiplies both branches of a layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, 2, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(width, 32), nn.Linear(32, width)
        self.resweight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.resweight * self.attn(x, x, x, need_weights=True)[0]
        return x + self.resweight * F.dropout(self.linear2(F.relu(self.linear1(x))), 0.1)


def rezero() -> Built:
    model = nn.Sequential(nn.Linear(6, 16), ReZero(16), ReZero(16), nn.Linear(16, 3))
    return model, lambda: model(noise(4, 5, 6))


class SharedBlock(nn.Module):
    """ALBERT's idea: one block, applied three times."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 16), nn.Linear(16, 3)
        self.block = PreNormBlock(16, HandmadeAttention(16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(3):
            x = self.block(x)
        return self.head(x)


def shared_block() -> Built:
    model = SharedBlock()
    return model, lambda: model(noise(4, 5, 6))


class RMSNorm(nn.Module):
    """Llama's norm, or Gemma's, which adds one to a weight that starts at zero."""

    def __init__(self, width: int, gemma: bool) -> None:
        super().__init__()
        self.gemma = gemma
        self.weight = nn.Parameter(torch.zeros(width) if gemma else torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
        return (y * (1.0 + self.weight.float())).type_as(x) if self.gemma else self.weight * y


class NormedNet(nn.Module):
    def __init__(self, gemma: bool) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 16), nn.Linear(16, 3)
        self.norms = nn.ModuleList(RMSNorm(16, gemma) for _ in range(3))
        self.mlps = nn.ModuleList(MLP(16) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, mlp in zip(self.norms, self.mlps, strict=False):
            x = mlp(norm(x)) + x
        return self.head(self.norms[2](x))


def rms_norm() -> Built:
    model = NormedNet(gemma=False)
    return model, lambda: model(noise(8, 6))


def gemma_norm() -> Built:
    model = NormedNet(gemma=True)
    return model, lambda: model(noise(8, 6))
