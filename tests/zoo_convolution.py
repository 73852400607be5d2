"""Convolutional nets."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo_basic import Built, noise


class PlainCNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = self.second(x).relu()
        return self.head(x.mean((2, 3)))


def plain_cnn() -> Built:
    model = PlainCNN()
    return model, lambda: model(noise(4, 3, 8, 8))


class ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(x + self.bn2(self.conv2(y)))


class ResidualCNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(ResidualBlock(8), ResidualBlock(8), ResidualBlock(8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x).relu()).mean((2, 3)))


def residual_cnn() -> Built:
    model = ResidualCNN()
    return model, lambda: model(noise(4, 3, 8, 8))


def depthwise() -> Built:
    model = nn.Sequential(
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.SiLU(),
        nn.Conv2d(8, 16, 1),
        nn.GroupNorm(4, 16),
        nn.SiLU(),
        nn.Conv2d(16, 4, 3, groups=4),
    )
    return model, lambda: model(noise(4, 8, 8, 8))


def generator() -> Built:
    model = nn.Sequential(
        nn.ConvTranspose2d(6, 8, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1, groups=2),
        nn.LeakyReLU(0.2),
        nn.ConvTranspose2d(4, 3, 3, padding=1),
        nn.Tanh(),
    )
    return model, lambda: model(noise(2, 6, 4, 4))


class PreActivation(nn.Module):
    """Norm and ReLU before each convolution; the block widens by a projection of its own input."""

    def __init__(self, into: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(into), nn.BatchNorm2d(out)
        self.conv1 = nn.Conv2d(into, out, 3, stride=stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(into, out, 1, stride=stride, bias=False) if into != out else None

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(x))
        skip = x if self.shortcut is None else self.shortcut(x)
        y = self.conv1(y)
        y = self.conv2(torch.relu(self.bn2(y)))
        y += skip
        return y


class PreActivationCNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(PreActivation(8, 8), PreActivation(8, 16, 2))
        self.bn = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.blocks(self.stem(x))).relu_()
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def preactivation_cnn() -> Built:
    model = PreActivationCNN()
    return model, lambda: model(noise(4, 3, 8, 8))


class Bottleneck(nn.Module):
    """As in torchvision: an in-place ReLU, `+=`, a projection with stride where shapes change."""

    def __init__(self, into: int, out: int, stride: int = 1) -> None:
        super().__init__()
        inner = out // 4
        self.conv1 = nn.Conv2d(into, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or into != out:
            self.downsample = nn.Sequential(
                nn.Conv2d(into, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class BottleneckCNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(True))
        self.pool = nn.MaxPool2d(2)
        self.blocks = nn.Sequential(Bottleneck(8, 16), Bottleneck(16, 16), Bottleneck(16, 32, 2))
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.pool(self.stem(x))).mean((2, 3)))


def bottleneck_cnn() -> Built:
    model = BottleneckCNN()
    return model, lambda: model(noise(4, 3, 8, 8))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.expand(F.silu(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * gate.sigmoid()


class InvertedResidual(nn.Module):
    """EfficientNet's block: expand, depthwise, squeeze-excite, project."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 2 * channels
        self.expand = nn.Sequential(nn.Conv2d(channels, wide, 1), nn.BatchNorm2d(wide), nn.SiLU())
        self.depthwise = nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False)
        self.bn = nn.BatchNorm2d(wide)
        self.gate = SqueezeExcite(wide)
        self.project = nn.Sequential(nn.Conv2d(wide, channels, 1), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.bn(self.depthwise(self.expand(x))))
        return x + self.project(self.gate(y))


def inverted_residual() -> Built:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.SiLU(),
        InvertedResidual(8),
        InvertedResidual(8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )
    return model, lambda: model(noise(4, 3, 8, 8))


class SEBlock(nn.Module):
    """SE-ResNet's block: what the gate scales is what is added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.squeeze, self.excite = nn.Linear(channels, 4), nn.Linear(4, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3))))))
        return F.relu(x + y * gate[:, :, None, None])


def se_resnet() -> Built:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        SEBlock(8),
        SEBlock(8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )
    return model, lambda: model(noise(4, 3, 8, 8))


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8 + 4 * index) for index in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(8 + 4 * i, 4, 3, padding=1) for i in range(3))
        self.norm = nn.BatchNorm2d(20)
        self.head = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            features.append(conv(F.relu(norm(torch.cat(features, 1)))))
        return self.head(F.relu(self.norm(torch.cat(features, 1))).mean((2, 3)))


def densenet() -> Built:
    model = DenseNet()
    return model, lambda: model(noise(4, 3, 8, 8))


class UNet(nn.Module):
    """Two levels down and up again; what comes up meets the encoder's feature of its size."""

    def __init__(self, concat: bool) -> None:
        super().__init__()
        self.concat = concat
        twice = 2 if concat else 1
        self.enc1 = nn.Conv2d(3, 8, 3, padding=1)
        self.enc2 = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.mid = nn.Conv2d(12, 16, 3, stride=2, padding=1)
        self.up2 = nn.ConvTranspose2d(16, 12, 2, stride=2)
        self.dec2 = nn.Conv2d(12 * twice, 12, 3, padding=1)
        self.up1 = nn.ConvTranspose2d(12, 8, 2, stride=2)
        self.dec1 = nn.Conv2d(8 * twice, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 2, 1)

    def join(self, skip: Tensor, x: Tensor) -> Tensor:
        return torch.cat([skip, x], dim=1) if self.concat else skip + x

    def forward(self, x: Tensor) -> Tensor:
        one = F.relu(self.enc1(x))
        two = F.relu(self.enc2(one))
        x = F.relu(self.mid(two))
        x = F.relu(self.dec2(self.join(two, self.up2(x))))
        x = F.relu(self.dec1(self.join(one, self.up1(x))))
        return self.head(x)


def unet_sum() -> Built:
    model = UNet(concat=False)
    return model, lambda: model(noise(2, 3, 8, 8))


def unet_concat() -> Built:
    model = UNet(concat=True)
    return model, lambda: model(noise(2, 3, 8, 8))
