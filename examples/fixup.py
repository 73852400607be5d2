"""A residual network without normalization, as Fixup has it, on handwritten digits."""

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from examples.digits import Batch, Digits
from lightning_init import InitCallback, add_branch_scales_, param_groups, remove_norms_


class Block(nn.Module):
    """x + f(x) with two convolutions and their norms."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(x + self.norm2(self.conv2(out)))


class ResNet(pl.LightningModule):
    """The structure changes belong where the model is built, so that checkpoints fit."""

    def __init__(self, depth: int = 6, width: int = 16, lr: float = 0.1) -> None:
        super().__init__()
        self.lr = lr
        stem = nn.Conv2d(1, width, 3, padding=1)
        blocks = [Block(width) for _ in range(depth)]
        ends = (nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * width, 10))
        self.net = nn.Sequential(nn.Unflatten(1, (1, 8)), stem, *blocks, *ends)
        remove_norms_(self.net)
        look = torch.zeros(2, 8, 8)
        add_branch_scales_(self.net, "fixup", forward=lambda: self.net(look))

    def training_step(self, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0].view(-1, 8, 8)), batch[1])

    def validation_step(self, batch: Batch) -> None:
        found = self.net(batch[0].view(-1, 8, 8)).argmax(1)
        self.log("val_acc", (found == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # A tenth of the learning rate for the scalars, as the paper has it.
        return torch.optim.SGD(param_groups(self, None, lr=self.lr), lr=self.lr, momentum=0.9)


if __name__ == "__main__":
    pl.seed_everything(0)
    trainer = pl.Trainer(
        max_epochs=5, accelerator="cpu", gradient_clip_val=1.0, callbacks=[InitCallback("fixup")]
    )
    trainer.fit(ResNet(), Digits())
    print(f"val_acc {trainer.callback_metrics['val_acc']:.3f}")
