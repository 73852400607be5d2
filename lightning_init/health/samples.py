"""The rule on samples that the model no longer tells apart."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

from lightning_init.architecture.arguments import Range
from lightning_init.architecture.readings import LayerReading, Readings, StepReading
from lightning_init.health.drawn import falls, most_are_small
from lightning_init.health.evidence import ranked
from lightning_init.health.findings import Cause, Finding, Severity, found
from lightning_init.health.registry import Share, detector

_LOSS = ("loss_blow_up", "loss_oscillates", "loss_flat", "loss_crash", "worse_than_shallow")


@detector(order=38, explains=("zero_gradients", "uneven_gradients", *_LOSS))
def collapsed_samples(
    readings: Readings,
    *,
    limit: Share = 0.999,
    note: Share = 0.99,
    same: Share = 0.99999,
    late: Annotated[int, Range(1, 1_000_000)] = 20,
) -> Iterator[Finding]:
    """Different samples that give the same output at the end of the model: cosine near 1.

    Healthy deep nets may start so. It is an error if they are the same at two steps that were read,
    the last of them late, and the loss does not fall (a warning if it is not known whether it
    does); or if they are alike at the start, and the weights are too small or biases shut the
    layers.

    Args:
        readings: What was measured.
        limit: Mean cosine between samples above which it counts.
        note: Cosine above which it is an info.
        same: Cosine above which, again and again, it may be an error.
        late: Step from which on it may be an error.
    """
    hits: list[tuple[StepReading, LayerReading]] = []
    noted: tuple[StepReading, LayerReading] | None = None
    for reading in readings.steps:
        last = _last(reading)
        if last is None:
            continue
        if likeness(last) > limit:
            hits.append((reading, last))
        elif likeness(last) > note and noted is None:
            noted = reading, last
    again = [reading for reading, last in hits if likeness(last) > same]
    twice = len(again) > 1 and again[-1].step >= late
    place = hits[0] if hits else noted
    if place is None:
        return
    severity: Severity = "info"
    if hits:
        if twice and falls(readings) is not True:
            severity = "error" if falls(readings) is False else "warning"
        if hits[0][0].step == 0 and (most_are_small(readings) or _shut(readings)):
            severity = "error"
    reading, last = place
    bound = limit if hits else note
    yield found(
        "collapsed_samples", severity, last.name, again[-1].step if twice else reading.step,
        likeness(last), bound,
        f"the outputs of {last.name} are the same for all samples: mean cosine "
        f"{likeness(last):.5g} (limit {bound:g})",
        ranked(
            readings,
            Cause(
                "depth",
                "each layer brings samples closer to each other, or a bias outweighs the input",
                'InitCallback("orthogonal") or "lsuv", biases at 0, residual connections',
            ),
            Cause(
                "data",
                "the samples of the batch are the same, or next to it",
                "look at the batch: x.std(0)",
            ),
        ),
        "Dong et al. (2021), https://arxiv.org/abs/2103.03404",
    )  # fmt: skip


def likeness(layer: LayerReading) -> float:
    """Mean cosine between the outputs of two samples.

    One number per sample has a cosine of 1 whenever the signs agree: there it is the share that all
    samples have in common, mean^2 / rms^2, to which the cosine of many numbers tends.
    """
    if math.isnan(layer.unit_cosine) and layer.rms > 0:
        return min(layer.sample_cosine, (layer.mean / layer.rms) ** 2)
    return layer.sample_cosine


def _shut(readings: Readings) -> bool:
    """Whether biases outweigh what the weights make of data that are about N(0, 1)."""
    return any(one.role == "bias" and one.rms > 3 for one in readings.steps[0].weights)


def _last(reading: StepReading) -> LayerReading | None:
    """The last weight layer that ran, or the last whose samples were compared."""
    compared = [one for one in reading.layers if math.isfinite(one.sample_cosine)]
    return next((one for one in compared if one.is_output), compared[-1] if compared else None)
