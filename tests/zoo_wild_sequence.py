"""Sequences without plain attention: WaveNet, RWKV, Hyena, loops, chosen tokens."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from tests.zoo_basic import ids, noise


class WaveNet(nn.Module):
    """Gated convolutions; a sum of all layers' skips beside the stream."""

    def __init__(self, layers=3):
        super().__init__()
        self.start_conv = nn.Conv1d(4, 8, 1, bias=False)
        self.filter_convs = nn.ModuleList(nn.Conv1d(8, 8, 2, dilation=2**i) for i in range(layers))
        self.gate_convs = nn.ModuleList(nn.Conv1d(8, 8, 2, dilation=2**i) for i in range(layers))
        self.residual_convs = nn.ModuleList(nn.Conv1d(8, 8, 1) for _ in range(layers))
        self.skip_convs = nn.ModuleList(nn.Conv1d(8, 12, 1) for _ in range(layers))
        self.end_conv_1, self.end_conv_2 = nn.Conv1d(12, 16, 1), nn.Conv1d(16, 4, 1)

    def forward(self, x):
        x = self.start_conv(x)
        skip = None
        layers = (self.filter_convs, self.gate_convs, self.residual_convs, self.skip_convs)
        for f, g, r, s_ in zip(*layers, strict=True):
            residual = x
            x = torch.tanh(f(residual)) * torch.sigmoid(g(residual))
            s = s_(x)
            skip = s if skip is None else s + skip[:, :, -s.size(2) :]
            x = r(x)
            x = x + residual[:, :, -x.size(2) :]
        x = F.relu(skip)
        return self.end_conv_2(F.relu(self.end_conv_1(x)))


def wavenet():
    m = WaveNet()
    return m, lambda: m(noise(2, 4, 20))


class TimeMix(nn.Module):
    """RWKV-4's attention, as a scan; mixes each token with the one before."""

    def __init__(self, d):
        super().__init__()
        self.time_decay, self.time_first = (
            nn.Parameter(torch.linspace(-5, 3, d)),
            nn.Parameter(torch.ones(d) * math.log(0.3)),
        )
        self.time_mix_k, self.time_mix_v, self.time_mix_r = (
            nn.Parameter(torch.rand(1, 1, d)) for _ in range(3)
        )
        self.time_shift = nn.ZeroPad2d((0, 0, 1, -1))
        self.key, self.value, self.receptance, self.output = (
            nn.Linear(d, d, bias=False) for _ in range(4)
        )

    def forward(self, x):
        xx = self.time_shift(x)
        xk = x * self.time_mix_k + xx * (1 - self.time_mix_k)
        xv = x * self.time_mix_v + xx * (1 - self.time_mix_v)
        xr = x * self.time_mix_r + xx * (1 - self.time_mix_r)
        k, v, sr = self.key(xk), self.value(xv), torch.sigmoid(self.receptance(xr))
        w = -torch.exp(self.time_decay)
        num = torch.zeros_like(v[:, 0])
        den = torch.zeros_like(num)
        out = []
        for t in range(x.shape[1]):
            e = torch.exp(self.time_first + k[:, t])
            out.append((num + e * v[:, t]) / (den + e))
            num = torch.exp(w) * num + torch.exp(k[:, t]) * v[:, t]
            den = torch.exp(w) * den + torch.exp(k[:, t])
        return self.output(sr * torch.stack(out, 1))


class ChannelMix(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.time_mix_k, self.time_mix_r = (
            nn.Parameter(torch.rand(1, 1, d)),
            nn.Parameter(torch.rand(1, 1, d)),
        )
        self.time_shift = nn.ZeroPad2d((0, 0, 1, -1))
        self.key, self.receptance, self.value = (
            nn.Linear(d, 4 * d, bias=False),
            nn.Linear(d, d, bias=False),
            nn.Linear(4 * d, d, bias=False),
        )

    def forward(self, x):
        xx = self.time_shift(x)
        xk = x * self.time_mix_k + xx * (1 - self.time_mix_k)
        xr = x * self.time_mix_r + xx * (1 - self.time_mix_r)
        k = torch.square(torch.relu(self.key(xk)))
        return torch.sigmoid(self.receptance(xr)) * self.value(k)


class RWKVBlock(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.ln1, self.ln2, self.att, self.ffn = (
            nn.LayerNorm(d),
            nn.LayerNorm(d),
            TimeMix(d),
            ChannelMix(d),
        )

    def forward(self, x):
        x = x + self.att(self.ln1(x))
        return x + self.ffn(self.ln2(x))


class RWKV(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(11, 16)
        self.ln0 = nn.LayerNorm(16)
        self.blocks = nn.ModuleList(RWKVBlock(16) for _ in range(2))
        self.ln_out = nn.LayerNorm(16)
        self.head = nn.Linear(16, 11, bias=False)

    def forward(self, i):
        x = self.ln0(self.emb(i))
        for b in self.blocks:
            x = b(x)
        return self.head(self.ln_out(x))


def rwkv():
    m = RWKV()
    return m, lambda: m(ids(2, 5))


class HyenaOp(nn.Module):
    """A long convolution whose kernel is made by a perceptron of the time."""

    def __init__(self, d, L):
        super().__init__()
        self.in_proj, self.out_proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.short_filter = nn.Conv1d(3 * d, 3 * d, 3, padding=2, groups=3 * d)
        self.filter = nn.Sequential(nn.Linear(5, 16), nn.SiLU(), nn.Linear(16, d, bias=False))
        self.register_buffer("pos", torch.randn(L, 5))
        self.bias = nn.Parameter(torch.randn(d))

    def forward(self, u):
        time = u.size(1)
        uc = self.short_filter(self.in_proj(u).transpose(1, 2))[..., :time]
        x0, x1, v = uc.split(u.shape[2], dim=1)
        v = v * x1
        k = self.filter(self.pos[:time]).transpose(0, 1)
        product = torch.fft.rfft(v, n=2 * time) * torch.fft.rfft(k, n=2 * time)
        y = torch.fft.irfft(product, n=2 * time)[..., :time] + v * self.bias.unsqueeze(-1)
        return self.out_proj((y * x0).transpose(1, 2))


class HyenaNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(11, 8)
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(2))
        self.ops = nn.ModuleList(HyenaOp(8, 10) for _ in range(2))
        self.head = nn.Linear(8, 11)

    def forward(self, t):
        x = self.emb(t)
        for n, o in zip(self.norms, self.ops, strict=True):
            x = x + o(n(x))
        return self.head(x)


def hyena():
    m = HyenaNet()
    return m, lambda: m(ids(2, 7))


class HandLSTM(nn.Module):
    """Its gates are slices of one sum."""

    def __init__(self, i, h):
        super().__init__()
        self.h = h
        self.W_ih, self.W_hh, self.bias = (
            nn.Parameter(torch.randn(i, 4 * h) * 0.1),
            nn.Parameter(torch.randn(h, 4 * h) * 0.1),
            nn.Parameter(torch.zeros(4 * h)),
        )
        self.out = nn.Linear(h, 3)

    def forward(self, x):
        h = c = torch.zeros(x.size(0), self.h)
        H = self.h
        for t in range(x.size(1)):
            gates = x[:, t] @ self.W_ih + h @ self.W_hh + self.bias
            i, f, g, o = (
                torch.sigmoid(gates[:, :H]),
                torch.sigmoid(gates[:, H : 2 * H]),
                torch.tanh(gates[:, 2 * H : 3 * H]),
                torch.sigmoid(gates[:, 3 * H :]),
            )
            c = f * c + i * g
            h = o * torch.tanh(c)
        return self.out(h)


def hand_lstm():
    m = HandLSTM(4, 8)
    return m, lambda: m(noise(3, 5, 4))


class Bahdanau(nn.Module):
    """Additive attention of a decoder's state."""

    def __init__(self, h):
        super().__init__()
        self.Wa, self.Ua, self.Va = nn.Linear(h, h), nn.Linear(h, h), nn.Linear(h, 1)

    def forward(self, q, k):
        s = self.Va(torch.tanh(self.Wa(q) + self.Ua(k)))
        w = F.softmax(s.squeeze(2).unsqueeze(1), dim=-1)
        return torch.bmm(w, k)


class Seq2Seq(nn.Module):
    def __init__(self, h=8):
        super().__init__()
        self.emb_s, self.emb_t = nn.Embedding(10, h), nn.Embedding(10, h)
        self.enc, self.dec = nn.GRU(h, h, batch_first=True), nn.GRU(2 * h, h, batch_first=True)
        self.attention = Bahdanau(h)
        self.out = nn.Linear(h, 10)

    def forward(self, s, t):
        e, h = self.enc(self.emb_s(s))
        outs = []
        for i in range(t.size(1)):
            ctx = self.attention(h.permute(1, 0, 2), e)
            o, h = self.dec(torch.cat((self.emb_t(t[:, i : i + 1]), ctx), dim=2), h)
            outs.append(self.out(o))
        return F.log_softmax(torch.cat(outs, 1), -1)


def bahdanau():
    m = Seq2Seq()
    return m, lambda: m(ids(2, 5), ids(2, 4))


class MoD(nn.Module):
    """Only some tokens pass: gathered, and scattered back onto the stream."""

    def __init__(self, d=16):
        super().__init__()
        self.router = nn.Linear(d, 1, bias=False)
        self.norm, self.up, self.down = nn.LayerNorm(d), nn.Linear(d, 32), nn.Linear(32, d)

    def forward(self, x):
        w = self.router(x).squeeze(-1)
        top, idx = torch.topk(w, 3, dim=-1)
        idx, o = torch.sort(idx, dim=1)
        top = torch.gather(top, 1, o)
        ex = idx.unsqueeze(-1).expand(-1, -1, x.size(-1))
        sel = torch.gather(x, 1, ex)
        y = self.down(F.gelu(self.up(self.norm(sel)))) * torch.sigmoid(top).unsqueeze(-1)
        return torch.scatter_add(x, 1, ex, y)


def mixture_of_depths():
    m = nn.Sequential(nn.Linear(5, 16), MoD(), MoD(), nn.Linear(16, 3))
    return m, lambda: m(noise(2, 7, 5))
