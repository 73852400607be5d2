"""Which steps of a watch are read layer by layer, and when the losses are looked at."""

from __future__ import annotations

import lightning.pytorch as pl

EVERY = 5  # steps at most between two looks at the losses, while layers are watched
RARELY = 50  # and afterwards
BESIDE = (2, 20)  # updates at which a compiled model is read in an eager pass of its own


def sampled(step: int, monitor_steps: int) -> bool:
    """Whether a step is read layer by layer: 0, 1, 2, 5, 10, 20, 50, 100, ... and the last one.

    Example:
        >>> [step for step in range(30) if sampled(step, 30)]
        [0, 1, 2, 5, 10, 20, 29]
    """
    if not 0 <= step < monitor_steps:
        return False
    leading = step // 10 ** (len(str(step)) - 1)
    round_number = step == leading * 10 ** (len(str(step)) - 1) and leading in (0, 1, 2, 5)
    return round_number or step == monitor_steps - 1


def ends_window(batch: int, accumulated: int, is_last: bool) -> bool:
    """Whether an optimizer steps after a batch.

    Args:
        batch: Its number in the epoch, from 0.
        accumulated: Batches whose gradients are summed.
        is_last: Whether it is the last of the epoch.

    Example:
        >>> [batch for batch in range(8) if ends_window(batch, 3, batch == 7)]
        [2, 5, 7]
    """
    return is_last or (batch + 1) % accumulated == 0


def window(trainer: pl.Trainer, module: pl.LightningModule) -> int:
    """Batches whose gradients Lightning sums before it steps."""
    return trainer.accumulate_grad_batches if module.automatic_optimization else 1
