"""Rules on the course of the loss: it blows up, or swings.

They need the loss only, so they go on when every hook is gone. Chance is the loss of a model that
knows nothing; a start that is low by luck may go up to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from statistics import fmean, median
from typing import Annotated

from lightning_init.architecture.arguments import Range
from lightning_init.architecture.readings import Readings
from lightning_init.health.evidence import ranked
from lightning_init.health.findings import Cause, Finding, Severity, found
from lightning_init.health.motion import ceiling
from lightning_init.health.registry import Factor, Share, detector

_LEARNING_RATE = Cause(
    "learning rate",
    "too high",
    "a 3 to 10 times smaller learning rate, warm-up, or Trainer(gradient_clip_val=1.0)",
)
_INIT_SCALE = Cause(
    "init scale",
    "too large weights make too large gradients",
    'InitCallback("auto"), or params={"scale": 0.5}',
)
BAD_BATCH = Cause(
    "data",
    "a batch unlike the others: outliers, wrong labels, or data that are not shuffled",
    "look at the batch of this step; DataLoader(..., shuffle=True)",
)


@detector(
    order=60,
    explains=(
        *("loss_oscillates", "loss_flat", "non_finite", "forward_growth"),
        *("backward_growth", "dead_units", "saturated_units", "saturated_attention"),
        *("collapsed_samples", "zero_gradients", "frozen_layers", "uneven_gradients"),
        *("update_ratio",),
    ),
)
def loss_blow_up(
    readings: Readings,
    *,
    factor: Factor = 3.0,
    above: Factor = 1.5,
    steps: Annotated[int, Range(1, 1000)] = 3,
) -> Iterator[Finding]:
    """A training loss above its start and chance, and `factor` times its lowest value so far.

    Args:
        readings: What was measured.
        factor: Multiple of the lowest loss so far.
        above: Multiple of its start and chance that suffices for a loss whose chance is known
            exactly, once it has been updated.
        steps: So many steps in a row are an error, one is a warning.
    """
    top = ceiling(readings)
    losses = [loss for reading in readings.steps[:1] for loss in reading.losses]
    exact = any(loss.exact for loss in losses) and not any(loss.varies for loss in losses)
    best, run, warned = math.inf, 0, None
    for step, loss in sorted(readings.loss.items()):
        if not math.isfinite(loss):
            continue
        high = loss > top > 0 and (loss > factor * best or (exact and loss > above * top))
        run = run + 1 if high else 0
        best = min(best, loss)
        if run == 1 and warned is None:
            warned = (step, loss, best)
        if run >= steps:
            how = f"for {run} step{'s' * (run > 1)} in a row"
            yield _blow_up(readings, "error", step, loss, best, factor, how)
            return
    if warned is not None:
        yield _blow_up(readings, "warning", *warned, factor, "once")


def _blow_up(
    readings: Readings,
    severity: Severity,
    step: int,
    loss: float,
    best: float,
    factor: float,
    how: str,
) -> Finding:
    times = loss / best if best != 0 else math.inf
    return found(
        "loss_blow_up", severity, "loss", step, times, factor,
        f"the loss is {loss:.4g}, above its start and chance, and {times:.3g} times its "
        f"lowest value {best:.4g}, {how}",
        ranked(readings, _LEARNING_RATE, _INIT_SCALE, BAD_BATCH),
        "Bengio (2012), Practical recommendations for gradient-based training, section 3.1: the "
        "largest learning rate that does not diverge, then a third of it",
    )  # fmt: skip


@detector(order=62)
def loss_oscillates(
    readings: Readings,
    *,
    swing: Share = 0.5,
    turns: Share = 0.5,
    steps: Annotated[int, Range(4, 1000)] = 20,
) -> Iterator[Finding]:
    """A loss that swings up and down over its own size, and again and again above its start.

    Batches differ, so a loss turns at two of three steps in a healthy training, too: what counts
    is how far.

    Args:
        readings: What was measured.
        swing: Median change from step to step over the median loss.
        turns: Share of the steps at which the change has another sign than before.
        steps: Steps of the window, the last ones; three of them above start and chance.
    """
    top = ceiling(readings)
    course = [(step, loss) for step, loss in sorted(readings.loss.items()) if math.isfinite(loss)]
    if len(course) < steps + 1 or not top > 0:
        return
    for start in range(1, len(course) - steps + 1, max(1, steps // 4)):
        window = course[start : start + steps]
        losses = [loss for _, loss in window]
        changes = [later - earlier for earlier, later in pairwise(losses)]
        signs = [one * other < 0 for one, other in pairwise(changes)]
        if not median(losses) > 0:
            continue
        size = median(abs(change) for change in changes) / median(losses)
        over = [loss for loss in losses if loss > top]
        if size > swing and fmean(signs) >= turns and len(over) >= 3:
            yield found(
                "loss_oscillates", "warning", "loss", window[-1][0], size, swing,
                f"from step {window[0][0]} to {window[-1][0]} the loss swings between "
                f"{min(losses):.3g} and {max(losses):.3g}, from one step to the next by {size:.0%} "
                f"of its median (limit {swing:.0%}), {len(over)} times above its start and chance",
                ranked(readings, _LEARNING_RATE, BAD_BATCH, _INIT_SCALE),
            )  # fmt: skip
            return
