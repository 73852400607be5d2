"""Rules on single units: alike, dead, saturated."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

from lightning_init.architecture.arguments import Range
from lightning_init.architecture.readings import (
    ActivationReading,
    LayerReading,
    Readings,
    StepReading,
    WeightReading,
)
from lightning_init.health.drawn import falls
from lightning_init.health.evidence import ranked
from lightning_init.health.findings import Cause, Finding, Severity, found
from lightning_init.health.places import and_more, matrices
from lightning_init.health.registry import Share, detector
from lightning_init.health.trend import backward_chain, growth

Count = Annotated[int, Range(1, 1_000_000)]
_SYMMETRY = Cause(
    "symmetry",
    "a constant initialization: each unit starts and learns as its neighbour",
    'draw the weights at random: InitCallback("kaiming_normal"), "xavier_normal" for tanh',
)
_BOOK = "Goodfellow et al. (2016), Deep Learning, section 8.4"
_LOSS = ("loss_blow_up", "loss_oscillates", "loss_flat", "loss_crash", "worse_than_shallow")


@detector(
    order=16,
    explains=(
        *("collapsed_samples", "zero_gradients", "uneven_gradients", "frozen_layers"),
        *("forward_growth", "backward_growth", "initial_loss", "saturated_units", "dead_units"),
        *("update_ratio", *_LOSS),
    ),
)
def symmetric_units(
    readings: Readings, *, note: Share = 0.1, limit: Share = 0.5
) -> Iterator[Finding]:
    """Units of one layer whose weights and gradients are the same: they stay so for ever.

    Weights that are zero or constant on purpose (heads, last layers of branches) have gradients
    that differ, and are not meant. A gradient of exactly 0 at the first step, as below a zero head,
    says nothing. More than half of the matrices constant at the start, or four fifths if they are
    zero, are an error in any case.

    Args:
        readings: What was measured.
        note: Share of the units of a layer above which it is a warning.
        limit: Share above which it is an error.
    """
    for reading in readings.steps:
        of_all = matrices(reading)
        constant = [one for one in of_all if one.std == 0 and one.numel > 1]
        # Fixup's zero heads and last layers are up to two thirds of all.
        most = len(constant) > 0.8 * len(of_all)
        most = most or 2 * sum(one.mean != 0 for one in constant) > len(of_all)
        if reading.step == 0 and most and any(not one.trained for one in constant):
            # Random biases make gradients differ a little; it hardly helps.
            yield _constant(readings, constant, len(of_all))
            return
        twins = [
            one
            for one in of_all
            if one.twins > note
            and not one.trained
            and len(one.shape) > 1
            and one.shape[0] > 1
            and (one.grad_rms > 0 or (reading.step > 0 and one.grad_rms == 0))
        ]
        if not twins:
            continue
        worst = [one for one in twins if one.twins > limit] or twins
        first = worst[0]
        severity: Severity = "error" if first.twins > limit else "warning"
        yield found(
            "symmetric_units", severity, first.name, reading.step, first.twins,
            limit if severity == "error" else note,
            _alike(first, [one.name for one in worst], limit if severity == "error" else note),
            ranked(readings, _SYMMETRY),
            _BOOK,
        )  # fmt: skip
        return


def _constant(readings: Readings, constant: list[WeightReading], of: int) -> Finding:
    first, names = constant[0], [one.name for one in constant]
    finding = found(
        "symmetric_units", "error", first.name, 0, len(constant) / of, 0.8,
        f"all values of {and_more(names, 'tensor')} are the same ({first.mean:.3g}): "
        f"{len(constant)} of {of} matrices, whose units start alike",
        ranked(readings, _SYMMETRY), _BOOK,
    )  # fmt: skip
    return finding


def _alike(weight: WeightReading, names: list[str], limit: float) -> str:
    value = f" (all {weight.mean:.3g})" if weight.std == 0 else ""
    return (
        f"{weight.twins:.0%} of the {weight.shape[0]} units of {and_more(names, 'tensor')} have "
        f"the weights{value} and the gradient of another unit (limit {limit:.0%})"
    )


@detector(
    order=35,
    explains=(
        *("zero_gradients", "frozen_layers", "uneven_gradients", "collapsed_samples"),
        *("update_ratio", *_LOSS),
    ),
)
def dead_units(
    readings: Readings,
    *,
    limit: Share = 0.67,
    rows: Count = 16,
    units: Count = 16,
) -> Iterator[Finding]:
    """Units that are zero for every row that was read, so that they take no gradient.

    All units of a layer are an error: at the start always, later if no gradient passes it (a
    branch may die while the skip path learns).

    Args:
        readings: What was measured.
        limit: Share of the units of a layer above which it is a warning.
        rows: Values per unit that must have been read.
        units: Units that a layer must have for an error at the start, if a gradient passes it.
    """
    for reading in readings.steps:
        judged = [
            (layer, layer.after)
            for layer in reading.layers
            if layer.after is not None and layer.after.rows >= rows and layer.after.dead > limit
        ]
        if not judged:
            continue
        closed = [
            one
            for one in judged
            if one[1].dead >= 1.0
            and (_cut(reading, one[0]) or (reading.step == 0 and one[1].units >= units))
        ]
        layer, after = (closed or judged)[0]
        names = [one.name for one, _ in closed or judged]
        which = (
            f"all {after.units}" if after.dead >= 1 else f"{after.dead:.0%} of the {after.units}"
        )
        yield found(
            "dead_units", "error" if closed else "warning", layer.name, reading.step, after.dead,
            1.0 if closed else limit,
            f"{which} {after.function} units after {and_more(names)} are zero for all "
            f"{after.rows} rows that were read (limit {1.0 if closed else limit:.0%})",
            ranked(readings, *_dead_causes(readings, reading, layer), without=("init scale",)),
            "Lu et al. (2019), Dying ReLU and Initialization, https://arxiv.org/abs/1903.06733",
        )  # fmt: skip
        return


def _cut(reading: StepReading, dead: LayerReading) -> bool:
    """Whether all gradients before a layer are exactly 0, and some behind it are not."""
    names = [layer.name for layer in reading.layers]
    at = names.index(dead.name)
    before = [one.grad_norm for one in reading.layers[:at] if math.isfinite(one.grad_norm)]
    behind = [one.grad_norm for one in reading.layers[at + 1 :] if math.isfinite(one.grad_norm)]
    return not any([*before, dead.grad_norm]) and any(behind)


def _dead_causes(readings: Readings, reading: StepReading, layer: LayerReading) -> list[Cause]:
    first = next((one for one in readings.steps[0].layers if one.name == layer.name), None)
    was = first.after.dead if first is not None and first.after is not None else math.nan
    offset = layer.mean / layer.std if layer.std > 0 else -math.inf
    bias = Cause(
        "bias",
        f"the inputs of the nonlinearity have mean {layer.mean:.3g} and std {layer.std:.3g}",
        f'biases at 0: overrides={{"{layer.name}.bias": "zeros"}}; weights by '
        'InitCallback("kaiming_normal")',
    )
    depth = Cause(
        "depth",
        "in narrow and deep nets all units of a layer may die by chance",
        'InitCallback("orthogonal"), wider layers, leaky_relu or gelu',
    )
    if reading.step == 0:
        return [bias, depth] if offset < -1 else [depth, bias]
    lr = max(readings.lr.values(), default=math.nan)
    text = (
        f"{was:.0%} of them were dead at step 0, {layer.after.dead if layer.after else 1:.0%} are"
    )
    return [
        Cause(
            "learning rate",
            f"{text} after {reading.step} steps" + (f" at lr {lr:.3g}" if lr > 0 else ""),
            f"a 10 times smaller learning rate{f' (lr={lr / 10:.2g})' if lr > 0 else ''}, warm-up, "
            "or Trainer(gradient_clip_val=1.0)",
        ),
        bias,
    ]


@detector(order=36, explains=("frozen_layers", "uneven_gradients", *_LOSS))
def saturated_units(
    readings: Readings, *, limit: Share = 0.5, most: Share = 0.9
) -> Iterator[Finding]:
    """Outputs where tanh, sigmoid or a clamp is flat; explains, and alarms with a companion only.

    It is a warning if gradients shrink on the way back too (below 0.5 per layer), and an error if
    the loss does not fall either.

    Args:
        readings: What was measured.
        limit: Share of the outputs of a layer above which it is an info.
        most: Share above which it may be an error.
    """
    for reading in readings.steps:
        flat = [
            (layer, layer.after)
            for layer in reading.layers
            if layer.after is not None and layer.after.saturated > limit and not layer.is_output
        ]
        if not flat:
            continue
        layer, after = flat[0]
        severity: Severity = "info"
        if _gradients_shrink(reading):
            severity = "warning"
            if max(one.saturated for _, one in flat) > most and falls(readings) is False:
                severity = "error"
        yield found(
            "saturated_units", severity, layer.name, reading.step, after.saturated,
            most if severity == "error" else limit,
            f"{after.saturated:.0%} of the {after.function} outputs after "
            f"{and_more([one.name for one, _ in flat])} are where it is flat (limit "
            f"{most if severity == 'error' else limit:.0%})",
            _flat_causes(readings, layer, after),
            "Glorot & Bengio (2010), section 3",
        )  # fmt: skip
        return


def _gradients_shrink(reading: StepReading) -> bool:
    chain = backward_chain(reading)
    return len(chain) >= 3 and growth([norm for _, norm in chain]) < 0.5


def _flat_causes(
    readings: Readings, layer: LayerReading, after: ActivationReading
) -> tuple[Cause, ...]:
    text = f"what {after.function} takes has rms {layer.rms:.3g}, it is flat beyond 2"
    gain = ', params={"gain": 1.0}' if after.function == "tanh" else ""
    remedy = f'smaller weights: InitCallback("xavier_normal"{gain}); or a norm layer before it'
    usual = Cause("init scale", text, remedy)
    return ranked(readings, usual, without=("activation",))
