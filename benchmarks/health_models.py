"""The models of the grid of healthy runs, by width, depth and dropout, and the zoo of the tests.

`FAMILIES[name](width, depth, dropout)` builds a model that returns its loss for a batch of the data
beside it. A model of the zoo learns by heart: random labels for the one batch it comes with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import models
from benchmarks.models import Classifier, Data, LanguageModel, Regressor, diabetes, digits, text

Build = Callable[[int, int, float], nn.Module]
_ACTIVATIONS = (nn.ReLU, nn.GELU, nn.Tanh, nn.SELU, nn.SiLU, nn.ELU, nn.LeakyReLU, nn.Sigmoid)


def dropped(net: nn.Module, dropout: float) -> nn.Module:
    """Dropout after every activation module, in place."""
    if dropout:
        for module in list(net.modules()):
            for name, child in module.named_children():
                if isinstance(child, _ACTIVATIONS):
                    setattr(module, name, nn.Sequential(child, nn.Dropout(dropout)))
    return net


def swish_mlp(width: int, depth: int) -> nn.Module:
    return models.mlp(depth, nn.SiLU, width, norm=True)


class Bottleneck(nn.Module):
    """An autoencoder of digits."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 8))
        self.decoder = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 64))

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        return F.mse_loss(self.decoder(self.encoder(x)), x)


class Twins(nn.Module):
    """Contrastive: two noisy views of a digit, InfoNCE over the batch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 16))

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        views = (F.normalize(self.body(x + 0.3 * torch.randn_like(x)), dim=-1) for _ in range(2))
        one, two = views
        return F.cross_entropy(one @ two.T / 0.1, torch.arange(len(x)))


class Binary(nn.Module):
    """Is the digit above 4? Binary cross-entropy with logits."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        out = self.net(x).mean(1)
        return F.binary_cross_entropy_with_logits(out, (y > 4).float())


def group_norm_cnn(width: int, depth: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(1, width, 3, padding=1)]
    for _ in range(depth):
        norm = nn.GroupNorm(4, width)
        layers += [norm, nn.SiLU(), nn.Conv2d(width, width, 3, padding=1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def _pixels(net: Callable[[int, int], nn.Module]) -> Build:
    return lambda w, n, p: Classifier(dropped(net(w, n), p), (64,))


def _images(net: Callable[[int, int], nn.Module]) -> Build:
    return lambda w, n, p: Classifier(dropped(net(w, n), p), (1, 8, 8))


def _rows(net: Callable[[int, int], nn.Module]) -> Build:
    return lambda w, n, p: Classifier(dropped(net(w, n), p), (8, 8))


def _text(net: Callable[[int, int], nn.Module]) -> Build:
    return lambda w, n, p: LanguageModel(dropped(net(w, n), p))


def _regression(w: int, n: int, p: float) -> nn.Module:
    layers: list[nn.Module] = [nn.Linear(10, w), nn.ReLU()]
    for _ in range(n - 1):
        layers += [nn.Linear(w, w), nn.ReLU()]
    return Regressor(dropped(nn.Sequential(*layers, nn.Linear(w, 1)), p))


# Name -> builder, data, learning rate of AdamW, depths that are usual for it.
FAMILIES: dict[str, tuple[Build, Callable[[], Data], float, tuple[int, ...]]] = {
    "relu mlp": (_pixels(lambda w, n: models.mlp(n, nn.ReLU, w)), digits, 3e-3, (2, 3, 5)),
    "deep relu mlp": (_pixels(lambda w, n: models.mlp(n, nn.ReLU, w)), digits, 1e-3, (8, 12)),
    "gelu mlp with norm": (
        *(_pixels(lambda w, n: models.mlp(n, nn.GELU, w, norm=True)), digits),
        *(3e-3, (3, 6, 12)),
    ),
    "silu mlp with norm": (_pixels(swish_mlp), digits, 3e-3, (2, 4)),
    "tanh mlp": (_pixels(lambda w, n: models.mlp(n, nn.Tanh, w)), digits, 3e-3, (2, 5, 10)),
    "selu mlp": (_pixels(lambda w, n: models.mlp(n, nn.SELU, w)), digits, 2e-3, (3, 8)),
    "sigmoid mlp": (_pixels(lambda w, n: models.mlp(n, nn.Sigmoid, w)), digits, 1e-2, (1, 2)),
    "residual mlp": (_pixels(lambda _, n: models.residual_mlp(n)), digits, 2e-3, (4, 8, 16)),
    "binary mlp": (
        lambda w, n, p: Binary(dropped(models.mlp(n, nn.ReLU, w), p)),
        *(digits, 3e-3, (2, 3)),
    ),
    "regression": (_regression, diabetes, 3e-3, (1, 2, 4)),
    "autoencoder": (lambda w, _, p: dropped(Bottleneck(w), p), digits, 3e-3, (1,)),
    "contrastive": (lambda w, _, p: dropped(Twins(w), p), digits, 3e-3, (1,)),
    "plain cnn": (_images(lambda *_: models.cnn(False)), digits, 5e-3, (3,)),
    "cnn with batch norm": (_images(lambda *_: models.cnn(True)), digits, 5e-3, (3,)),
    "cnn with group norm": (_images(group_norm_cnn), digits, 3e-3, (2, 4)),
    "resnet": (_images(lambda _, n: models.resnet(True, n)), digits, 3e-3, (3, 6)),
    "resnet, no norm": (_images(lambda _, n: models.resnet(False, n)), digits, 2e-3, (3, 6)),
    "lstm": (_rows(lambda _, n: models.Recurrent(nn.LSTM, n)), digits, 1e-2, (1, 2)),
    "gru": (_rows(lambda _, n: models.Recurrent(nn.GRU, n)), digits, 1e-2, (1, 2)),
    "rnn": (_rows(lambda _, n: models.Recurrent(nn.RNN, n)), digits, 3e-3, (1, 2)),
    "char lstm": (_text(lambda w, _: models.CharLSTM(w)), text, 1e-2, (1,)),
    "encoder, post-norm": (_rows(lambda w, n: models.Encoder(False, n, w)), digits, 3e-3, (2, 3)),
    "encoder, pre-norm": (_rows(lambda w, n: models.Encoder(True, n, w)), digits, 3e-3, (2, 4)),
    "char gpt, tied": (_text(lambda w, n: models.GPT(n, w)), text, 2e-3, (2, 4)),
    "char gpt, untied": (_text(lambda w, n: models.GPT(n, w, False)), text, 2e-3, (2, 4)),
}


class ByHeart(nn.Module):
    """A model of the zoo and random labels for the one batch that it comes with."""

    def __init__(self, build: Callable[..., Any], seed: int) -> None:
        super().__init__()
        self.model, forward = build(seed)
        self.model.train()
        object.__setattr__(self, "run_once", forward)

    def forward(self, _: Tensor) -> Tensor:
        out = self.run_once()
        if isinstance(out, dict):
            out = next(value for value in out.values() if isinstance(value, Tensor))
        if isinstance(out, tuple | list):
            out = out[0]
        if out.ndim == 0:  # it is a loss
            return out
        generator = torch.Generator().manual_seed(0)
        if out.ndim < 2 or out.shape[-1] < 2 or out.ndim == 4:
            # Within what a tanh can give.
            target = 1.6 * torch.rand(out.shape, generator=generator) - 0.8
            return F.mse_loss(out, target)
        flat = out.flatten(0, -2)
        labels = torch.randint(flat.shape[1], (len(flat),), generator=generator)
        return F.cross_entropy(flat, labels)
