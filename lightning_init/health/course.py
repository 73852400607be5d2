"""Rules on the course of the loss."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

from lightning_init.architecture.arguments import Range
from lightning_init.architecture.readings import Readings
from lightning_init.health.findings import Finding, Severity
from lightning_init.health.registry import Factor, detector


@detector(order=60)
def loss_blow_up(
    readings: Readings,
    *,
    factor: Factor = 3.0,
    steps: Annotated[int, Range(1, 1000)] = 3,
) -> Iterator[Finding]:
    """A training loss above its start, above chance, and `factor` times its lowest value so far.

    Args:
        readings: What was measured.
        factor: Multiple of the lowest loss so far.
        steps: So many steps in a row are an error, one is a warning.
    """
    losses = readings.steps[0].losses if readings.steps else ()
    # A start that is low by luck, or a model that knows something, may go up to chance again.
    chance = max((loss.chance for loss in losses if loss.exact), default=0.0)
    first, best, run, warned = math.nan, math.inf, 0, None
    for step, loss in sorted(readings.loss.items()):
        if not math.isfinite(loss):
            continue
        first = loss if math.isnan(first) else first
        high = loss > factor * best and loss > max(first, chance) > 0
        run = run + 1 if high else 0
        best = min(best, loss)
        if run == 1 and warned is None:
            warned = (step, loss, best)
        if run >= steps:
            yield _blow_up("error", step, loss, best, factor, f"for {run} steps in a row")
            return
    if warned is not None:
        yield _blow_up("warning", *warned, factor, "once")


def _blow_up(
    severity: Severity, step: int, loss: float, best: float, factor: float, how: str
) -> Finding:
    return Finding(
        "loss_blow_up", severity, "loss", step, loss / best, factor,
        f"the loss is {loss:.4g}, above its start and chance, and {loss / best:.3g} times its lowest value "
        f"{best:.4g}, {how}",
        "learning rate too high; then too large weights, then a bad batch",
        "a 3 to 10 times smaller learning rate, warm-up, or Trainer(gradient_clip_val=1.0)",
    )  # fmt: skip
