"""Rules on the gradients of weights: exactly 0, or far below those of the other matrices."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from statistics import median
from typing import Annotated

from lightning_init.architecture.arguments import Range
from lightning_init.architecture.readings import Readings, StepReading, WeightReading
from lightning_init.health.evidence import ranked
from lightning_init.health.findings import Cause, Finding, Severity, found
from lightning_init.health.places import and_more, matrices
from lightning_init.health.registry import Factor, Share, detector

_LOSS = ("loss_flat", "loss_oscillates", "loss_crash", "worse_than_shallow")
# The gradients of queries and keys vanish where attention is uniform, as at the start.
_QUERY_OR_KEY = re.compile(r"(^|[._])(q|k|query|key|qk)(_proj|_lin|_linear)?([._]|$)")
_EXPERT = re.compile(r"(^|[._])(experts?|moe)([._\d]|$)")
_OPEN = 10  # steps after which a branch that began at zero is open


@detector(order=39, explains=("frozen_layers", "uneven_gradients", "update_ratio", *_LOSS))
def zero_gradients(
    readings: Readings,
    *,
    steps: Annotated[int, Range(1, 1000)] = 2,
    share: Share = 0.5,
) -> Iterator[Finding]:
    """Weight matrices that run but whose gradient is exactly 0, or none, after the first step.

    The first step does not count: everything below a zero head has gradient 0 there. Biases (of
    keys, before a norm), tables, recurrent weights (of sequences of one), frozen weights, LoRA
    factors and experts without tokens are exempt.

    Args:
        readings: What was measured.
        steps: Steps that were read, 1 or later, at which the gradient must be 0, one after another.
        share: Share of the matrices above which it is an error; or else if the model's first
            layers are among them, and so all that lies before.
    """
    late = [reading for reading in readings.steps if reading.step >= 1]
    runs: dict[str, int] = {}
    for reading in late:
        used = _judged(reading)
        if not any(one.grad_rms >= 0 for one in used):
            continue  # no gradients were read
        nothing = {one.name for one in used if not one.grad_rms > 0}
        runs = {name: runs.get(name, 0) + 1 for name in nothing}
        zero = [one for one in used if runs.get(one.name, 0) >= steps]
        if not zero:
            continue
        exact = [one for one in zero if one.grad_rms == 0]
        gone = exact if readings.trained else zero  # what was loaded may be cut off on purpose
        error = len(gone) > share * len(used) or (len(exact) > 1 and exact[0].name == used[0].name)
        severity: Severity = "error" if error else "warning"
        names = [one.name for one in (exact or zero)]
        what = "exactly 0" if exact else "missing"
        yield found(
            "zero_gradients", severity, names[0], reading.step, 0.0, 0.0,
            f"the gradient of {and_more(names, 'tensor')} is {what} at {steps} steps that were "
            f"read ({len(names)} of {len(used)} matrices)",
            _zero_causes(reading, zero, exact=False)
            if not exact  # nothing but a cut takes a gradient away
            else ranked(readings, *_zero_causes(reading, exact, exact=True)),
        )  # fmt: skip
        return


def _judged(reading: StepReading) -> list[WeightReading]:
    """Matrices of layers that ran, in the order in which they did.

    Gradients are read where an optimizer steps: of a weight that none holds nothing is known.
    """
    place = {layer.name: at for at, layer in enumerate(reading.layers)}
    known = any(math.isfinite(one.lr) for one in reading.weights)
    used = [
        one
        for one in matrices(reading)
        if one.role == "weight"
        and one.module in place
        and not _EXPERT.search(one.name)
        and not (known and math.isnan(one.lr))
    ]
    return sorted(used, key=lambda one: place[one.module])


def _zero_causes(reading: StepReading, zero: list[WeightReading], exact: bool) -> list[Cause]:
    detached = Cause(
        "architecture",
        "the path from there to the loss is cut: detach(), no_grad(), argmax, or an output that "
        "the loss does not use",
        "look for .detach(), torch.no_grad() and .item() between there and the loss, or freeze "
        "it on purpose: requires_grad_(False)",
    )
    dead = Cause(
        "activation",
        "what follows passes no gradient: all of its units are dead or saturated",
        "biases at 0, a 10 times smaller learning rate, leaky_relu or gelu",
    )
    head = Cause(
        "output layer",
        "the weights after it are 0 and stay so",
        'draw the output layer: overrides={"<head>.weight": "xavier_normal"}',
    )
    if not exact:
        cut = Cause(
            "frozen weights", "weights that are cut off stay as they were drawn", "as above"
        )
        return [detached, cut]
    later = [one for one in matrices(reading) if one not in zero and one.rms == 0]
    return [head, dead, detached] if later else [dead, detached, head]


@detector(order=45, explains=("frozen_layers",))
def uneven_gradients(
    readings: Readings,
    *,
    note: Factor = 3e4,
    limit: Factor = 1e6,
    total: Annotated[int, Range(2, 1000)] = 2,
) -> Iterator[Finding]:
    """Weight matrices whose rms(gradient) / rms(weight) is far below the median of their role.

    Args:
        readings: What was measured.
        note: Factor below the median from which it is a warning.
        limit: Factor from which it is an error, if it is so at `total` steps that were read.
        total: So many.
    """
    runs: dict[str, int] = {}
    worst: Finding | None = None
    # Branches that begin at zero open step by step: until then little passes back through them.
    closed = {w.name for step in readings.steps[:1] for w in _judged(step) if w.rms == 0}
    for reading in readings.steps:
        if closed and reading.step < _OPEN:
            continue
        sized = [
            (one, one.grad_rms / one.rms)
            for one in _judged(reading)
            if not _QUERY_OR_KEY.search(one.name)
            and one.name not in closed
            and one.rms > 0
            and one.grad_rms > 0
            and math.isfinite(one.grad_rms)
        ]
        if len(sized) < 4:
            continue
        middle = median(size for _, size in sized)
        low = [(one, size) for one, size in sized if size * note < middle]
        runs = {one.name: runs.get(one.name, 0) + 1 for one, size in low if size * limit < middle}
        twice = [(one, size) for one, size in low if runs.get(one.name, 0) >= total]
        for severity, odd, bound in (("error", twice, limit), ("warning", low, note)):
            if odd and (worst is None or (severity == "error" and worst.severity != "error")):
                worst = _uneven(readings, reading, severity == "error", odd, middle, bound)
    if worst is not None:
        yield worst


def _uneven(
    readings: Readings,
    reading: StepReading,
    error: bool,
    odd: list[tuple[WeightReading, float]],
    middle: float,
    limit: float,
) -> Finding:
    weight, size = min(odd, key=lambda one: one[1])
    names = [weight.name, *(one.name for one, _ in odd if one is not weight)]
    factor = middle / size
    return found(
        "uneven_gradients", "error" if error else "warning", weight.name, reading.step, factor,
        limit,
        f"rms(gradient) / rms(weight) of {and_more(names, 'tensor')} is {size:.2g}, "
        f"{factor:.2g} times below the median {middle:.2g} of all matrices (limit {limit:g})",
        ranked(
            readings,
            Cause(
                "init scale",
                f"its weights (rms {weight.rms:.3g}) are too large for what passes back",
                'one scheme for all layers: InitCallback("auto"), or InitCallback("orthogonal")',
            ),
            Cause(
                "depth",
                "its gradient passes many layers, or saturated units, on the way back",
                "residual connections, or norm layers with gamma (scale) 1 and beta (shift) 0",
            ),
        ),
        "Glorot & Bengio (2010), figures 6 and 7",
    )  # fmt: skip
