"""Rules on a loss that stays where it is: flat, or flat for long and then lost at once.

They need the loss only, so they go on when every hook is gone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean, median
from typing import Annotated

from lightning_init.architecture.arguments import Range
from lightning_init.architecture.readings import Readings
from lightning_init.health.course import BAD_BATCH
from lightning_init.health.evidence import ranked
from lightning_init.health.findings import Cause, Finding, Severity, found
from lightning_init.health.motion import ceiling, settled, typical_ratios
from lightning_init.health.registry import Factor, Share, detector
from lightning_init.health.samples import likeness


@detector(order=64)
def loss_flat(
    readings: Readings,
    *,
    flat: Share = 0.99,
    steps: Annotated[int, Range(20, 100000)] = 50,
) -> Iterator[Finding]:
    """A loss that is not lower after 10 steps (info) or 50 (warning), warm-up not counted.

    Args:
        readings: What was measured.
        flat: Mean of the last ten over the first ten losses above which it is a warning.
        steps: Steps after warm-up; with outputs that are all alike, gradients that are all zero,
            or a loss that is the same at every step, it is an error.
    """
    if _crash(readings, steps) is not None:
        return
    course = [
        (step, loss) for step, loss in sorted(readings.loss.items()) if step >= settled(readings)
    ]
    losses = [loss for _, loss in course]
    if len(losses) < 11 or not all(map(math.isfinite, losses)):
        return
    first, chance = fmean(losses[:3]), ceiling(readings)
    if len(losses) < steps:
        late = fmean(losses[8:11])
        if late >= first > 0:
            yield _flat(readings, "info", course[10][0], late / first, 1.0, (first, late, 11), "")
        return
    early, late = fmean(losses[:10]), fmean(losses[-10:])
    same = min(losses) == max(losses)
    if not same and not (early > 0 and late > flat * early and late > 0.9 * chance):
        return
    companion = (
        "; it is exactly the same at every step" if same else _companion(readings, course[0][0])
    )
    yield _flat(
        readings, "error" if companion else "warning", course[-1][0],
        late / early if early else 1.0, flat, (early, late, len(losses)), companion,
    )  # fmt: skip


def _companion(readings: Readings, after: int) -> str:
    """What else is wrong at the last step that was read, in words."""
    for reading in reversed(readings.steps):
        if reading.step < max(after, 10):
            return ""
        outputs = [layer for layer in reading.layers if layer.is_output]
        if any(likeness(layer) > 0.99999 and layer.rms > 0 for layer in outputs):
            return f"; at step {reading.step} the outputs of all samples are alike"
        grads = [
            weight.grad_rms
            for weight in reading.weights
            if weight.role in ("weight", "recurrent") and weight.trainable
        ]
        if len(grads) >= 2 and sum(grad == 0 for grad in grads) > len(grads) / 2:
            return f"; at step {reading.step} the gradients of most weights are exactly 0"
        if reading.layers or reading.weights:
            return ""
    return ""


def _flat(
    readings: Readings,
    severity: Severity,
    step: int,
    value: float,
    limit: float,
    course: tuple[float, float, int],
    companion: str,
) -> Finding:
    early, late, count = course
    ratios = typical_ratios(readings)
    slow = ratios and median(ratios.values()) < 1e-4
    rate = Cause(
        "learning rate",
        f"steps move the weights by {median(ratios.values()):.2g} times their size: too low"
        if slow
        else "too low, or so high that nothing is kept",
        "a 10 times larger learning rate; then a 10 times smaller one",
    )
    usual = (
        Cause("architecture", "no signal arrives: too deep without residual connections or norm "
              "layers, dead or saturated units", "norm layers, residual connections, fewer layers"),
        Cause("init scale", "outputs or gradients vanish", 'InitCallback("auto")'),
        Cause("data", "targets that do not belong to the inputs (shuffled apart)",
              "train on one batch: it must be learnt by heart"),
    )  # fmt: skip
    return found(
        "loss_flat", severity, "loss", step, value, limit,
        f"the loss is {late:.4g} after {count} steps without warm-up, {early:.4g} at first"
        f"{companion}",
        ranked(readings, rate, *usual) if slow else ranked(readings, usual[1], rate, *usual),
        "Karpathy (2019), A Recipe for Training Neural Networks: overfit one batch",
    )  # fmt: skip


@detector(order=66, explains=("non_finite", "loss_blow_up", "loss_oscillates", "loss_flat"))
def loss_crash(
    readings: Readings, *, flat: Annotated[int, Range(10, 100000)] = 50, factor: Factor = 3.0
) -> Iterator[Finding]:
    """A loss that is flat for long, then jumps above its start or is not finite any more.

    Args:
        readings: What was measured.
        flat: Steps that it was flat, at least: the means of its thirds differ by less than 5 %.
        factor: Multiple of the flat loss that counts as a crash.
    """
    found_at = _crash(readings, flat, factor)
    if found_at is None:
        return
    step, level, count = found_at
    loss = readings.loss[step]
    began, ended = (readings.lr.get(one, math.nan) for one in (min(readings.loss), step))
    rose = f"it rose from {began:.3g} to {ended:.3g}" if ended > 3 * began else "too high"
    causes = (
        Cause("learning rate", rose, "a 3 to 10 times smaller peak, a longer warm-up, "
              "Trainer(gradient_clip_val=1.0)"),
        Cause("init scale", "residual branches that are not scaled down add up: each update of "
              "one moves the sum of all", 'residual scales: InitCallback("fixup") or "gpt2", '
              "which divide by the root of the number of branches"),
        BAD_BATCH,
    )  # fmt: skip
    yield found(
        "loss_crash", "error", "loss", step - 1, loss / level, factor,
        f"the loss was flat at {level:.4g} for {count} steps, then crashed: {loss:.4g} at step "
        f"{step}",
        ranked(readings, *causes),
        "Zhang et al. (2019), Fixup Initialization, https://arxiv.org/abs/1901.09321",
    )  # fmt: skip


def _crash(readings: Readings, flat: int, factor: float = 3.0) -> tuple[int, float, int] | None:
    """The step of the crash, the level before it and the length of the flat stretch."""
    losses: list[float] = []
    top = ceiling(readings)
    course = sorted(readings.loss.items())
    for index, (step, loss) in enumerate(course):
        if len(losses) >= flat and not loss <= top:
            level = median(losses[-flat:])
            if level > 0 and not loss <= factor * level and _lost(course[index:], factor * level):
                # The last steps before a crash may rise already.
                count = _flat_for(losses[:-3])
                return (step, level, count) if count >= flat - 3 and level > 0.8 * top else None
        if not math.isfinite(loss):
            return None
        losses.append(loss)
    return None


def _lost(course: Sequence[tuple[int, float]], high: float) -> bool:
    """Whether a loss that has risen does not come back: three high ones, or soon not a number."""
    coming = [loss for _, loss in course[:10]]
    stays = len(coming) > 2 and all(loss > high for loss in coming[:3])
    return stays or not all(map(math.isfinite, coming))


def _flat_for(losses: Sequence[float]) -> int:
    """How many of the last losses are flat, all or the last half, the last quarter, ..."""
    count = len(losses)
    while count >= 6:
        third = count // 3
        means = [fmean(losses[-count:][i * third : (i + 1) * third]) for i in range(3)]
        if max(means) < 1.05 * min(means):
            return count
        count //= 2
    return 0
