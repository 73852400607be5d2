"""Rules on weights before the first step: against the plan that drew them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

from lightning_init.architecture.arguments import Range
from lightning_init.architecture.readings import Readings, WeightReading
from lightning_init.health.findings import Finding, Severity
from lightning_init.health.registry import Factor, detector


@detector(order=10)
def scheme_audit(
    readings: Readings,
    *,
    z_limit: Annotated[float, Range(1.0, 100.0)] = 5.0,
    warn_ratio: Factor = 1.25,
    error_ratio: Factor = 3.0,
) -> Iterator[Finding]:
    """Weights whose mean or std before the first step is not what the plan drew.

    Args:
        readings: What was measured.
        z_limit: Standard errors that a deviation must exceed to count at all.
        warn_ratio: Ratio of stds from which it is a warning.
        error_ratio: Ratio of stds from which it is an error.
    """
    for reading in readings.steps[:1]:
        for weight in reading.weights:
            if reading.step == 0 and math.isfinite(weight.expected_std) and weight.finite:
                yield from _against_plan(weight, z_limit, warn_ratio, error_ratio)


def _against_plan(
    weight: WeightReading, z_limit: float, warn_ratio: float, error_ratio: float
) -> Iterator[Finding]:
    cause = (
        "code that ran after the initialization wrote it (a hook, configure_model, a checkpoint), "
        "or it is tied to a tensor that was written later"
    )
    remedy = "list InitCallback after that code, or name the tensor in `overrides`"

    def finding(severity: Severity, value: float, limit: float, text: str) -> Finding:
        return Finding(
            "scheme_audit", severity, weight.name, 0, value, limit, text, cause, remedy,
            "std error of a sample: std / sqrt(2 n)",
        )  # fmt: skip

    drawn = weight.drawn or "the plan"
    if weight.expected_std <= 1e-6 * abs(weight.expected_mean):  # all the same, but for rounding
        shift, size = abs(weight.mean - weight.expected_mean), abs(weight.expected_mean)
        off = math.hypot(weight.std, shift)
        # bfloat16 rounds to 8 digits, but all values alike.
        if weight.std > 1e-6 * max(1.0, size) or shift > max(1e-6, 2**-8 * size):
            severity: Severity = "error" if off > 1 else "warning"
            text = f"differs by {off:.3g} (rms) from what was written: {drawn}"
            yield finding(severity, off, 0.0, text)
        return
    error = weight.expected_std / math.sqrt(2 * weight.numel)
    ratio = weight.std / weight.expected_std
    factor = max(ratio, 1 / ratio) if ratio > 0 else math.inf
    if abs(weight.std - weight.expected_std) > z_limit * error and factor > warn_ratio:
        severity = "error" if factor > error_ratio else "warning"
        text = f"std {weight.std:.3g}, drawn with {weight.expected_std:.3g} ({drawn})"
        yield finding(severity, factor, error_ratio if severity == "error" else warn_ratio, text)
        return
    shift = abs(weight.mean - weight.expected_mean) / weight.expected_std
    if shift > z_limit / math.sqrt(weight.numel) and shift > 0.25:
        text = f"mean {weight.mean:.3g}, drawn with {weight.expected_mean:.3g} ({drawn})"
        yield finding("error" if shift > 1 else "warning", shift, 0.25, text)
