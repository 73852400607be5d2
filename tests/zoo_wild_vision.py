"""Image models in the style of their repositories: timm's XCiT, PoolFormer, NF-ResNet, MobileNetV3."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.zoo_basic import noise


class XCA(nn.Module):
    """Attention among channels, of normalized queries and keys with a temperature."""

    def __init__(self, dim, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))
        self.qkv = nn.Linear(dim, dim * 3, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        B, N, C = x.shape
        qkv = (
            self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 4, 1)
        )
        q, k, v = qkv.unbind(0)
        q = F.normalize(q, dim=-1) * self.temperature
        k = F.normalize(k, dim=-1)
        attn = (q @ k.transpose(-2, -1)).softmax(dim=-1)
        x = (attn @ v).permute(0, 3, 1, 2).reshape(B, N, C)
        return self.proj(x)


class LPI(nn.Module):
    """Depthwise convolutions between the tokens."""

    def __init__(self, dim):
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.act = nn.GELU()
        self.bn = nn.BatchNorm2d(dim)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x, H, W):
        B, N, C = x.shape
        x = x.permute(0, 2, 1).reshape(B, C, H, W)
        x = self.conv2(self.bn(self.act(self.conv1(x))))
        return x.reshape(B, C, N).permute(0, 2, 1)


class XCABlock(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.attn, self.local_mp = XCA(dim, heads), LPI(dim)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.gamma1, self.gamma2, self.gamma3 = (
            nn.Parameter(torch.ones(dim) * 1e-2) for _ in range(3)
        )

    def forward(self, x, H, W):
        x = x + self.gamma1 * self.attn(self.norm1(x))
        x = x + self.gamma3 * self.local_mp(self.norm3(x), H, W)
        return x + self.gamma2 * self.fc2(F.gelu(self.fc1(self.norm2(x))))


class XCiT(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.pos_embed = nn.Parameter(torch.zeros(1, 20, 16))
        self.blocks = nn.ModuleList(XCABlock(16, 4) for _ in range(2))
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        x = self.patch(x)
        H, W = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2) + self.pos_embed
        for b in self.blocks:
            x = b(x, H, W)
        return self.head(self.norm(x).mean(1))


def xcit():
    m = XCiT()
    return m, lambda: m(noise(2, 3, 16, 20))


class PoolBlock(nn.Module):
    """Its first branch has no weights but those of its norm, and a scale."""

    def __init__(self, dim):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(1, dim), nn.GroupNorm(1, dim)
        self.pool = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        self.fc1, self.fc2 = nn.Conv2d(dim, 2 * dim, 1), nn.Conv2d(2 * dim, dim, 1)
        self.layer_scale_1 = nn.Parameter(1e-5 * torch.ones(dim))
        self.layer_scale_2 = nn.Parameter(1e-5 * torch.ones(dim))

    def forward(self, x):
        y = self.norm1(x)
        x = x + self.layer_scale_1[:, None, None] * (self.pool(y) - y)
        return x + self.layer_scale_2.unsqueeze(-1).unsqueeze(-1) * self.fc2(
            F.gelu(self.fc1(self.norm2(x)))
        )


def poolformer():
    m = nn.Sequential(
        nn.Conv2d(3, 8, 4, 4),
        PoolBlock(8),
        PoolBlock(8),
        nn.GroupNorm(1, 8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )
    return m, lambda: m(noise(2, 3, 16, 16))


class ScaledStdConv2d(nn.Conv2d):
    """Standardizes its kernel by a batch norm of the kernel, as timm does."""

    def __init__(self, i, o, k, **kw):
        super().__init__(i, o, k, **kw)
        self.gain = nn.Parameter(torch.full((o, 1, 1, 1), 1.0))
        self.scale = 1.7 * self.weight[0].numel() ** -0.5
        self.eps = 1e-6

    def forward(self, x):
        weight = F.batch_norm(
            self.weight.reshape(1, self.out_channels, -1),
            None,
            None,
            weight=(self.gain * self.scale).view(-1),
            training=True,
            momentum=0.0,
            eps=self.eps,
        ).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class NFBlock(nn.Module):
    """Normalizer-free: constants, and a gain that begins at zero, on the branch."""

    def __init__(self, dim, alpha=0.2, beta=0.9):
        super().__init__()
        self.alpha, self.beta = alpha, beta
        self.conv1, self.conv2, self.conv3 = (
            ScaledStdConv2d(dim, dim // 2, 1),
            ScaledStdConv2d(dim // 2, dim // 2, 3, padding=1),
            ScaledStdConv2d(dim // 2, dim, 1),
        )
        self.skipinit_gain = nn.Parameter(torch.tensor(0.0))

    def forward(self, x):
        out = F.silu(x) * self.beta
        out = self.conv3(F.silu(self.conv2(F.silu(self.conv1(out)))))
        out.mul_(self.skipinit_gain)
        return out * self.alpha + x


def nf_resnet():
    m = nn.Sequential(
        ScaledStdConv2d(3, 8, 3),
        NFBlock(8),
        NFBlock(8),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )
    return m, lambda: m(noise(2, 3, 8, 8))


class HardSwishBlock(nn.Module):
    """MobileNetV3's: squeeze-excite before the activation."""

    def __init__(self, d=8):
        super().__init__()
        self.expand, self.bn1, self.dw, self.bn2, self.fc1, self.fc2, self.project, self.bn3 = (
            nn.Conv2d(d, 16, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False),
            nn.BatchNorm2d(16),
            nn.Conv2d(16, 8, 1),
            nn.Conv2d(8, 16, 1),
            nn.Conv2d(16, d, 1, bias=False),
            nn.BatchNorm2d(d),
        )

    def forward(self, x):
        y = F.hardswish(self.bn1(self.expand(x)))
        y = self.bn2(self.dw(y))
        s = F.hardsigmoid(self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(y, 1)))))
        y = F.hardswish(s * y)
        return x + self.bn3(self.project(y))


def mobilenet_v3():
    m = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        HardSwishBlock(),
        HardSwishBlock(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )
    return m, lambda: m(noise(2, 3, 8, 8))
