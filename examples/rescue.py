"""A network that cannot learn as it is built, found before the first step and drawn again."""

import lightning.pytorch as pl

from examples.digits import Digits, DigitsMLP
from lightning_init import InitCallback


def main() -> tuple[pl.Trainer, InitCallback]:
    """Thirty tanh layers as PyTorch draws them: gradients vanish, and a rescue gets them back."""
    pl.seed_everything(1, verbose=False)
    rescue = InitCallback("keep", on_unhealthy="rescue", monitor_steps=20)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=150,
        gradient_clip_val=1.0,
        callbacks=[rescue],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(DigitsMLP(depth=30), Digits())
    return trainer, rescue


if __name__ == "__main__":
    trainer, rescue = main()
    report = rescue.report
    assert report is not None
    for attempt in report.attempts:
        print(attempt)
    print(report)
    print(f"validation accuracy {float(trainer.callback_metrics['val_acc']):.3f}")
