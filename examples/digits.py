"""Handwritten digits (scikit-learn ships them): a LightningModule and its data, shallow to deep."""

from itertools import pairwise
from typing import Literal

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

Batch = tuple[Tensor, ...]


class DigitsMLP(pl.LightningModule):
    """A plain multi-layer perceptron, without normalization or skips."""

    def __init__(
        self,
        depth: int = 30,
        width: int = 64,
        activation: Literal["tanh", "relu"] = "tanh",
        lr: float = 0.03,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        act = nn.Tanh if activation == "tanh" else nn.ReLU
        sizes = [64, *[width] * (depth - 1)]
        layers = [m for i, o in pairwise(sizes) for m in (nn.Linear(i, o), act())]
        self.net = nn.Sequential(*layers, nn.Linear(sizes[-1], 10))
        self.lr = lr
        self.accuracy = MulticlassAccuracy(10, average="micro")

    def training_step(self, batch: Batch) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Batch) -> None:
        logits = self.net(batch[0])
        self.accuracy(logits, batch[1])
        self.log("val_loss", nn.functional.cross_entropy(logits, batch[1]))
        self.log("val_acc", self.accuracy)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class Digits(pl.LightningDataModule):
    """1437 images of 8 x 8 to train on, 360 to validate, in [0, 1]."""

    def __init__(self, batch_size: int = 64) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        images, labels = load_digits(return_X_y=True)
        x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
        self.train = TensorDataset(x[order[:1437]], y[order[:1437]])
        self.val = TensorDataset(x[order[1437:]], y[order[1437:]])

    def train_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(self.train, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(self.val, batch_size=512)
