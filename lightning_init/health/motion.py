"""How far the updates move the weights: ratios and lengths, of the tensors of which they tell.

A ratio says little where a weight started at or near zero, as residual tails, position tables and
small heads do on purpose: rules take the median over the matrices, and count a small weight as if
it were of usual size, 0.5 / sqrt(fan_in). The length of an update, its rms times sqrt(fan_in), is
about what it adds to an output of unit input; it does not depend on how large the weight is.
"""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import median

from lightning_init.architecture.readings import Readings, StepReading, WeightReading
from lightning_init.health.places import MATRICES

_USUAL = 0.5  # rms(w) sqrt(fan_in); torch draws 0.58, kaiming 1.4


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
        if weight.role in MATRICES
        and weight.trainable
        and weight.numel >= 16
        and weight.name not in zeros
        and not math.isnan(weight.update)
    ]


def typical_ratios(readings: Readings) -> dict[int, float]:
    """Median over the matrices of norm(update) / norm(weight), by step.

    The first update is rarely read, but the weights before and after it are.

    Example:
        >>> fc = WeightReading("fc", 64, 0.0, 0.1, role="weight", fan_in=64.0, update=0.01)
        >>> typical_ratios(Readings((StepReading(1, weights=(fc,)),)))
        {1: 0.01}
    """
    found = {}
    for reading in readings.steps:
        ratios = [weight.update * _size(weight) for weight in moving(readings, reading)]
        if ratios:
            found[reading.step] = median(ratios)
    first = [reading for reading in readings.steps if reading.step in (0, 1)]
    if len(first) == 2 and 0 not in found:
        started = {weight.name: weight.rms for weight in first[0].weights}
        ratios = [
            math.sqrt(max((_before(weight) / started[weight.name]) ** 2 - 1, 0.0)) * _size(weight)
            for weight in moving(readings, first[1])
            if started.get(weight.name, 0.0) > 0 and math.isfinite(weight.rms)
        ]
        if ratios:
            found = {0: median(ratios), **found}
    return found


def _before(weight: WeightReading) -> float:
    """Rms of a weight before the last update, which has no direction in common with it."""
    return weight.rms / math.hypot(1.0, weight.update) if math.isfinite(weight.update) else math.nan


def _size(weight: WeightReading) -> float:
    """1, or the size of a small weight over a usual one's."""
    size = _before(weight) * math.sqrt(weight.fan_in) / _USUAL
    return min(1.0, size) if math.isfinite(size) else 1.0


def longest(readings: Readings) -> tuple[float, int, str]:
    """The longest update of a matrix in rms times sqrt(fan_in), its step and name; 0 if none."""
    best = (0.0, 0, "")
    for reading in readings.steps:
        for weight in moving(readings, reading):
            length = weight.update * _before(weight) * math.sqrt(weight.fan_in)
            if math.isfinite(length):
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
