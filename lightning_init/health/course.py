"""Rules on the course of the loss: it blows up, swings, stays, or stays and then crashes.

They need the loss only, so they go on when every hook is gone. Chance is the loss of a model that
knows nothing; a start that is low by luck may go up to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from statistics import fmean, median
from typing import Annotated

from lightning_init.architecture.arguments import Range
from lightning_init.architecture.readings import Readings
from lightning_init.health.evidence import ranked
from lightning_init.health.findings import Cause, Finding, Severity, found
from lightning_init.health.motion import ceiling, settled, typical_ratios
from lightning_init.health.registry import Factor, Share, detector

Steps = Annotated[int, Range(1, 100000)]
_LEARNING_RATE = Cause(
    "learning rate",
    "too high",
    "a 3 to 10 times smaller learning rate, warm-up, or Trainer(gradient_clip_val=1.0)",
)
_INIT_SCALE = Cause(
    "init scale",
    "too large weights make too large gradients",
    'InitCallback("auto"), or params={"scale": 0.5}',
)
_BAD_BATCH = Cause(
    "data",
    "a batch unlike the others: outliers, wrong labels, or data that are not shuffled",
    "look at the batch of this step; DataLoader(..., shuffle=True)",
)


@detector(
    order=60,
    explains=(
        *("loss_crash", "loss_oscillates", "loss_flat", "non_finite", "forward_growth"),
        *("backward_growth", "dead_units", "saturated_units", "saturated_attention"),
        *("collapsed_samples", "zero_gradients", "frozen_layers", "uneven_gradients"),
        *("update_ratio",),
    ),
)
def loss_blow_up(
    readings: Readings,
    *,
    factor: Factor = 3.0,
    above: Factor = 1.5,
    steps: Annotated[int, Range(1, 1000)] = 3,
) -> Iterator[Finding]:
    """A training loss above its start and chance, and `factor` times its lowest value so far.

    Args:
        readings: What was measured.
        factor: Multiple of the lowest loss so far.
        above: Multiple of its start and chance that suffices for a loss whose chance is known
            exactly, once it has been updated.
        steps: So many steps in a row are an error, one is a warning.
    """
    top = ceiling(readings)
    exact = any(loss.exact for reading in readings.steps[:1] for loss in reading.losses)
    best, run, warned = math.inf, 0, None
    for step, loss in sorted(readings.loss.items()):
        if not math.isfinite(loss):
            continue
        high = loss > top > 0 and (loss > factor * best or (exact and loss > above * top))
        run = run + 1 if high else 0
        best = min(best, loss)
        if run == 1 and warned is None:
            warned = (step, loss, best)
        if run >= steps:
            how = f"for {run} step{'s' * (run > 1)} in a row"
            yield _blow_up(readings, "error", step, loss, best, factor, how)
            return
    if warned is not None:
        yield _blow_up(readings, "warning", *warned, factor, "once")


def _blow_up(
    readings: Readings,
    severity: Severity,
    step: int,
    loss: float,
    best: float,
    factor: float,
    how: str,
) -> Finding:
    return found(
        "loss_blow_up", severity, "loss", step, loss / best, factor,
        f"the loss is {loss:.4g}, above its start and chance, and {loss / best:.3g} times its "
        f"lowest value {best:.4g}, {how}",
        ranked(readings, _LEARNING_RATE, _INIT_SCALE, _BAD_BATCH),
        "Bengio (2012), Practical recommendations for gradient-based training, section 3.1: the "
        "largest learning rate that does not diverge, then a third of it",
    )  # fmt: skip


@detector(order=62)
def loss_oscillates(
    readings: Readings,
    *,
    swing: Share = 0.5,
    turns: Share = 0.5,
    steps: Annotated[int, Range(4, 1000)] = 20,
) -> Iterator[Finding]:
    """A loss that swings up and down over its own size, and again and again above its start.

    Batches differ, so a loss turns at two of three steps in a healthy training, too: what counts
    is how far.

    Args:
        readings: What was measured.
        swing: Median change from step to step over the median loss.
        turns: Share of the steps at which the change has another sign than before.
        steps: Steps of the window, the last ones; three of them above start and chance.
    """
    top = ceiling(readings)
    course = [(step, loss) for step, loss in sorted(readings.loss.items()) if math.isfinite(loss)]
    if len(course) < steps + 1 or not top > 0:
        return
    for start in range(1, len(course) - steps + 1, max(1, steps // 4)):
        window = course[start : start + steps]
        losses = [loss for _, loss in window]
        changes = [later - earlier for earlier, later in pairwise(losses)]
        signs = [one * other < 0 for one, other in pairwise(changes)]
        size = median(abs(change) for change in changes) / median(losses)
        over = [loss for loss in losses if loss > top]
        if size > swing and fmean(signs) >= turns and len(over) >= 3:
            yield found(
                "loss_oscillates", "warning", "loss", window[-1][0], size, swing,
                f"from step {window[0][0]} to {window[-1][0]} the loss swings between "
                f"{min(losses):.3g} and {max(losses):.3g}, from one step to the next by {size:.0%} "
                f"of its median (limit {swing:.0%}), {len(over)} times above its start and chance",
                ranked(readings, _LEARNING_RATE, _BAD_BATCH, _INIT_SCALE),
            )  # fmt: skip
            return


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
        if any(layer.sample_cosine > 0.999 and layer.rms > 0 for layer in outputs):
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
        f"steps move the weights by {median(ratios.values()):.2g} of their size: too low"
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
        _BAD_BATCH,
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
            following = [one for _, one in course[index : index + 3]]
            stays = len(following) == 3 and all(one > factor * level for one in following)
            if level > 0 and (not math.isfinite(loss) or stays):
                # The last steps before a crash may rise already.
                count = _flat_for(losses[:-3])
                return (step, level, count) if count >= flat - 3 and level > 0.8 * top else None
        if not math.isfinite(loss):
            return None
        losses.append(loss)
    return None


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
