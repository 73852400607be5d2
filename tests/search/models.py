"""Small LightningModules that configurations in these tests name by class_path."""

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Net(pl.LightningModule):
    """Brings its own optimizer; logs what a test asks for."""

    def __init__(self, width: int = 8, lr: float = 0.1, log: str = "val_loss") -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 1))
        self.lr, self.name = lr, log

    def loss(self, batch: list[Tensor]) -> Tensor:
        return (self.net(batch[0]) - batch[1]).square().mean()

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: list[Tensor]) -> None:
        self.log(self.name, self.loss(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Bare(pl.LightningModule):
    """Has no optimizer and no validation: the configuration brings the first."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.net = nn.Linear(4, 1)
        self.width = width

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return (self.net(batch[0]) - batch[1]).square().mean()


class Alone(Net):
    """Brings its data itself."""

    def train_dataloader(self) -> DataLoader:
        return Data().train_dataloader()


class Data(pl.LightningDataModule):
    def __init__(self, batch_size: int = 8) -> None:
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.rows(), batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.rows(), batch_size=self.batch_size)

    def rows(self) -> TensorDataset:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(64, 4, generator=generator)
        return TensorDataset(x, x.sum(1, keepdim=True).sin())
