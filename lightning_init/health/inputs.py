"""The rule on data: what the first layers take should be about N(0, 1)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

from lightning_init.architecture.arguments import Range
from lightning_init.architecture.readings import InputReading, Readings
from lightning_init.health.drawn import falls
from lightning_init.health.evidence import ranked
from lightning_init.health.findings import Cause, Finding, Severity, found
from lightning_init.health.places import and_more
from lightning_init.health.registry import Factor, detector

Size = Annotated[float, Range(0.0, 1e12)]


# Neither growth from layer to layer, symmetry nor norms that are off come from the data.
@detector(
    order=8,
    explains=(
        *("dead_units", "saturated_units", "saturated_attention", "collapsed_samples"),
        *("initial_loss", "zero_gradients", "frozen_layers", "uneven_gradients", "update_ratio"),
        *("loss_blow_up", "loss_oscillates", "loss_flat", "loss_crash", "worse_than_shallow"),
    ),
)
def input_scale(
    readings: Readings,
    *,
    note: Size = 3.0,
    large: Size = 10.0,
    huge: Size = 50.0,
    small: Size = 0.02,
    shift: Factor = 5.0,
    spread: Factor = 1e3,
    start: Factor = 20.0,
) -> Iterator[Finding]:
    """Data that are not normalized: their rms, mean / std, or the spread of their features.

    What goes straight into a norm layer is exempt, images in [0, 1] are within the limits.

    Args:
        readings: What was measured.
        note: Root mean square above which it is an info.
        large: Root mean square above which it is a warning.
        huge: Root mean square above which it is an error if the layer that takes it saturates
            or is recurrent, if the loss does not fall, or if it started `start` times too high.
        small: Largest magnitude below which it is a warning.
        shift: Standard deviations that the mean may be away from 0 (if it is more than 1).
        spread: Largest over smallest standard deviation of a feature (if some are `large`).
        start: First loss over the lowest of the next 20 steps from which the scale of the data was
            most of it.
    """
    for reading in readings.steps[:1]:
        seen = [one for one in reading.inputs if one.finite and not one.normalized]
        first = {layer.name: layer for layer in reading.layers}
        odd = [one for one in seen if one.rms > note]
        if odd:
            worst = max(odd, key=lambda one: one.rms)
            layer = first.get(worst.name)
            after = layer.after if layer else None
            flat = after is not None and after.saturated > 0.5
            # The gates of a recurrent layer are flat beyond 4 or so.
            flat = flat or any(
                one.role == "recurrent" and one.module == worst.name for one in reading.weights
            )
            severity: Severity = "warning" if worst.rms > large else "info"
            flat = flat or _started_high(readings, start)
            if worst.rms > huge and (flat or falls(readings) is False):
                severity = "error"
            limit = {"info": note, "warning": large, "error": huge}[severity]
            text = f"{describe(worst)}: rms {worst.rms:.3g} (limit {limit:g})"
            if layer is not None and math.isfinite(layer.rms):
                text += f"; the first outputs have rms {layer.rms:.3g} instead of about 1"
            yield _finding(readings, severity, odd, worst, worst.rms, limit, text)
            return
        for one in seen:
            away = abs(one.mean) / one.std if one.std > 0 else 0.0
            if abs(one.mean) > 1 and away > shift:
                text = f"{describe(one)}: the mean is {away:.3g} std away from 0 (limit {shift:g})"
                yield _finding(readings, "warning", [one], one, away, shift, text)
                return
            if 0 < one.absmax < small:
                text = f"{describe(one)}: none is larger than {one.absmax:.3g} (limit {small:g})"
                yield _finding(readings, "warning", [one], one, one.absmax, small, text)
                return
            if one.spread > spread and one.absmax > large:
                text = (
                    f"the features that {one.name} takes differ {one.spread:.3g} times in their "
                    f"std (limit {spread:g}): the small ones are not seen"
                )
                yield _finding(readings, "warning", [one], one, one.spread, spread, text)
                return


def _started_high(readings: Readings, times: float) -> bool:
    first = readings.loss.get(0, math.nan)
    later = [loss for step, loss in readings.loss.items() if 5 <= step <= 20 and loss > 0]
    return bool(later) and first > times * min(later)


def describe(one: InputReading) -> str:
    """The data in words: what they look like, and their numbers.

    Example:
        >>> describe(InputReading("conv1", 127.0, 74.0, 147.0, 255.0))
        'the data that conv1 takes are pixels up to 255 (mean 127, std 74)'
    """
    pixels = 200 < one.absmax <= 255 and one.mean > 0
    what = f"pixels up to {one.absmax:.3g}" if pixels else "not normalized"
    return f"the data that {one.name} takes are {what} (mean {one.mean:.3g}, std {one.std:.3g})"


def _finding(
    readings: Readings,
    severity: Severity,
    odd: list[InputReading],
    worst: InputReading,
    value: float,
    limit: float,
    text: str,
) -> Finding:
    more = and_more([worst.name, *(one.name for one in odd if one is not worst)], "input")
    pixels = 200 < worst.absmax <= 255
    remedy = (
        "x = (x / 255 - mean) / std, e.g. torchvision.transforms.Normalize"
        if pixels
        else "x = (x - mean) / std, each feature with its own (from the training data), or a norm "
        "layer first"
    )
    cause = Cause("data scale", f"the batch itself, at {more}; no initialization mends it", remedy)
    causes = [cause, *(one for one in ranked(readings) if one.name != "data scale")]
    # The name of the layer, not "data": there may be several inputs.
    return found(
        "input_scale", severity, worst.name, 0, value, limit, text, causes,
        "LeCun et al. (1998), Efficient BackProp, section 4.3",
    )  # fmt: skip
