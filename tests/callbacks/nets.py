"""LightningModules on scikit-learn's digits, one idea each, and one way to fit them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
import torchmetrics
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset


@cache
def digits() -> TensorDataset:
    x, y = load_digits(return_X_y=True)
    return TensorDataset(torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y))


def ordered(batch_size: int = 32) -> DataLoader[Any]:
    return DataLoader(digits(), batch_size=batch_size)


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """Counts what is taken from it: a stream cannot give a sample back."""

    def __init__(self) -> None:
        self.taken = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for sample in digits():
            self.taken += 1
            yield sample


class Digits(pl.LightningModule):
    """A classifier that notes the batches it was trained on and its weights before the first."""

    def __init__(self, net: nn.Module | None = None, lr: float = 0.01) -> None:
        super().__init__()
        self.lr = lr
        if net is not None:
            self.net = net
        self.seen: list[float] = []

    def loss(self, batch: Any) -> Tensor:
        x, y = batch
        return F.cross_entropy(self.net(x), y)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen.append(float(batch[0].double().sum()))
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class Validated(Digits):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.net(batch[0])


def mlp(width: int = 32) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )


def noisy() -> nn.Sequential:
    """Batch statistics and random numbers in the forward pass."""
    return nn.Sequential(
        nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 10)
    )


class Model(Validated):
    """Brings its data: for a command line."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(mlp(width))

    def train_dataloader(self) -> Any:
        return ordered()

    val_dataloader = train_dataloader


def sick(depth: int = 30) -> nn.Sequential:
    """PyTorch's default on a deep tanh net: outputs and gradients vanish."""
    layers: list[nn.Module] = [nn.Linear(64, 32), nn.Tanh()]
    for _ in range(depth):
        layers += [nn.Linear(32, 32), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(32, 10))


class Rows(nn.Module):
    """An LSTM over the eight rows of a digit."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 16, num_layers=2, dropout=0.1, batch_first=True)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x.view(-1, 8, 8))[0][:, -1])


class Metered(Digits):
    """Metrics as children: their state is part of the module."""

    def __init__(self) -> None:
        super().__init__(noisy())
        self.accuracy = torchmetrics.classification.MulticlassAccuracy(10)
        self.means = nn.ModuleDict({"loss": torchmetrics.MeanMetric()})

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.accuracy(self.net(batch[0]), batch[1])
        self.means["loss"].update(loss.detach())
        self.log("accuracy", self.accuracy)
        return loss


class BuiltInSetup(Digits):
    def setup(self, stage: str) -> None:
        if not hasattr(self, "net"):
            self.net = mlp()


class BuiltInConfigureModel(Digits):
    def configure_model(self) -> None:
        if not hasattr(self, "net"):
            self.net = mlp()


class BuiltInThreePlaces(Digits):
    """Layers of `mlp` under the same names, one each in __init__, setup and configure_model."""

    def __init__(self) -> None:
        super().__init__(mlp()[:1])

    def setup(self, stage: str) -> None:
        if len(self.net) == 1:
            self.net.extend(mlp()[1:3])

    def configure_model(self) -> None:
        if len(self.net) == 3:
            self.net.extend(mlp()[3:])


class AtStart(pl.Callback):
    """The weights that the first training batch meets."""

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if not self.weights:
            self.weights = weights(pl_module)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {
        name.replace("_orig_mod.", ""): p.detach().clone() for name, p in model.named_parameters()
    }


def same(one: Any, two: Any) -> bool:
    """Bit for bit, through containers."""
    if isinstance(one, Tensor):
        return one.dtype == two.dtype and torch.equal(one.nan_to_num(7e7), two.nan_to_num(7e7))
    if isinstance(one, np.ndarray):
        return bool(np.array_equal(one, two))
    if isinstance(one, dict):
        return list(one) == list(two) and all(same(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(same, one, two))
    return bool(one == two)


def seed_all(seed: int = 5) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # the global state is what is tested
    torch.manual_seed(seed)


def random_states() -> dict[str, Any]:
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002
        "torch": torch.get_rng_state(),
    }


def trainer(*callbacks: pl.Callback, **arguments: Any) -> pl.Trainer:
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": 3,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": Path.cwd(),
    }
    return pl.Trainer(callbacks=list(callbacks), **{**quiet, **arguments})


def fit(
    module: pl.LightningModule, *callbacks: pl.Callback, loader: Any = None, **arguments: Any
) -> pl.Trainer:
    made = trainer(*callbacks, **arguments)
    made.fit(module, ordered() if loader is None else loader)
    return made


def hooks(model: nn.Module) -> list[str]:
    """Whatever somebody left on the modules: hooks of any kind, replaced methods."""
    found = []
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key.endswith("_hooks") and value:
                found.append(f"{name}.{key}")
        found += [
            f"{name}.{key}" for key in ("setup", "configure_model", "log") if key in vars(module)
        ]
    found += [f"{n}._backward_hooks" for n, p in model.named_parameters() if p._backward_hooks]
    return found
