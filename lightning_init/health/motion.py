"""How far the updates move the weights: ratios and lengths, of the tensors of which they tell.

A ratio says little where a weight started at or near zero, as residual tails, position tables and
small heads do on purpose: the rules take medians over the matrices, or lengths. The length of an
update, its rms times sqrt(fan_in), is about what it adds to an output of unit input; it does not
depend on how large the weight is.
"""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import median

from lightning_init.architecture.readings import Readings, StepReading, WeightReading

_MATRICES = ("weight", "recurrent", "embedding")


def moving(readings: Readings, reading: StepReading) -> list[WeightReading]:
    """The matrices of one step that were updated, and did not start at zero."""
    zeros = {
        weight.name
        for first in readings.steps[:1]
        for weight in first.weights
        if weight.rms == 0 or (weight.expected_std == 0 and weight.expected_mean == 0)
    }
    return [
        weight
        for weight in reading.weights
        if weight.role in _MATRICES
        and weight.trainable
        and weight.numel >= 16
        and weight.name not in zeros
        and not math.isnan(weight.update)
    ]


def typical_ratios(readings: Readings) -> dict[int, float]:
    """Median over the matrices of update norm / weight norm, by step; NaN-free.

    Example:
        >>> fc = WeightReading("fc", 64, 0.0, 0.1, role="weight", update=0.01)
        >>> typical_ratios(Readings((StepReading(1, weights=(fc,)),)))
        {1: 0.01}
    """
    found = {}
    for reading in readings.steps:
        ratios = [weight.update for weight in moving(readings, reading)]
        if ratios:
            found[reading.step] = median(ratios)
    return found


def longest(readings: Readings) -> tuple[float, int, str]:
    """The longest update of a matrix in rms times sqrt(fan_in), its step and name; 0 if none.

    Tables have no fan-in: each row is looked up alone.
    """
    best = (0.0, 0, "")
    for reading in readings.steps:
        for weight in moving(readings, reading):
            if weight.role != "embedding" and weight.fan_in >= 1 and math.isfinite(weight.update):
                length = weight.update * weight.rms * math.sqrt(weight.fan_in)
                best = max(best, (length, reading.step, weight.name))
    return best


def ceiling(readings: Readings) -> float:
    """The first loss or chance, whichever is higher: a sane training does not rise above it.

    NaN if no loss is known.
    """
    finite = [loss for _, loss in sorted(readings.loss.items()) if math.isfinite(loss)]
    if not finite:
        return math.nan
    chances = [
        loss.chance for reading in readings.steps[:1] for loss in reading.losses if loss.exact
    ]
    return max(finite[0], *chances) if chances else finite[0]


def settled(readings: Readings) -> int:
    """The first step from which the learning rate does not rise any more: warm-up is over.

    0 if the learning rate is not known.
    """
    steps = sorted(readings.lr)
    rises = [
        later
        for earlier, later in pairwise(steps)
        if readings.lr[later] > readings.lr[earlier] * (1 + 1e-6)
    ]
    return rises[-1] if rises else 0
