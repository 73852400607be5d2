"""A model, a callback and LightningCLIs whose configurations hold lists."""

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, ModelSummary
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from torch import nn

from tests.search.models import Data, Net


class Damped(Callback):
    """Multiplies gradients: with 0 nothing is learned."""

    def __init__(self, factor: float = 1.0, names: list[str] | None = None) -> None:
        self.factor, self.names = factor, names

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any
    ) -> None:
        for parameter in pl_module.parameters():
            assert parameter.grad is not None
            parameter.grad.mul_(self.factor)


class Stack(Net):
    """Its widths and its learning rates are lists; what learns nothing is far off."""

    def __init__(self, widths: list[int], rates: list[float], parts: list[nn.Module]) -> None:
        super().__init__()
        inner = [nn.Linear(4, widths[0]), nn.Linear(widths[0], widths[1])]
        self.net = nn.Sequential(inner[0], parts[0], inner[1], parts[-1], nn.Linear(widths[1], 1))
        self.rates = rates

    def loss(self, batch: list[torch.Tensor]) -> torch.Tensor:
        return (self.net(batch[0]) - batch[1] - 10.0).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        first, *others = self.net.children()
        groups = [first.parameters(), (p for one in others for p in one.parameters())]
        pairs = zip(groups, self.rates, strict=True)
        return torch.optim.SGD([{"params": list(own), "lr": rate} for own, rate in pairs])


class Small(Stack):
    def __init__(self, widths: list[int], rates: list[float]) -> None:
        super().__init__(widths, rates, [nn.Tanh()])


class CLI(LightningCLI):
    """Model and data are its own, and so is a callback."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(ModelSummary, "summary")


def main() -> None:
    CLI(Small, Data, trainer_defaults={"accelerator": "cpu"})
