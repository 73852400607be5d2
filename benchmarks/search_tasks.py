"""Six real trainings for the benchmarks of the search, as LightningCLI configurations.

The learning rate of each is one that a tutorial would give, not a tuned one. `fit` trains one by
hand (a model, a Trainer, InitCallback) and knows nothing of the search that it judges.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

import lightning_init
from benchmarks import models
from examples import digits
from lightning_init import InitCallback, InitSpec
from lightning_init.search.job import SHORT
from lightning_init.strategies.needs import UnsuitableError

ROOT = Path(__file__).parents[1]
MONITOR, LR = "val_loss", "model.init_args.lr"
RATES = (0.1, 0.3, 1.0, 3.0, 10.0)  # times the user's own, for the best learning rate of an init
Batch = tuple[Tensor, ...]


def plain_cnn(depth: int = 10, width: int = 12) -> nn.Module:
    layers: list[nn.Module] = []
    for index in range(depth):
        layers += [nn.Conv2d(width if index else 1, width, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


IMAGES: dict[str, Callable[[], nn.Module]] = {
    "plain": plain_cnn,
    "residual": lambda: models.resnet(norm=False, width=12),
    "normed": lambda: models.resnet(norm=True, blocks=3, width=12),
}


class ImageNet(pl.LightningModule):
    """Digits as images of one channel."""

    def __init__(
        self,
        net: Literal["plain", "residual", "normed"] = "plain",
        optimizer: Literal["adam", "sgd"] = "adam",
        lr: float = 1e-3,
    ) -> None:
        super().__init__()
        self.net, self.optimizer, self.lr = IMAGES[net](), optimizer, lr
        self.accuracy = MulticlassAccuracy(10, average="micro")

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.view(-1, 1, 8, 8))

    def training_step(self, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Batch) -> None:
        logits = self(batch[0])
        self.accuracy(logits, batch[1])
        self.log("val_loss", nn.functional.cross_entropy(logits, batch[1]))
        self.log("val_acc", self.accuracy)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.optimizer == "sgd":
            return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class PostNorm(nn.Module):
    """The encoder layers of torch in the order of Vaswani et al., with a causal mask."""

    def __init__(self, layers: int = 4, width: int = 48) -> None:
        super().__init__()
        self.tokens = nn.Embedding(models.symbols(), width)
        self.places = nn.Embedding(models.LENGTH, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, models.symbols())

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        h = self.tokens(x) + self.places(torch.arange(x.shape[1]))
        return self.head(self.encoder(h, mask=mask, is_causal=True))


class CharLSTM(nn.Module):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.tokens = nn.Embedding(models.symbols(), width)
        self.lstm = nn.LSTM(width, width, num_layers=2, batch_first=True)
        self.head = nn.Linear(width, models.symbols())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.tokens(x))[0])


class Language(pl.LightningModule):
    """The next character of Python's documentation."""

    def __init__(self, net: Literal["post-norm", "lstm"] = "lstm", lr: float = 1e-3) -> None:
        super().__init__()
        self.net, self.lr = (CharLSTM() if net == "lstm" else PostNorm()), lr

    def loss(self, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]).flatten(0, 1), batch[1].flatten())

    def training_step(self, batch: Batch) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: Batch) -> None:
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class Text(pl.LightningDataModule):
    """Windows of 32 characters; 200 of them to validate."""

    def __init__(self, batch_size: int = 16) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:  # noqa: ARG002
        x, y = models.text()
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        self.train = TensorDataset(x[order[200:]], y[order[200:]])
        self.val = TensorDataset(x[order[:200]], y[order[:200]])

    def train_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(self.train, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(self.val, batch_size=200)


@dataclass(frozen=True)
class Task:
    """A training as a user has it.

    Attributes:
        name: For tables.
        model: `class_path` and `init_args`, among them the user's own `lr`.
        data: The same.
        steps: Training steps of the full training.
        short: Training steps of a trial.
        classes: Of the prediction; guessing has a loss of their logarithm.
        trainer: Further arguments of the Trainer.
    """

    name: str
    model: Mapping[str, Any]
    data: Mapping[str, Any]
    steps: int
    short: int
    classes: int
    trainer: Mapping[str, Any]

    @property
    def lr(self) -> float:
        """The user's learning rate."""
        return float(self.model["init_args"]["lr"])

    @property
    def config(self) -> dict[str, Any]:
        """What the user's YAML holds."""
        trainer = {"max_steps": self.steps, "accelerator": "cpu", **self.trainer}
        plain = {"seed_everything": 1, "model": self.model, "data": self.data, "trainer": trainer}
        return copy.deepcopy(plain)

    @property
    def worst(self) -> float:
        """What a diverged training counts as: twice the loss of guessing."""
        return 2 * math.log(self.classes)


def _images(name: str, net: str, optimizer: str, lr: float, steps: int, short: int) -> Task:
    init = {"net": net, "optimizer": optimizer, "lr": lr}
    data = {"class_path": "examples.digits.Digits", "init_args": {"batch_size": 32}}
    model = {"class_path": "benchmarks.search_tasks.ImageNet", "init_args": init}
    return Task(name, model, data, steps, short, 10, {})


def _text(name: str, net: str, lr: float, steps: int, short: int) -> Task:
    model = {"class_path": "benchmarks.search_tasks.Language", "init_args": {"net": net, "lr": lr}}
    data = {"class_path": "benchmarks.search_tasks.Text"}
    return Task(name, model, data, steps, short, models.symbols(), {})


def tasks() -> dict[str, Task]:
    """All six by a short key."""
    deep = {"class_path": "examples.digits.DigitsMLP", "init_args": {"depth": 30, "lr": 0.03}}
    pixels = {"class_path": "examples.digits.Digits"}
    return {
        "mlp": Task("deep tanh MLP", deep, pixels, 400, 100, 10, {"gradient_clip_val": 1.0}),
        "cnn": _images("plain CNN, no norm", "plain", "adam", 1e-3, 300, 100),
        "post": _text("post-LN transformer, no warm-up", "post-norm", 1e-3, 200, 50),
        "resnet": _images("norm-free ResNet", "residual", "sgd", 0.1, 250, 80),
        "lstm": _text("LSTM", "lstm", 2e-3, 300, 80),
        "healthy": _images("residual net with norm", "normed", "adam", 1e-3, 200, 80),
    }


CODE = hashlib.sha256(
    b"".join(Path(str(one.__file__)).read_bytes() for one in (models, digits))
    + Path(__file__).read_bytes()
    + f"{torch.__version__} {pl.__version__} {lightning_init.__version__}".encode()
).hexdigest()


@dataclass(frozen=True)
class Fit:
    """One training: all that its result depends on.

    Attributes:
        task: Key of the task.
        strategy: Of the init.
        params: Of the strategy, as JSON.
        lr: Learning rate.
        seed: Of everything.
        steps: Training steps.
    """

    task: str
    strategy: str
    params: str
    lr: float
    seed: int
    steps: int

    @property
    def key(self) -> str:
        """Changes with anything that the result depends on."""
        text = json.dumps([asdict(self), tasks()[self.task].config, CODE], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:20]


def fit_of(task: str, spec: InitSpec, lr: float, seed: int, steps: int) -> Fit:
    """A training from a spec."""
    plain = {k: v for k, v in spec.to_dict().items() if k not in ("strategy", "seed")}
    return Fit(task, spec.strategy, json.dumps(plain, sort_keys=True), lr, seed, steps)


def run(fit: Fit) -> dict[str, Any]:
    """Train by hand; the metric is None where the loss is not finite or the init unsuitable."""
    spec = InitSpec.from_dict({"strategy": fit.strategy, **json.loads(fit.params)})
    began = time.perf_counter()
    metric, done, error = None, 0, ""
    init = InitCallback.from_spec(spec, verbose=False, monitor_steps=0)
    model, data, trainer = build(fit.task, fit.lr, fit.seed, [init], fit.steps)
    try:
        trainer.fit(model, datamodule=data)
        done = trainer.global_step
        value = float(trainer.validate(model, datamodule=data, verbose=False)[0][MONITOR])
        metric = value if math.isfinite(value) else None
    except UnsuitableError as problem:
        error = str(problem)
    seconds = time.perf_counter() - began
    return {**asdict(fit), "metric": metric, "done": done, "error": error, "seconds": seconds}


def build(
    task: str, lr: float, seed: int, callbacks: list[Callback], steps: int, **trainer: Any
) -> tuple[pl.LightningModule, pl.LightningDataModule, pl.Trainer]:
    """Model, data and Trainer as one writes them."""
    quiet()
    config = tasks()[task].config
    pl.seed_everything(seed, workers=True, verbose=False)
    data = _made(config["data"])
    config["model"]["init_args"]["lr"] = lr
    model = _made(config["model"])
    settings = {**config["trainer"], **SHORT, "check_val_every_n_epoch": 10**6, "max_steps": steps}
    settings |= trainer
    return model, data, pl.Trainer(**settings, callbacks=callbacks)


def quiet() -> None:
    """No hints of Lightning between the rows of a table."""
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning_init"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _made(described: Mapping[str, Any]) -> Any:
    module, _, name = described["class_path"].rpartition(".")
    found = __import__(module, fromlist=[name])
    return getattr(found, name)(**described.get("init_args", {}))
