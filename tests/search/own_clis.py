"""LightningCLIs as users write them: class-bound, with keys, links, defaults and hooks of their own."""

import sys
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Counted(Callback):
    """Remembers in how many fits it was."""

    def __init__(self) -> None:
        self.fits = 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.fits += 1


class Rows(pl.LightningDataModule):
    def __init__(self, batch_size: int = 8, features: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.batch_size, self.features = batch_size, features

    @property
    def inputs(self) -> int:
        return self.features

    def _loader(self, shuffle: bool) -> DataLoader[Any]:
        x = torch.randn(64, self.features, generator=torch.Generator().manual_seed(0))
        rows = TensorDataset(x, x.sum(1, keepdim=True).sin())
        return DataLoader(rows, batch_size=self.batch_size, shuffle=shuffle)

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader(True)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader(False)


class Regressor(pl.LightningModule):
    """Knows its learning rate by its hyperparameters only."""

    def __init__(
        self, inputs: int, width: int = 8, lr: float = 0.1, batch_size: int = 0, bias: bool = True
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(inputs, width, bias), nn.Tanh(), nn.Linear(width, 1))
        self.shift = 0.0

    def training_step(self, batch: list[Tensor]) -> Tensor:
        loss: Tensor = (self.net(batch[0]) + self.shift - batch[1]).square().mean()
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor]) -> None:
        self.log("val_loss", (self.net(batch[0]) + self.shift - batch[1]).square().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.hparams["lr"])


class Biased(Regressor):
    """Takes what its base takes, and more."""

    def __init__(self, inputs: int, bias_at: float = 0.0, lr: float = 0.1) -> None:
        super().__init__(inputs, lr=lr)
        self.save_hyperparameters()


class CLI(LightningCLI):
    """A key of its own, links on parsing and on building, hooks that use them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.mark = "set before"
        super().__init__(*args, **kwargs)
        raise RuntimeError("after the constructor of LightningCLI nothing is run")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--shift", type=float, default=0.25)
        parser.add_argument("--run_name", type=str, default="run")
        parser.link_arguments("data.batch_size", "model.batch_size")
        parser.link_arguments("data.inputs", "model.inputs", apply_on="instantiate")
        parser.add_lightning_class_args(EarlyStopping, "early")
        parser.set_defaults({"early.monitor": "val_loss"})

    def before_instantiate_classes(self) -> None:
        assert self.mark == "set before"
        config = self.config[self.subcommand]
        if config.trainer.logger:
            config.trainer.logger.init_args.version = config.run_name

    def after_instantiate_classes(self) -> None:
        self.model.shift = self.config[self.subcommand].shift
        self.trainer.logger.log_hyperparams({"shift": self.model.shift})

    def before_fit(self) -> None:
        with torch.no_grad():
            self.model.net[0].weight.mul_(0.5)


def main() -> None:
    assert sys.argv[1:] == [], "the command line is not for this function"
    CLI(
        Regressor,
        Rows,
        trainer_defaults={
            "max_epochs": 3,
            "gradient_clip_val": 0.5,
            "accelerator": "cpu",
            "callbacks": [Counted(), ModelCheckpoint(monitor="val_loss")],
        },
        seed_everything_default=7,
    )


def catches_everything() -> None:
    try:
        main()
    except Exception:
        raise AssertionError("never comes here") from None


class Bound(LightningCLI):
    """Called without arguments it is whole."""

    def __init__(self) -> None:
        super().__init__(Regressor, Rows, run=False, auto_configure_optimizers=False)


def not_run() -> None:
    cli = LightningCLI(Regressor, Rows, run=False, seed_everything_default=3)
    cli.trainer.fit(cli.model, cli.datamodule)


def of_subclasses() -> None:
    LightningCLI(Regressor, subclass_mode_model=True, datamodule_class=Rows)


def explicit_arguments() -> None:
    LightningCLI(Regressor, Rows, args=["fit", "--model.inputs=4"])


def nothing() -> None:
    """Makes no LightningCLI."""


def fails() -> None:
    raise OSError("no such\ntable")


def leaves() -> None:
    sys.exit("usage: me")


def needs(path: str) -> None:
    del path


if __name__ == "__main__":
    main()
