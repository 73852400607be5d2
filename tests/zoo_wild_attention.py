"""Attention as it is found in the field: Perceiver, Transformer-XL, Llama, DeepSeek."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from tests.zoo_basic import ids, noise


class PreNorm(nn.Module):
    def __init__(self, dim, fn, context_dim=None):
        super().__init__()
        self.fn = fn
        self.norm = nn.LayerNorm(dim)
        self.norm_context = nn.LayerNorm(context_dim) if context_dim else None

    def forward(self, x, **kw):
        x = self.norm(x)
        if self.norm_context is not None:
            kw.update(context=self.norm_context(kw["context"]))
        return self.fn(x, **kw)


class GEGLU(nn.Module):
    def forward(self, x):
        x, gates = x.chunk(2, dim=-1)
        return x * F.gelu(gates)


class PFF(nn.Module):
    def __init__(self, dim, mult=4):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(dim, dim * mult * 2), GEGLU(), nn.Linear(dim * mult, dim), nn.Dropout(0.0)
        )

    def forward(self, x):
        return self.net(x)


class PAttention(nn.Module):
    """Learned latents ask the data, then themselves."""

    def __init__(self, query_dim, context_dim=None, heads=2, dim_head=8):
        super().__init__()
        inner = dim_head * heads
        self.scale, self.heads = dim_head**-0.5, heads
        self.to_q = nn.Linear(query_dim, inner, bias=False)
        self.to_kv = nn.Linear(context_dim or query_dim, inner * 2, bias=False)
        self.to_out = nn.Linear(inner, query_dim)

    def forward(self, x, context=None):
        h = self.heads
        q = self.to_q(x)
        k, v = self.to_kv(x if context is None else context).chunk(2, dim=-1)
        q, k, v = (
            t.reshape(t.shape[0], t.shape[1], h, -1).transpose(1, 2).flatten(0, 1)
            for t in (q, k, v)
        )
        sim = torch.einsum("b i d, b j d -> b i j", q, k) * self.scale
        attn = sim.softmax(dim=-1)
        out = torch.einsum("b i j, b j d -> b i d", attn, v)
        out = out.unflatten(0, (-1, h)).transpose(1, 2).flatten(2)
        return self.to_out(out)


class Perceiver(nn.Module):
    def __init__(self):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(4, 16))
        self.layers = nn.ModuleList(self.layer() for _ in range(2))
        self.to_logits = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 3))

    @staticmethod
    def layer():
        cross = PAttention(16, 6, heads=1, dim_head=8)
        return nn.ModuleList(
            [
                PreNorm(16, cross, context_dim=6),
                PreNorm(16, PFF(16)),
                PreNorm(16, PAttention(16)),
                PreNorm(16, PFF(16)),
            ]
        )

    def forward(self, data):
        b = data.shape[0]
        x = self.latents.unsqueeze(0).expand(b, -1, -1)
        for ca, cff, sa, sff in self.layers:
            x = ca(x, context=data) + x
            x = cff(x) + x
            x = sa(x) + x
            x = sff(x) + x
        return self.to_logits(x.mean(1))


def perceiver():
    m = Perceiver()
    return m, lambda: m(noise(2, 7, 6))


class RelAttn(nn.Module):
    """Transformer-XL's: biases on the queries, a relative shift."""

    def __init__(self, d=16, n=2):
        super().__init__()
        self.n, self.dh = n, d // n
        self.qkv_net, self.r_net, self.o_net, self.layer_norm = (
            nn.Linear(d, 3 * d, bias=False),
            nn.Linear(d, d, bias=False),
            nn.Linear(d, d, bias=False),
            nn.LayerNorm(d),
        )

    def _rel_shift(self, x):
        z = torch.cat([torch.zeros((x.size(0), 1, *x.size()[2:])), x], dim=1)
        return z.view(x.size(1) + 1, x.size(0), *x.size()[2:])[1:].view_as(x)

    def forward(self, w, r, u, v):
        T, B, _ = w.shape
        q, k, val = torch.chunk(self.qkv_net(w), 3, dim=-1)
        q, k, val = (t.view(T, B, self.n, self.dh) for t in (q, k, val))
        rk = self.r_net(r).view(T, self.n, self.dh)
        AC = torch.einsum("ibnd,jbnd->ijbn", (q + u, k))
        BD = self._rel_shift(torch.einsum("ibnd,jnd->ijbn", (q + v, rk)))
        p = F.softmax((AC + BD).mul_(self.dh**-0.5), dim=1)
        a = torch.einsum("ijbn,jbnd->ibnd", (p, val)).contiguous().view(T, B, -1)
        return self.layer_norm(w + self.o_net(a))


class TXL(nn.Module):
    def __init__(self, d=16):
        super().__init__()
        self.emb = nn.Embedding(11, d)
        self.r_w_bias, self.r_r_bias = (
            nn.Parameter(torch.randn(2, 8) * 0.02),
            nn.Parameter(torch.randn(2, 8) * 0.02),
        )
        self.layers = nn.ModuleList(RelAttn(d) for _ in range(2))
        self.ff = nn.ModuleList(
            nn.Sequential(
                nn.Linear(d, 32), nn.ReLU(inplace=True), nn.Dropout(0.1), nn.Linear(32, d)
            )
            for _ in range(2)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(2))
        self.head = nn.Linear(d, 11)

    def forward(self, t):
        w = self.emb(t.t())
        pos = torch.arange(w.size(0) - 1, -1, -1.0)
        inv = 1 / (10000 ** (torch.arange(0.0, 16, 2.0) / 16))
        s = torch.outer(pos, inv)
        r = torch.cat([s.sin(), s.cos()], -1)
        for layer, f, n in zip(self.layers, self.ff, self.norms, strict=True):
            w = layer(w, r, self.r_w_bias, self.r_r_bias)
            w = n(w + f(w))
        return self.head(w)


def transformer_xl():
    m = TXL()
    return m, lambda: m(ids(2, 6))


class LlamaOrig(nn.Module):
    """Rotary embedding by complex numbers, as the first Llama's."""

    def __init__(self, d=16, h=4, kv=2):
        super().__init__()
        self.h, self.kv, self.dh = h, kv, d // h
        self.wq, self.wk, self.wv, self.wo = (
            nn.Linear(d, d, bias=False),
            nn.Linear(d, d // 2, bias=False),
            nn.Linear(d, d // 2, bias=False),
            nn.Linear(d, d, bias=False),
        )
        self.attention_norm = nn.RMSNorm(d)
        f = 1.0 / (10000 ** (torch.arange(0, self.dh, 2)[: self.dh // 2].float() / self.dh))
        self.freqs = torch.polar(
            torch.ones(8, self.dh // 2), torch.outer(torch.arange(8).float(), f)
        )

    def rep(self, z):
        b, t, kv, width = z.shape
        return (
            z[:, :, :, None, :].expand(b, t, kv, self.h // kv, width).reshape(b, t, self.h, width)
        )

    def rot(self, x):
        xc = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
        return (
            torch.view_as_real(xc * self.freqs[: x.shape[1]].view(1, x.shape[1], 1, -1))
            .flatten(3)
            .type_as(x)
        )

    def forward(self, x):
        b, t, _ = x.shape
        y = self.attention_norm(x)
        q, k, v = (
            self.wq(y).view(b, t, self.h, -1),
            self.wk(y).view(b, t, self.kv, -1),
            self.wv(y).view(b, t, self.kv, -1),
        )
        q, k = self.rot(q), self.rot(k)
        q, k, v = q.transpose(1, 2), self.rep(k).transpose(1, 2), self.rep(v).transpose(1, 2)
        s = torch.matmul(q, k.transpose(2, 3)) / math.sqrt(self.dh) + torch.full(
            (t, t), float("-inf")
        ).triu(1)
        o = (
            torch.matmul(F.softmax(s.float(), dim=-1).type_as(q), v)
            .transpose(1, 2)
            .contiguous()
            .view(b, t, -1)
        )
        return x + self.wo(o)


def llama_complex():
    m = nn.Sequential(nn.Linear(5, 16), LlamaOrig(), nn.Linear(16, 3))
    return m, lambda: m(noise(2, 6, 5))


class MLA(nn.Module):
    """DeepSeek's: low-rank keys and values, one rotary key for all heads."""

    def __init__(self, d=8, h=2, nope=4, rope=2, vd=4, qr=8, kr=6):
        super().__init__()
        self.h, self.nope, self.rope, self.vd, self.kr = h, nope, rope, vd, kr
        self.wq_a, self.q_norm, self.wq_b = (
            nn.Linear(d, qr, bias=False),
            nn.RMSNorm(qr),
            nn.Linear(qr, h * (nope + rope), bias=False),
        )
        self.wkv_a, self.kv_norm, self.wkv_b, self.wo = (
            nn.Linear(d, kr + rope, bias=False),
            nn.RMSNorm(kr),
            nn.Linear(kr, h * (nope + vd), bias=False),
            nn.Linear(h * vd, d, bias=False),
        )
        self.norm = nn.RMSNorm(d)
        self.freqs = torch.polar(
            torch.ones(8, rope // 2), torch.outer(torch.arange(8).float(), torch.ones(rope // 2))
        )

    def rot(self, x):
        xc = torch.view_as_complex(x.float().view(*x.shape[:-1], -1, 2))
        return (
            torch.view_as_real(xc * self.freqs[: x.size(1)].view(1, x.size(1), 1, -1))
            .flatten(3)
            .to(x.dtype)
        )

    def forward(self, x):
        b, s, _ = x.shape
        y = self.norm(x)
        q = self.wq_b(self.q_norm(self.wq_a(y))).view(b, s, self.h, -1)
        qn, qp = torch.split(q, [self.nope, self.rope], dim=-1)
        qp = self.rot(qp)
        kv, kp = torch.split(self.wkv_a(y), [self.kr, self.rope], dim=-1)
        kp = self.rot(kp.unsqueeze(2))
        q = torch.cat([qn, qp], dim=-1)
        kv = self.wkv_b(self.kv_norm(kv)).view(b, s, self.h, -1)
        kn, v = torch.split(kv, [self.nope, self.vd], dim=-1)
        k = torch.cat([kn, kp.expand(-1, -1, self.h, -1)], dim=-1)
        sc = torch.einsum("bshd,bthd->bsht", q, k) * 0.4
        o = torch.einsum("bsht,bthd->bshd", sc.softmax(dim=-1), v)
        return x + self.wo(o.flatten(2))


def mla():
    m = nn.Sequential(nn.Linear(5, 8), MLA(), nn.Linear(8, 3))
    return m, lambda: m(noise(2, 6, 5))


class EinsumBlock(nn.Module):
    """Projections of shape (head, in, out)."""

    def __init__(self, d=16, h=2, k=8):
        super().__init__()
        self.ln = nn.LayerNorm(d)
        self.wq, self.wk, self.wv = (nn.Parameter(torch.randn(h, d, k) * 0.2) for _ in range(3))
        self.wo = nn.Parameter(torch.randn(h, k, d) * 0.2)
        self.bq = nn.Parameter(torch.zeros(h, k))

    def forward(self, x):
        y = self.ln(x)
        q, k, v = (torch.einsum("btd,hdk->bthk", y, w) for w in (self.wq, self.wk, self.wv))
        q = q + self.bq
        a = torch.einsum("bqhk,bthk->bhqt", q * 8**-0.5, k).softmax(-1)
        o = torch.einsum("bhqt,bthk->bqhk", a, v)
        return x + torch.einsum("bqhk,hkd->bqd", o, self.wo)


def einsum_heads():
    m = nn.Sequential(nn.Linear(5, 16), EinsumBlock(), nn.Linear(16, 3))
    return m, lambda: m(noise(2, 6, 5))
