"""Unusual calls, a Conformer, a graph network and a net for tables."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from tests.zoo_basic import noise

EDGE = torch.tensor([[0, 1, 2, 3, 4, 0, 2], [1, 2, 3, 4, 0, 2, 0]])


def sparsemax(z):
    s, _ = torch.sort(z, dim=-1, descending=True)
    c = s.cumsum(-1)
    k = ((1 + torch.arange(1, z.size(-1) + 1, dtype=z.dtype) * s) > c).sum(-1, keepdim=True)
    tau = (c.gather(-1, k - 1) - 1) / k.to(z.dtype)
    return torch.clamp(z - tau, min=0)


class GATConv(nn.Module):
    """Attention over edges: products by sums, a softmax by scattered sums."""

    def __init__(self, i, o, heads):
        super().__init__()
        self.h, self.o = heads, o
        self.lin = nn.Linear(i, heads * o, bias=False)
        self.att_src, self.att_dst = (
            nn.Parameter(torch.randn(1, heads, o)),
            nn.Parameter(torch.randn(1, heads, o)),
        )
        self.bias = nn.Parameter(torch.zeros(heads * o))

    def forward(self, x, ei):
        row, col = ei
        x = self.lin(x).view(-1, self.h, self.o)
        alpha = (x * self.att_src).sum(-1)[row] + (x * self.att_dst).sum(-1)[col]
        alpha = F.leaky_relu(alpha, 0.2)
        e = (alpha - alpha.max()).exp()
        z = torch.zeros(x.size(0), self.h).index_add_(0, col, e)
        alpha = e / (z[col] + 1e-16)
        out = torch.zeros_like(x).index_add_(0, col, x[row] * alpha.unsqueeze(-1))
        return out.view(-1, self.h * self.o) + self.bias


class GAT(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = GATConv(6, 8, 4), GATConv(32, 3, 1)

    def forward(self, x, ei):
        return self.conv2(F.elu(self.conv1(x, ei)), ei)


def gat():
    m = GAT()
    return m, lambda: m(noise(5, 6), EDGE)


class GLULayer(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.fc, self.bn, self.o = nn.Linear(i, 2 * o, bias=False), nn.BatchNorm1d(2 * o), o

    def forward(self, x):
        x = self.bn(self.fc(x))
        return x[:, : self.o] * torch.sigmoid(x[:, self.o :])


class TabNet(nn.Module):
    """Masks by sparsemax; slices gate each other."""

    def __init__(self):
        super().__init__()
        self.initial_bn = nn.BatchNorm1d(6)
        self.shared = GLULayer(6, 16)
        self.specific = nn.ModuleList(GLULayer(16, 16) for _ in range(3))
        self.att = nn.ModuleList(nn.Linear(8, 6, bias=False) for _ in range(2))
        self.att_bn = nn.ModuleList(nn.BatchNorm1d(6) for _ in range(2))
        self.final = nn.Linear(8, 2, bias=False)

    def feat(self, x, i):
        x = self.shared(x)
        return (x + self.specific[i](x)) * math.sqrt(0.5)

    def forward(self, x):
        x = self.initial_bn(x)
        prior = torch.ones_like(x)
        att = self.feat(x, 0)[:, 8:]
        out = 0
        for i in range(2):
            M = sparsemax(self.att_bn[i](self.att[i](att)) * prior)
            prior = (1.3 - M) * prior
            y = self.feat(M * x, i + 1)
            out = out + F.relu(y[:, :8])
            att = y[:, 8:]
        return self.final(out)


def tabnet():
    m = TabNet()
    return m, lambda: m(noise(8, 6))


class Ensemble(nn.Module):
    """Three networks at once."""

    def __init__(self):
        super().__init__()
        self.w1, self.b1, self.w2 = (
            nn.Parameter(torch.randn(3, 4, 8) * 0.3),
            nn.Parameter(torch.zeros(3, 8)),
            nn.Parameter(torch.randn(3, 8, 2) * 0.3),
        )

    def forward(self, x):
        def one(w1, b1, w2):
            return torch.relu(x @ w1 + b1) @ w2

        return torch.vmap(one)(self.w1, self.b1, self.w2).mean(0)


def vmap_ensemble():
    m = Ensemble()
    return m, lambda: m(noise(5, 4))


class InPlace(nn.Module):
    """A branch for all tokens but the first."""

    def __init__(self):
        super().__init__()
        self.stem, self.mix, self.up, self.down, self.head = (
            nn.Linear(4, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 16),
            nn.Linear(16, 8),
            nn.Linear(8, 2),
        )

    def forward(self, x):
        x = self.stem(x)
        y = self.mix(x[:, 1:])
        x = x.clone()
        x[:, 1:] += y
        x = x.add_(self.down(F.gelu(self.up(x))))
        return self.head(x)


def in_place():
    m = InPlace()
    return m, lambda: m(noise(3, 5, 4))


class OutArg(nn.Module):
    """A sum that is written into a buffer."""

    def __init__(self):
        super().__init__()
        self.stem, self.up, self.down, self.head = (
            nn.Linear(4, 8),
            nn.Linear(8, 16),
            nn.Linear(16, 8),
            nn.Linear(8, 2),
        )

    def forward(self, x):
        x = self.stem(x)
        y = self.down(torch.relu(self.up(x)))
        buf = torch.empty_like(x)
        torch.add(x, y, out=buf)
        return self.head(buf)


def out_argument():
    m = OutArg()

    def f():
        with torch.no_grad():
            return m(noise(3, 4))

    return m, f


class PreNorm(nn.Module):
    def __init__(self, dim, fn):
        super().__init__()
        self.fn, self.norm = fn, nn.LayerNorm(dim)

    def forward(self, x):
        return self.fn(self.norm(x))


class Swish(nn.Module):
    def forward(self, x):
        return x * x.sigmoid()


class Transpose(nn.Module):
    def forward(self, x):
        return x.transpose(1, 2)


class HalfStep(nn.Module):
    """Half of a perceptron is added."""

    def __init__(self, dim):
        super().__init__()
        layers = (nn.Linear(dim, 4 * dim), Swish(), nn.Dropout(0.1), nn.Linear(4 * dim, dim))
        self.fn = PreNorm(dim, nn.Sequential(*layers, nn.Dropout(0.1)))

    def forward(self, x):
        return self.fn(x) * 0.5


class GLU(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.dim = dim

    def forward(self, x):
        out, gate = x.chunk(2, dim=self.dim)
        return out * gate.sigmoid()


class ShawAttention(nn.Module):
    """Relative positions are keys of their own, by distance."""

    def __init__(self, dim, heads=2, dim_head=8, max_pos=6):
        super().__init__()
        inner = heads * dim_head
        self.heads, self.scale, self.max_pos = heads, dim_head**-0.5, max_pos
        self.to_q, self.to_kv, self.to_out = (
            nn.Linear(dim, inner, bias=False),
            nn.Linear(dim, inner * 2, bias=False),
            nn.Linear(inner, dim),
        )
        self.rel_pos_emb = nn.Embedding(2 * max_pos + 1, dim_head)

    def forward(self, x):
        n, h = x.shape[-2], self.heads
        q, k, v = (self.to_q(x), *self.to_kv(x).chunk(2, dim=-1))
        q, k, v = (t.reshape(*t.shape[:2], h, -1).transpose(1, 2) for t in (q, k, v))
        dots = torch.einsum("b h i d, b h j d -> b h i j", q, k) * self.scale
        seq = torch.arange(n)
        dist = (seq[:, None] - seq[None, :]).clamp(-self.max_pos, self.max_pos) + self.max_pos
        rel = self.rel_pos_emb(dist).to(q)
        dots = dots + torch.einsum("b h n d, n r d -> b h n r", q, rel) * self.scale
        out = torch.einsum("b h i j, b h j d -> b h i d", dots.softmax(dim=-1), v)
        return self.to_out(out.transpose(1, 2).reshape(x.shape[0], n, -1))


class ConformerBlock(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.ff1, self.ff2 = HalfStep(dim), HalfStep(dim)
        self.attn = PreNorm(dim, ShawAttention(dim))
        self.conv = nn.Sequential(
            nn.LayerNorm(dim),
            Transpose(),
            nn.Conv1d(dim, 4 * dim, 1),
            GLU(1),
            nn.Conv1d(2 * dim, 2 * dim, 3, padding=1, groups=2 * dim),
            nn.BatchNorm1d(2 * dim),
            Swish(),
            nn.Conv1d(2 * dim, dim, 1),
            Transpose(),
            nn.Dropout(0.0),
        )
        self.post_norm = nn.LayerNorm(dim)

    def forward(self, x):
        x = self.ff1(x) + x
        x = self.attn(x) + x
        x = self.conv(x) + x
        x = self.ff2(x) + x
        return self.post_norm(x)


def conformer():
    m = nn.Sequential(nn.Linear(5, 16), ConformerBlock(16), ConformerBlock(16), nn.Linear(16, 4))
    return m, lambda: m(noise(2, 8, 5))
