"""Find an init for a model in four lines beside its training script: `python -m examples.tuner`."""

import lightning.pytorch as pl

from examples.digits import Digits, DigitsMLP
from lightning_init import InitTuner
from lightning_init.search.tuned import TunedResult


def main() -> tuple[pl.Trainer, TunedResult]:
    """Search, apply what was found, train."""
    pl.seed_everything(1)
    model, data = DigitsMLP(depth=20, width=32), Digits()
    trainer = pl.Trainer(max_steps=150, accelerator="cpu", gradient_clip_val=1.0, logger=False)

    found = InitTuner(trainer).find(
        model,
        data,
        trials=6,
        steps=40,
        strategies=("xavier_normal", "orthogonal"),
        monitor="val_acc",
    )
    print(*found.notes, found.verdict(), sep="\n")
    found.apply()  # the winner's weights and learning rate; nothing if nothing beats your own

    trainer.fit(model, data)
    return trainer, found


if __name__ == "__main__":
    main()
