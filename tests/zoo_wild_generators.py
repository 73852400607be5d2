"""Image generators: a diffusion U-Net, StyleGAN 2, DiT; and kernels that a router mixes."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from tests.zoo_basic import ids, noise


class WSBlock(nn.Module):
    """Scaled and shifted by the time, between norm and activation."""

    def __init__(self, i, o):
        super().__init__()
        self.proj, self.norm = nn.Conv2d(i, o, 3, padding=1), nn.GroupNorm(4, o)

    def forward(self, x, ss=None):
        x = self.norm(self.proj(x))
        if ss is not None:
            scale, shift = ss
            x = x * (scale + 1) + shift
        return F.silu(x)


class UResnet(nn.Module):
    def __init__(self, i, o, t):
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(t, o * 2))
        self.block1, self.block2 = WSBlock(i, o), WSBlock(o, o)
        self.res_conv = nn.Conv2d(i, o, 1) if i != o else nn.Identity()

    def forward(self, x, t):
        t = self.mlp(t)[:, :, None, None]
        h = self.block2(self.block1(x, t.chunk(2, dim=1)))
        return h + self.res_conv(x)


class UAttn(nn.Module):
    """Convolutions make query, key and value."""

    def __init__(self, dim, heads=2, dh=4):
        super().__init__()
        self.h, self.scale = heads, dh**-0.5
        self.norm = nn.GroupNorm(1, dim)
        self.to_qkv, self.to_out = (
            nn.Conv2d(dim, heads * dh * 3, 1, bias=False),
            nn.Conv2d(heads * dh, dim, 1),
        )

    def forward(self, x):
        b, _, h, w = x.shape
        q, k, v = (
            t.reshape(b, self.h, -1, h * w) for t in self.to_qkv(self.norm(x)).chunk(3, dim=1)
        )
        sim = torch.einsum("b h d i, b h d j -> b h i j", q * self.scale, k)
        sim = sim - sim.amax(dim=-1, keepdim=True).detach()
        out = torch.einsum("b h i j, b h d j -> b h i d", sim.softmax(dim=-1), v)
        return self.to_out(out.transpose(2, 3).reshape(b, -1, h, w)) + x


class DUNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.init_conv = nn.Conv2d(3, 8, 3, padding=1)
        self.time_mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 16))
        self.d1, self.down, self.m1, self.attn, self.m2 = (
            UResnet(8, 8, 16),
            nn.Conv2d(8, 16, 4, 2, 1),
            UResnet(16, 16, 16),
            UAttn(16),
            UResnet(16, 16, 16),
        )
        self.up = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(16, 8, 3, padding=1)
        )
        self.u1 = UResnet(16, 8, 16)
        self.final = nn.Conv2d(8, 3, 1)

    def forward(self, x, time):
        f = torch.exp(torch.arange(4) * -(math.log(10000) / 3))
        e = time[:, None] * f[None]
        t = self.time_mlp(torch.cat((e.sin(), e.cos()), -1))
        x = self.init_conv(x)
        x = self.d1(x, t)
        h = x
        x = self.down(x)
        x = self.m2(self.attn(self.m1(x, t)), t)
        x = self.up(x)
        return self.final(self.u1(torch.cat((x, h), 1), t))


def ddpm_unet():
    m = DUNet()
    return m, lambda: m(noise(2, 3, 8, 8), torch.rand(2) * 100)


class EqualLinear(nn.Module):
    """Scales its weight at run time."""

    def __init__(self, i, o, lr_mul=0.1):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(o, i))
        self.bias = nn.Parameter(torch.zeros(o))
        self.lr_mul = lr_mul
        self.scale = i**-0.5 * lr_mul

    def forward(self, x):
        return F.linear(x, self.weight * self.scale, bias=self.bias * self.lr_mul)


class ModConv(nn.Module):
    """Each sample has a kernel of its own: the weight, modulated and normalized by a style."""

    def __init__(self, i, o, style, k=3):
        super().__init__()
        self.i, self.o, self.k = i, o, k
        self.scale = 1 / math.sqrt(i * k * k)
        self.weight = nn.Parameter(torch.randn(1, o, i, k, k))
        self.modulation = nn.Linear(style, i)
        self.noise_weight = nn.Parameter(torch.zeros(1))
        self.bias = nn.Parameter(torch.zeros(1, o, 1, 1))

    def forward(self, x, style):
        b, c, h, w = x.shape
        style = self.modulation(style).view(b, 1, c, 1, 1)
        weight = self.scale * self.weight * style
        demod = torch.rsqrt(weight.pow(2).sum([2, 3, 4]) + 1e-8)
        weight = (weight * demod.view(b, self.o, 1, 1, 1)).view(b * self.o, c, self.k, self.k)
        out = F.conv2d(x.view(1, b * c, h, w), weight, padding=self.k // 2, groups=b).view(
            b, self.o, h, w
        )
        out = out + self.noise_weight * torch.randn(b, 1, h, w)
        return F.leaky_relu(out + self.bias, 0.2)


class StyleGAN(nn.Module):
    def __init__(self):
        super().__init__()
        self.style = nn.Sequential(
            EqualLinear(8, 8), nn.LeakyReLU(0.2), EqualLinear(8, 8), nn.LeakyReLU(0.2)
        )
        self.const = nn.Parameter(torch.randn(1, 6, 4, 4))
        self.conv1, self.conv2, self.to_rgb = ModConv(6, 6, 8), ModConv(6, 4, 8), nn.Conv2d(4, 3, 1)

    def forward(self, z):
        z = F.normalize(z, dim=1)
        s = self.style(z)
        x = self.const.repeat(z.shape[0], 1, 1, 1)
        x = self.conv1(x, s)
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return self.to_rgb(self.conv2(x, s))


def stylegan2():
    m = StyleGAN()
    return m, lambda: m(noise(2, 8))


class CondConv(nn.Module):
    """A kernel per sample, mixed of four by a router."""

    def __init__(self):
        super().__init__()
        self.routing, self.weight, self.bias, self.head = (
            nn.Linear(3, 4),
            nn.Parameter(torch.randn(4, 8 * 3 * 9) * 0.1),
            nn.Parameter(torch.zeros(4, 8)),
            nn.Linear(8, 2),
        )

    def forward(self, x):
        b = x.size(0)
        r = torch.sigmoid(self.routing(x.mean((2, 3))))
        w = torch.matmul(r, self.weight).view(b * 8, 3, 3, 3)
        bias = torch.matmul(r, self.bias).view(-1)
        out = F.conv2d(x.reshape(1, -1, *x.shape[-2:]), w, bias, padding=1, groups=b).view(
            b, 8, *x.shape[-2:]
        )
        return self.head(F.relu(out).mean((2, 3)))


def condconv():
    m = CondConv()
    return m, lambda: m(noise(2, 3, 8, 8))


def modulate(x, shift, scale):
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class TimmAttn(nn.Module):
    def __init__(self, d, h):
        super().__init__()
        self.num_heads = h
        self.qkv, self.proj = nn.Linear(d, 3 * d), nn.Linear(d, d)

    def forward(self, x):
        B, N, C = x.shape
        q, k, v = (
            self.qkv(x)
            .reshape(B, N, 3, self.num_heads, C // self.num_heads)
            .permute(2, 0, 3, 1, 4)
            .unbind(0)
        )
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, C))


class Mlp(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.fc1, self.act, self.fc2 = (
            nn.Linear(d, 4 * d),
            nn.GELU(approximate="tanh"),
            nn.Linear(4 * d, d),
        )

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class DiTBlock(nn.Module):
    """adaLN-Zero: shift, scale and gate of both branches from one layer on the condition."""

    def __init__(self, d, h):
        super().__init__()
        self.norm1, self.norm2 = (
            nn.LayerNorm(d, elementwise_affine=False, eps=1e-6) for _ in range(2)
        )
        self.attn, self.mlp = TimmAttn(d, h), Mlp(d)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(d, 6 * d))

    def forward(self, x, c):
        a, b, g, a2, b2, g2 = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + g.unsqueeze(1) * self.attn(modulate(self.norm1(x), a, b))
        return x + g2.unsqueeze(1) * self.mlp(modulate(self.norm2(x), a2, b2))


class FinalLayer(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.norm_final = nn.LayerNorm(d, elementwise_affine=False)
        self.linear = nn.Linear(d, 12)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(d, 2 * d))

    def forward(self, x, c):
        s, sc = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), s, sc))


class DiT(nn.Module):
    def __init__(self, d=16):
        super().__init__()
        self.x_embedder = nn.Conv2d(3, d, 2, 2)
        self.t_embedder = nn.Sequential(nn.Linear(8, d), nn.SiLU(), nn.Linear(d, d))
        self.y_embedder = nn.Embedding(11, d)
        self.pos_embed = nn.Parameter(torch.zeros(1, 16, d), requires_grad=False)
        self.blocks = nn.ModuleList(DiTBlock(d, 2) for _ in range(2))
        self.final_layer = FinalLayer(d)

    def forward(self, x, t, y):
        x = self.x_embedder(x).flatten(2).transpose(1, 2) + self.pos_embed
        f = torch.exp(-math.log(10000) * torch.arange(4) / 4)
        e = t[:, None].float() * f[None]
        c = self.t_embedder(torch.cat([torch.cos(e), torch.sin(e)], dim=-1)) + self.y_embedder(y)
        for b in self.blocks:
            x = b(x, c)
        return self.final_layer(x, c)


def dit():
    m = DiT()
    return m, lambda: m(noise(2, 3, 8, 8), torch.tensor([3, 7]), ids(2))
