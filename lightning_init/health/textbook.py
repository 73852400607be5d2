"""The textbook's absolute limits, one rule each: the profile `textbook`, used on request only.

They are quoted everywhere and fire on most healthy networks (at least one of the four on 32 of 36):
residual branches, norm layers and loss reductions set the absolute size of outputs and gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Annotated

from lightning_init.architecture.arguments import Range
from lightning_init.architecture.readings import LayerReading, Readings
from lightning_init.health.findings import Cause, Finding, found
from lightning_init.health.places import and_more, matrices
from lightning_init.health.registry import Factor, Share, detector

STD_HIGH = 5.0
STD_LOW = 0.1
MAGNITUDE = 1000.0
GRADIENT = 1e-5
GRADIENT_RATIO = 100.0
SATURATED = 0.5
ZEROS = 0.7
UPDATE_HIGH = 1e-1
UPDATE_LOW = 1e-4
STEPS = 10

Size = Annotated[float, Range(0.0, 1e12)]
_CAUTION = "an absolute limit, which healthy networks break too: see docs/detectors/textbook.md"


@detector(order=100, profile="textbook")
def textbook_std(
    readings: Readings, *, low: Size = STD_LOW, high: Size = STD_HIGH
) -> Iterator[Finding]:
    """Outputs of a layer with a standard deviation above 5 or below 0.1.

    Args:
        readings: What was measured.
        low: Smallest std.
        high: Largest std.
    """
    yield from _layers(
        readings, "textbook_std", lambda layer: layer.std, high, "has std", above=True
    ) or _layers(readings, "textbook_std", lambda layer: layer.std, low, "has std", above=False)


@detector(order=101, profile="textbook")
def textbook_magnitude(readings: Readings, *, limit: Size = MAGNITUDE) -> Iterator[Finding]:
    """An output of a magnitude above 1000.

    Args:
        readings: What was measured.
        limit: Largest magnitude.
    """
    yield from _layers(
        readings, "textbook_magnitude", lambda layer: layer.absmax, limit, "reaches", above=True
    )


@detector(order=102, profile="textbook")
def textbook_gradient(readings: Readings, *, limit: Size = GRADIENT) -> Iterator[Finding]:
    """A gradient of a layer's output or of a parameter with rms below 1e-5.

    Args:
        readings: What was measured.
        limit: Smallest rms.
    """
    for reading in readings.steps:
        sizes = [(layer.name, layer.grad_rms) for layer in reading.layers]
        sizes += [(one.name, one.grad_rms) for one in reading.weights if one.trainable]
        odd = [one for one in sizes if one[1] < limit]
        if odd:
            where, size = odd[0]
            yield _finding(
                "textbook_gradient", where, reading.step, size, limit,
                f"the gradient at {and_more([name for name, _ in odd], 'place')} has rms "
                f"{size:.3g} (limit {limit:g})",
            )  # fmt: skip
            return


@detector(order=103, profile="textbook")
def textbook_gradient_ratio(
    readings: Readings, *, limit: Factor = GRADIENT_RATIO
) -> Iterator[Finding]:
    """Gradient norms of weight matrices of which one is more than 100 times another.

    Args:
        readings: What was measured.
        limit: Largest ratio.
    """
    for reading in readings.steps:
        norms = [
            (one.grad_rms * math.sqrt(one.numel), one.name)
            for one in matrices(reading)
            if one.grad_rms > 0
        ]
        if norms and max(norms)[0] > limit * min(norms)[0]:
            ratio = max(norms)[0] / min(norms)[0]
            yield _finding(
                "textbook_gradient_ratio", min(norms)[1], reading.step, ratio, limit,
                f"the gradient of {max(norms)[1]} is {ratio:.3g} times that of {min(norms)[1]} "
                f"(limit {limit:g})",
            )  # fmt: skip
            return


@detector(order=104, profile="textbook")
def textbook_loss(
    readings: Readings, *, steps: Annotated[int, Range(1, 100_000)] = STEPS
) -> Iterator[Finding]:
    """A loss that is not lower after 10 steps than before the first.

    Args:
        readings: What was measured.
        steps: So many steps.
    """
    first, last = readings.loss.get(0, math.nan), readings.loss.get(steps, math.nan)
    if last >= first:
        yield _finding(
            "textbook_loss", "loss", steps, last, first,
            f"the loss is {last:.4g} after {steps} steps, {first:.4g} before",
        )  # fmt: skip


@detector(order=105, profile="textbook")
def textbook_saturation(readings: Readings, *, limit: Share = SATURATED) -> Iterator[Finding]:
    """More than half of the outputs of a tanh or sigmoid where it is flat.

    Args:
        readings: What was measured.
        limit: Largest share.
    """
    yield from _layers(
        readings, "textbook_saturation",
        lambda layer: layer.after.saturated if layer.after else math.nan, limit,
        "feeds a nonlinearity with a saturated share of", above=True,
    )  # fmt: skip


@detector(order=106, profile="textbook")
def textbook_zeros(readings: Readings, *, limit: Share = ZEROS) -> Iterator[Finding]:
    """More than 70 % of the outputs of a nonlinearity exactly zero.

    Args:
        readings: What was measured.
        limit: Largest share.
    """
    yield from _layers(
        readings, "textbook_zeros", lambda layer: layer.after.zeros if layer.after else math.nan,
        limit, "feeds a nonlinearity with a share of zeros of", above=True,
    )  # fmt: skip


@detector(order=107, profile="textbook")
def textbook_update(
    readings: Readings, *, low: Size = UPDATE_LOW, high: Size = UPDATE_HIGH
) -> Iterator[Finding]:
    """An update of a weight matrix above 1e-1 or below 1e-4 of its norm.

    Args:
        readings: What was measured.
        low: Smallest ratio.
        high: Largest ratio.
    """
    for reading in readings.steps:
        for weight in matrices(reading):
            if weight.update > high or weight.update < low:
                limit = high if weight.update > high else low
                yield _finding(
                    "textbook_update", weight.name, reading.step, weight.update, limit,
                    f"an update of {weight.name} is {weight.update:.3g} of its norm "
                    f"(limit {limit:g})",
                )  # fmt: skip
                return


def _layers(
    readings: Readings,
    name: str,
    value: Callable[[LayerReading], float],
    limit: float,
    text: str,
    *,
    above: bool,
) -> list[Finding]:
    """The first step at which a layer is beyond a limit, as a list of one finding or none."""
    for reading in readings.steps:
        odd = [
            layer
            for layer in reading.layers
            if (value(layer) > limit if above else value(layer) < limit)
        ]
        if odd:
            size = value(odd[0])
            message = f"{and_more([one.name for one in odd])} {text} {size:.3g} (limit {limit:g})"
            return [_finding(name, odd[0].name, reading.step, size, limit, message)]
    return []


def _finding(name: str, where: str, step: int, value: float, limit: float, text: str) -> Finding:
    cause = Cause("init scale", _CAUTION, 'compare with the default rules: profile="default"')
    return found(name, "error", where, step, value, limit, text, [cause])
