"""Small models on the handwritten digits, trained for a few steps with a monitor beside them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_init import HealthMonitor
from lightning_init.health.report import Report

_X, _Y = load_digits(return_X_y=True)
X = torch.tensor(_X, dtype=torch.float32)
X = (X - X.mean()) / X.std()
Y = torch.tensor(_Y)


def mlp(*, width: int = 64) -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )


def cnn() -> nn.Module:
    return nn.Sequential(
        *(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()),
        nn.Linear(128, 10),
    )


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True, norm_first=True)
        self.stem, self.head = nn.Linear(8, 32), nn.Linear(32, 10)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.stem(x.view(len(x), 8, 8))).mean(1))


class Residual(nn.Module):
    """Residual convolutions without norm layers, whose branches add up."""

    def __init__(self, blocks: int = 8) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8, 10)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
            for _ in range(blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.view(len(x), 1, 8, 8))
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean((2, 3)))


class Digits(pl.LightningModule):
    """Any net, loss and optimizer."""

    def __init__(
        self,
        net: nn.Module,
        optimizer: Callable[[Any], torch.optim.Optimizer],
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        schedule: Callable[[int], float] | None = None,
    ) -> None:
        super().__init__()
        self.net, self.loss, self.make, self.schedule = net, loss, optimizer, schedule

    def training_step(self, batch: Any, _: int) -> Tensor:
        return self.loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = self.make(self.net)
        if self.schedule is None:
            return optimizer
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.schedule)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def watched(
    module: pl.LightningModule, steps: int = 21, x: Tensor = X, y: Tensor = Y, **facts: Any
) -> Report:
    """The report after so many steps; the module is built under a seed of the caller's."""
    monitor = HealthMonitor(verbose=False, **facts)
    data = TensorDataset(x, y)
    loader = DataLoader(
        data, 64, shuffle=True, generator=torch.Generator().manual_seed(0), drop_last=True
    )
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pl.Trainer(
            accelerator="cpu",
            max_steps=steps,
            logger=False,
            callbacks=[monitor],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(module, loader)
    assert monitor.report is not None
    return monitor.report
