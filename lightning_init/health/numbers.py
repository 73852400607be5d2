"""The rule on NaN and infinity: which tensor first, and where it came from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

from lightning_init.architecture.arguments import Range
from lightning_init.architecture.readings import Readings
from lightning_init.health.findings import Finding
from lightning_init.health.registry import detector


@detector(order=0)
def non_finite(
    readings: Readings, *, patience: Annotated[int, Range(1, 1000)] = 5
) -> Iterator[Finding]:
    """NaN or infinity in a loss, an output, a weight or a gradient; the first place is named.

    Args:
        readings: What was measured.
        patience: Steps in a row that a gradient scaler may skip before it counts.
    """
    lost = [step for step, loss in sorted(readings.loss.items()) if not math.isfinite(loss)]
    if len(lost) < (patience if readings.skips_allowed else 1):
        lost = []
    for reading in readings.steps:
        if lost and lost[0] < reading.step:
            break
        # Later on an update has spread it to every weight; only the first reading tells whose it is.
        own = reading.weights if reading.step == 0 else ()
        weight = next((w for w in own if not math.isfinite(w.std)), None)
        layer = next((one for one in reading.layers if not one.finite), None)
        gradient = next((w for w in reading.weights if not w.finite), None)
        if readings.skips_allowed:
            gradient = None  # an overflowing gradient is how a scaler finds its scale
        if weight is not None:
            yield _non_finite(weight.name, reading.step, f"{weight.name} itself is not finite")
            return
        if layer is not None:
            yield _non_finite(layer.name, reading.step, f"the output of {layer.name} is not finite")
            return
        if gradient is not None:
            text = f"{gradient.name} or its gradient is not finite"
            yield _non_finite(gradient.name, reading.step, text)
            return
    if lost:
        yield _non_finite("loss", lost[0], "the loss is not finite")


def _non_finite(where: str, step: int, symptom: str) -> Finding:
    at_start = step == 0
    cause = (
        "NaN in a weight or in the data, or values so large that a sum overflows"
        if at_start
        else "learning rate too high, NaN in the data of this step, or weights too large"
    )
    remedy = (
        'check the batch with torch.isfinite, then a smaller scale: InitCallback("auto"), or '
        'params={"scale": 0.5}'
        if at_start
        else "a 10 times smaller learning rate or gradient clipping "
        "(Trainer(gradient_clip_val=1.0)); then params={'scale': 0.5}"
    )
    return Finding("non_finite", "error", where, step, math.nan, math.inf, symptom, cause, remedy)
