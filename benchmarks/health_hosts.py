"""The models in which faults are planted: each learns well without them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from torch import nn

from benchmarks import models
from benchmarks.health_models import FAMILIES
from benchmarks.models import Classifier, Data, LanguageModel


def _mlp(depth: int, kind: type[nn.Module], width: int = 64, norm: bool = False) -> nn.Module:
    return Classifier(models.mlp(depth, kind, width, norm), (64,))


def hourglass() -> nn.Module:
    widths = (64, 256, 16, 256, 16, 256)
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return Classifier(nn.Sequential(*layers, nn.Linear(256, 10)), (64,))


_DIGITS, _TEXT, _DIABETES = models.digits, models.text, models.diabetes
# Name -> model, data, learning rate of AdamW. Drawn by `auto` first, so that each is healthy.
HOSTS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Data], float]] = {
    "relu mlp, 3": (lambda: _mlp(3, nn.ReLU), _DIGITS, 3e-3),
    "relu mlp, 12": (lambda: _mlp(12, nn.ReLU), _DIGITS, 1e-3),
    "tanh mlp, 10": (lambda: _mlp(10, nn.Tanh), _DIGITS, 1e-3),
    "gelu mlp, norm": (lambda: _mlp(6, nn.GELU, norm=True), _DIGITS, 3e-3),
    "hourglass mlp": (hourglass, _DIGITS, 2e-3),
    "residual mlp, 16": (*(lambda: Classifier(models.residual_mlp(16), (64,)), _DIGITS, 1e-3),),
    "regression mlp": (lambda: FAMILIES["regression"][0](64, 3, 0.0), _DIABETES, 2e-3),
    "plain cnn": (lambda: Classifier(models.cnn(False), (1, 8, 8)), _DIGITS, 5e-3),
    "cnn, batch norm": (lambda: Classifier(models.cnn(True), (1, 8, 8)), _DIGITS, 5e-3),
    "resnet": (lambda: Classifier(models.resnet(True), (1, 8, 8)), _DIGITS, 3e-3),
    "resnet, no norm": (*(lambda: Classifier(models.resnet(False, 8), (1, 8, 8)), _DIGITS, 2e-3),),
    "lstm": (lambda: Classifier(models.Recurrent(nn.LSTM), (8, 8)), _DIGITS, 1e-2),
    "encoder, pre-norm": (lambda: Classifier(models.Encoder(True), (8, 8)), _DIGITS, 3e-3),
    "encoder, post-norm": (lambda: Classifier(models.Encoder(False), (8, 8)), _DIGITS, 3e-3),
    "char gpt": (lambda: LanguageModel(models.GPT(4, 64, False)), _TEXT, 2e-3),
    "GPT-2": (lambda: LanguageModel(models.HuggingFace("gpt2")), _TEXT, 2e-3),
    "Llama": (lambda: LanguageModel(models.HuggingFace("llama")), _TEXT, 2e-3),
}
