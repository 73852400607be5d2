"""Rules on the first loss: against chance, and against what it is given."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

from lightning_init.architecture.arguments import Range
from lightning_init.architecture.readings import Readings
from lightning_init.health.findings import Finding
from lightning_init.health.registry import Factor, Share, detector


@detector(order=40)
def initial_loss(
    readings: Readings,
    *,
    low: Share = 0.5,
    high: Factor = 1.5,
    note_low: Share = 0.8,
    note_high: Factor = 1.3,
    excess: Annotated[float, Range(0.0, 100.0)] = 1.0,
    order_of_magnitude: Factor = 10.0,
) -> Iterator[Finding]:
    """A loss before the first step that is not about that of a model that knows nothing.

    Args:
        readings: What was measured.
        low: Fraction of chance below which it is an error (the target leaks).
        high: Factor above chance from which it is an error.
        note_low: Fraction of chance below which it is a warning.
        note_high: Factor above chance from which it is a warning.
        excess: Nats above chance that an error needs too, a warning half of them: with two classes
            a factor is soon reached.
        order_of_magnitude: Factor from which regression, whose outputs add their own variance, is
            a warning; its cube is an error.
    """
    for reading in readings.steps[:1]:
        if reading.step != 0:
            return
        for loss in reading.losses:
            if not (math.isfinite(loss.value) and loss.chance > 0 and loss.prior >= 0):
                continue
            above = loss.value / loss.chance
            floor = min(loss.chance, loss.prior)
            below = loss.value / floor if floor > 0 else math.inf
            over = loss.value - loss.chance if loss.exact else math.inf
            upper = (high, note_high)
            if not loss.exact:
                upper = (order_of_magnitude**3, order_of_magnitude)
            if above > upper[1] and over > excess / 2:
                error = above > upper[0] and over > excess
                yield Finding(
                    "initial_loss", "error" if error else "warning", "loss", 0, above,
                    upper[0] if error else upper[1],
                    f"{loss.kind} starts at {loss.value:.4g}, {above:.2f} times the "
                    f"{loss.chance:.4g} of a model that knows nothing",
                    "an output layer with too large weights, inputs that are not normalized, or "
                    "exploding outputs before it",
                    'draw the output layer small: overrides={"<head>.weight": {"strategy": '
                    '"normal", "params": {"std": 0.01}}}, or InitCallback("auto"); scale inputs '
                    "to mean 0 and std 1",
                    "Karpathy (2019), A Recipe for Training Neural Networks: verify loss @ init",
                )  # fmt: skip
            elif loss.exact and below < note_low and not readings.trained:
                error = below < low
                yield Finding(
                    "initial_loss", "error" if error else "warning", "loss", 0, below,
                    low if error else note_low,
                    f"{loss.kind} starts at {loss.value:.4g}, below the {floor:.4g} that the best "
                    "constant answer reaches: the model knows before it has learned",
                    "trained weights that were loaded, the target among the inputs, or a target "
                    "shifted by one the wrong way",
                    "check what the batch holds; for a loaded model this is as it should be",
                    "Karpathy (2019), A Recipe for Training Neural Networks: verify loss @ init",
                )  # fmt: skip
