"""The rules. Each is a pure function of readings; limits are arguments.

Rules that raise an error are scale-free (growth per layer, loss against chance), exact (weights
against the plan that drew them) or unarguable (NaN). The textbook's absolute limits are columns of
the report and raise nothing: they fire on most healthy networks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

from lightning_init.architecture.arguments import Range
from lightning_init.architecture.readings import (
    Readings,
    WeightReading,
)
from lightning_init.health.findings import Factor, Finding, Severity, Share, detector


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
