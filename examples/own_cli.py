"""A LightningCLI of one's own, with `search` beside fit: `python -m examples.own_cli search ...`.

Model and data are fixed, so a configuration needs no class_path; it has a key of its own
(`label_noise`) and a link (the batch size reaches the model, which scales its learning rate).
"""

import torch
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from examples.digits import Digits, DigitsMLP
from lightning_init import SearchMixin


class ScaledMLP(DigitsMLP):
    """Its learning rate is for batches of 64; others change it in proportion."""

    def __init__(
        self, depth: int = 20, width: int = 32, lr: float = 0.03, batch_size: int = 64
    ) -> None:
        super().__init__(depth, width, "tanh", lr * batch_size / 64)


class NoisyDigits(Digits):
    """Some labels are wrong: how many, the command line says."""

    label_noise = 0.0

    def setup(self, stage: str) -> None:
        """Replace a share of the training labels, always the same ones."""
        super().setup(stage)
        generator = torch.Generator().manual_seed(1)
        _, labels = self.train.tensors
        wrong = torch.rand(len(labels), generator=generator) < self.label_noise
        labels[wrong] = torch.randint(10, (int(wrong.sum()),), generator=generator)


class CLI(SearchMixin, LightningCLI):
    """A key and a link of its own."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add them."""
        parser.add_argument("--label_noise", type=float, default=0.0)
        parser.link_arguments("data.batch_size", "model.batch_size")

    def after_instantiate_classes(self) -> None:
        """Tell the data."""
        self.datamodule.label_noise = self.config[self.subcommand].label_noise


def main() -> None:
    """Fit, validate, test, predict or search."""
    defaults = {"max_steps": 150, "accelerator": "cpu", "gradient_clip_val": 1.0}
    CLI(
        ScaledMLP,
        NoisyDigits,
        trainer_defaults=defaults,
        seed_everything_default=1,
        save_config_kwargs={"overwrite": True},
    )


if __name__ == "__main__":
    main()
