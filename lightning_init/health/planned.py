"""Rules on weights before the first step: against the plan that drew them, and tied ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, NamedTuple

from lightning_init.architecture.arguments import Range
from lightning_init.architecture.readings import Readings, WeightReading
from lightning_init.health.evidence import ranked
from lightning_init.health.findings import Cause, Finding, Severity, found
from lightning_init.health.learning import too_large_tied
from lightning_init.health.places import and_more
from lightning_init.health.registry import Factor, detector

_SAMPLE = "standard error of a sample's std: std / sqrt(2 n)"


class Deviation(NamedTuple):
    """How a weight differs from what the plan drew."""

    severity: Severity
    value: float
    limit: float
    text: str


@detector(order=10, explains=("*",))
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
    off = [
        (weight, deviation)
        for weight, deviation in _deviations(readings, z_limit, warn_ratio, error_ratio)
        if len(weight.names) < 2
    ]
    if not off:
        return
    weight, deviation = min(off, key=lambda one: one[1].severity)  # "error" < "warning"
    names = [weight.name, *(one.name for one, _ in off if one is not weight)]
    cause = Cause(
        "init scale",
        "code that ran after the initialization wrote it (a hook, configure_model, a checkpoint)",
        "list InitCallback after that code, or name the tensor in `overrides`",
    )
    more = f"; so has {and_more(names[1:], 'tensor')}" if names[1:] else ""
    yield found(
        "scheme_audit", deviation.severity, weight.name, 0, deviation.value, deviation.limit,
        f"{deviation.text}{more}", [cause], _SAMPLE,
    )  # fmt: skip


@detector(
    order=12,
    explains=(
        *("initial_loss", "loss_flat", "loss_blow_up", "loss_oscillates", "saturated_attention"),
        *("backward_growth", "update_ratio"),
    ),
)
def tied_weights(
    readings: Readings,
    *,
    z_limit: Annotated[float, Range(1.0, 100.0)] = 5.0,
    warn_ratio: Factor = 1.25,
    error_ratio: Factor = 3.0,
    size: Factor = 3.0,
    excess: Factor = 1.3,
) -> Iterator[Finding]:
    """A tensor with several names that a second initialization wrote, or that fits one name only.

    Without a plan: a table that is the output layer, too, and so large that the first loss is far
    above chance.

    Args:
        readings: What was measured.
        z_limit: Standard errors that a deviation from the plan must exceed to count at all.
        warn_ratio: Ratio of stds from which it is a warning.
        error_ratio: Ratio of stds from which it is an error.
        size: rms(w) sqrt(width) of a table that is the output layer, too: the logits' std.
        excess: First loss over chance that must be exceeded as well.
    """
    for weight, deviation in _deviations(readings, z_limit, warn_ratio, error_ratio):
        if len(weight.names) > 1:
            cause = Cause(
                "tied weights",
                f"one tensor under the names {', '.join(weight.names)}: an initialization of "
                f"{weight.names[-1]} that ran after that of {weight.names[0]} overwrote it",
                f"initialize it once: tie the weights before InitCallback, or set "
                f'overrides={{"{weight.names[0]}": ...}} and take the other init out',
            )
            yield found(
                "tied_weights", deviation.severity, weight.name, 0, deviation.value,
                deviation.limit, f"{' = '.join(weight.names)}: {deviation.text}", [cause], _SAMPLE,
            )  # fmt: skip
            return
    losses = [loss for reading in readings.steps[:1] for loss in reading.losses if loss.exact]
    above = max((one.value / one.chance for one in losses if one.chance > 0), default=0.0)
    for weight in too_large_tied(readings, size):
        if above > excess and readings.steps[0].step == 0:
            width = weight.shape[-1]
            yield found(
                "tied_weights", "warning", weight.name, 0, weight.rms * math.sqrt(width), size,
                f"{' = '.join(weight.names)} is table and output layer in one, with std "
                f"{weight.rms:.3g} at width {width}: logits of std "
                f"{weight.rms * math.sqrt(width):.3g} (limit {size:g}), and the loss starts at "
                f"{above:.3g} times chance",
                ranked(readings, without=("learning rate",)),
                "Press and Wolf (2017), https://arxiv.org/abs/1608.05859",
            )  # fmt: skip
            return


def _deviations(
    readings: Readings, z_limit: float, warn_ratio: float, error_ratio: float
) -> Iterator[tuple[WeightReading, Deviation]]:
    for reading in readings.steps[:1]:
        for weight in reading.weights:
            if reading.step == 0 and math.isfinite(weight.expected_std) and weight.finite:
                deviation = _deviation(weight, z_limit, warn_ratio, error_ratio)
                if deviation is not None:
                    yield weight, deviation


def _deviation(
    weight: WeightReading, z_limit: float, warn_ratio: float, error_ratio: float
) -> Deviation | None:
    drawn = weight.drawn or "the plan"
    if weight.expected_std <= 1e-6 * abs(weight.expected_mean):  # all the same, but for rounding
        shift, size = abs(weight.mean - weight.expected_mean), abs(weight.expected_mean)
        off = math.hypot(weight.std, shift)
        # bfloat16 rounds to 8 digits, but all values alike.
        if weight.std > 1e-6 * max(1.0, size) or shift > max(1e-6, 2**-8 * size):
            text = f"differs by {off:.3g} (rms) from what was written: {drawn}"
            return Deviation("error" if off > 1 else "warning", off, 0.0, text)
        return None
    error = weight.expected_std / math.sqrt(2 * weight.numel)
    ratio = weight.std / weight.expected_std
    factor = max(ratio, 1 / ratio) if ratio > 0 else math.inf
    if abs(weight.std - weight.expected_std) > z_limit * error and factor > warn_ratio:
        text = f"std {weight.std:.3g}, drawn with {weight.expected_std:.3g} ({drawn})"
        if factor > error_ratio:
            return Deviation("error", factor, error_ratio, text)
        return Deviation("warning", factor, warn_ratio, text)
    shift = abs(weight.mean - weight.expected_mean) / weight.expected_std
    if shift > z_limit / math.sqrt(weight.numel) and shift > 0.25:
        text = f"mean {weight.mean:.3g}, drawn with {weight.expected_mean:.3g} ({drawn})"
        return Deviation("error" if shift > 1 else "warning", shift, 0.25, text)
    return None
