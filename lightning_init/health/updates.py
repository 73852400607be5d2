"""Rules on updates: how far they move the weights, and which weights they do not move."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from statistics import median
from typing import Annotated

from lightning_init.architecture.arguments import Range
from lightning_init.architecture.readings import Readings, StepReading, WeightReading
from lightning_init.health.evidence import ranked
from lightning_init.health.findings import Cause, Finding, Severity, found
from lightning_init.health.motion import ceiling, moving, settled, typical_ratios
from lightning_init.health.registry import Factor, Share, detector

_REFERENCE = (
    "https://cs231n.github.io/neural-networks-3/#ratio: about 1e-3; Adam's first steps, which have "
    "one length for all entries, are 10 to 50 times longer"
)
# Whatever comes after steps that are too long.
_EXPLAINS = (
    *("non_finite", "forward_growth", "backward_growth", "dead_units", "saturated_units"),
    *("saturated_attention", "collapsed_samples", "zero_gradients", "frozen_layers"),
    *("uneven_gradients", "loss_blow_up", "loss_oscillates", "loss_flat", "loss_crash"),
)
_INIT_SCALE = Cause(
    "init scale",
    "weights that are too small are moved far by an ordinary step, and too large ones have too "
    "large gradients",
    'InitCallback("auto")',
)
_NO_CLIPPING = Cause(
    "data scale",
    "inputs or targets far from std 1 make large gradients",
    "scale data to mean 0 and std 1; Trainer(gradient_clip_val=1.0)",
)


@detector(order=50, explains=_EXPLAINS)
def update_ratio(
    readings: Readings,
    *,
    high: Annotated[float, Range(1e-3, 10.0, log=True)] = 0.7,
    note: Annotated[float, Range(1e-4, 10.0, log=True)] = 0.2,
    repeated: Annotated[float, Range(1e-3, 10.0, log=True)] = 0.3,
    jump: Factor = 1.2,
    low: Annotated[float, Range(0.0, 1e-2)] = 1e-6,
) -> Iterator[Finding]:
    """Updates too large or too small for the weights: median of norm(update) / norm(weight).

    Args:
        readings: What was measured.
        high: Ratio from which one step is an error: it replaces what the weights were.
        note: Ratio from which it is a warning; an error if the loss jumps, or is not lower 15
            steps later.
        repeated: Ratio from which three sampled steps are an error.
        jump: Factor above the first loss and chance that counts as a jump.
        low: Ratio below which it is a warning, at two sampled steps from step 10 on.
    """
    ratios = typical_ratios(readings)
    large = [step for step, ratio in ratios.items() if ratio >= note]
    if large:
        top = max(large, key=lambda step: ratios[step])
        often = [step for step in large if ratios[step] >= repeated]
        harm = _harm(readings, large[0], jump)
        error = ratios[top] >= high or len(often) >= 3 or bool(harm)
        limit = high if ratios[top] >= high else repeated if len(often) >= 3 else note
        count = len(large) - 1
        more = f" (and at {count} more sampled step{'s' * (count > 1)})" if count else ""
        yield found(
            "update_ratio", "error" if error else "warning", "weights", large[0],
            ratios[top], limit,
            f"step {top} moves the weights by {ratios[top]:.2g} times their own size, median over the "
            f"matrices{more} (limit {limit:g}){harm}",
            ranked(readings, _too_high(readings, top, ratios[top]), _INIT_SCALE, _NO_CLIPPING),
            _REFERENCE,
        )  # fmt: skip
        return
    after = max(10, settled(readings))
    small = [step for step, ratio in ratios.items() if step >= after and ratio < low]
    if len(small) >= 2 and not readings.skips_allowed:
        step = small[0]
        yield found(
            "update_ratio", "warning", "weights", step, ratios[step], low,
            f"step {step} moves the weights by {ratios[step]:.2g} times their own size, median over "
            f"the matrices (limit {low:g}): nothing will change",
            ranked(readings, *_too_small(readings, step), without=("data scale",)), _REFERENCE,
        )  # fmt: skip


def _too_high(readings: Readings, step: int, ratio: float) -> Cause:
    lr = _rate(readings, step)
    return Cause(
        "learning rate",
        f"{f'lr {lr:.3g}' if lr > 0 else 'it'} is too high for weights of this size",
        f"lr={lr * 0.01 / ratio:.1g}" if lr > 0 else "a 10 to 100 times smaller learning rate",
    )


def _too_small(readings: Readings, step: int) -> tuple[Cause, ...]:
    lr = _rate(readings, step)
    return (
        Cause(
            "learning rate",
            f"{f'lr {lr:.3g}' if lr >= 0 else 'it'} is too low",
            "a 10 to 1000 times larger learning rate",
        ),
        Cause("depth", "the gradients vanish on their way", 'InitCallback("auto"), norm layers'),
        Cause(
            "architecture",
            "weights in bfloat16 or float16 round small updates away",
            'keep weights in float32: Trainer(precision="bf16-mixed"), not "bf16-true"',
        ),
    )


def _rate(readings: Readings, step: int) -> float:
    if step in readings.lr:
        return readings.lr[step]
    return max((rate for rate in _rates(readings, step) if rate >= 0), default=math.nan)


def _rates(readings: Readings, step: int) -> list[float]:
    return [
        weight.lr
        for reading in readings.steps
        if reading.step == step
        for weight in reading.weights
    ]


def _harm(readings: Readings, start: int, jump: float) -> str:
    """What the loss did after too long steps, in words; empty if it went down all the same."""
    top = ceiling(readings)
    later = {step: loss for step, loss in readings.loss.items() if start < step <= start + 20}
    if not later or not top > 0:
        return ""
    for step, loss in sorted(later.items()):
        if not loss <= jump * top:
            return f"; the loss jumps from {top:.4g} to {loss:.4g} at step {step}"
    last = [loss for step, loss in sorted(later.items()) if step > start + 15]
    if len(last) >= 3 and median(last) > 0.98 * readings.loss.get(start, top):
        return f"; {len(later)} steps later the loss is {last[-1]:.4g}, no lower"
    return ""


@detector(order=42, explains=("loss_flat",))
def frozen_layers(
    readings: Readings,
    *,
    ratio: Share = 1e-4,
    share: Share = 0.01,
    most: Share = 0.8,
) -> Iterator[Finding]:
    """Freshly drawn weights that training does not move, or the first ones hardly at all.

    Args:
        readings: What was measured.
        ratio: Update of a weight of the first layers over the median below which it is a warning.
        share: Share of the fresh weights that must take no gradient for a warning.
        most: Share of the fresh matrices from which it is an error, if nothing in the model was
            loaded; all but the last one are, too, if there are three or more.
    """
    yield from _not_trainable(readings, share, most) or _not_moved(readings, ratio)


def _not_trainable(readings: Readings, limit: float, most: float) -> list[Finding]:
    for reading in readings.steps[:1]:
        if any(weight.role.startswith("lora") for weight in reading.weights):
            return []  # adapters: the rest is frozen on purpose
        fresh = [
            weight
            for weight in reading.weights
            if weight.role in ("weight", "recurrent") and not weight.trained and weight.rms > 0
        ]
        frozen = [weight for weight in fresh if not weight.trainable]
        if not frozen:
            return []
        share = sum(weight.numel for weight in frozen) / sum(weight.numel for weight in fresh)
        cause = Cause(
            "frozen weights",
            "requires_grad=False on weights that were not loaded: they keep random values",
            f"model.get_parameter({frozen[0].name!r}).requires_grad_(True), or load trained "
            "weights before the fit",
        )
        # One hidden layer of random features is legal, a body of them is not meant.
        left = len(fresh) - len(frozen)
        nearly_all = left == 0 or (left <= max(1, (1 - most) * len(fresh)) and len(frozen) > 1)
        error = nearly_all and share > 0.5 and not readings.trained
        severity: Severity = "error" if error else "warning" if share > limit else "info"
        return [
            found(
                "frozen_layers", severity, frozen[0].name, 0, share, limit,
                f"{_more(frozen)} is freshly drawn and takes no gradient: {share:.0%} of the "
                f"weights never train (limit {limit:.0%})",
                [cause],
            )
        ]  # fmt: skip
    return []


def _not_moved(readings: Readings, ratio: float) -> list[Finding]:
    seen: dict[str, list[int]] = {}
    for reading in readings.steps:
        # Below an output layer that starts at zero nothing moves at first.
        weights = _updated(readings, reading) if reading.step >= 2 else []
        moved = [weight.update for weight in weights if weight.update > 0]
        if len(weights) < 3 or not moved:
            continue
        early = weights[: max(1, len(weights) // 3)]
        for weight in early:
            if weight.update < ratio * median(moved):
                seen.setdefault(weight.name, []).append(reading.step)
    still = {name: steps for name, steps in seen.items() if len(steps) >= 2}
    if not still:
        return []
    name, steps = next(iter(still.items()))
    at = next(reading for reading in readings.steps if reading.step == steps[1])
    (weight,) = (one for one in _updated(readings, at) if one.name == name)
    return [_unmoved(readings, weight, steps[1], len(still), ratio)]


def _updated(readings: Readings, reading: StepReading) -> list[WeightReading]:
    """The matrices that should move; those that no optimizer holds have moved by 0."""
    known = any(math.isfinite(weight.lr) for weight in reading.weights)
    left_out = [
        replace(weight, update=0.0)
        for weight in reading.weights
        if known and math.isnan(weight.lr) and math.isnan(weight.update)
    ]
    whole = replace(reading, weights=tuple(
        next((other for other in left_out if other.name == weight.name), weight)
        for weight in reading.weights
    ))  # fmt: skip
    return [weight for weight in moving(readings, whole) if not weight.trained]


def _unmoved(
    readings: Readings, weight: WeightReading, step: int, count: int, ratio: float
) -> Finding:
    forgotten = Cause(
        "frozen weights",
        "the optimizer does not hold it, or holds it with a learning rate of 0",
        "give all parameters to the optimizer: torch.optim.AdamW(self.parameters(), ...)",
    )
    vanishing = Cause(
        "depth",
        "the gradient vanishes on its way to the first layers",
        'InitCallback("auto"); norm layers or residual connections; another activation',
    )
    dead = Cause(
        "activation",
        "units after it that are zero or flat let no gradient through",
        "smaller biases and weights, or leaky_relu or gelu in place of relu",
    )
    detached = Cause(
        "frozen weights",
        "it gets no gradient: a detach, torch.no_grad() or .data lies between it and the loss, or "
        "the forward pass does not use it",
        "take the detach out; print(parameter.grad) after loss.backward()",
    )
    causes = (vanishing, dead, forgotten)
    held = math.isfinite(weight.lr) or all(math.isnan(rate) for rate in _rates(readings, step))
    if not held or (weight.grad_rms > 0 and weight.update == 0):  # the signal is not missing
        causes = (forgotten, vanishing, dead)
    elif math.isnan(weight.grad_rms):
        causes = (detached, vanishing, dead)
    more = f" (and {count - 1} more)" if count > 1 else ""
    return found(
        "frozen_layers", "warning", weight.name, step, weight.update, ratio,
        f"{weight.name}{more} among the first layers does not move: its updates are "
        f"{weight.update:.2g} of its size, less than {ratio:g} of the median over all matrices",
        ranked(readings, *causes, without=("learning rate", "data scale", "target")),
    )  # fmt: skip


def _more(weights: list[WeightReading]) -> str:
    rest = len(weights) - 1
    return weights[0].name + (f" (and {rest} more)" if rest else "")
