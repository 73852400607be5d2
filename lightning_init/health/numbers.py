"""The rule on NaN and infinity: which tensor first, and where it came from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

from lightning_init.architecture.arguments import Range
from lightning_init.architecture.readings import LayerReading, Readings, StepReading
from lightning_init.health.evidence import ranked
from lightning_init.health.findings import Cause, Finding, found
from lightning_init.health.registry import detector

_LEARNING_RATE = Cause(
    "learning rate",
    "too high: steps that are too long grow from one to the next until numbers overflow",
    "a 10 times smaller learning rate, warm-up, or Trainer(gradient_clip_val=1.0)",
)
_INIT_SCALE = Cause(
    "init scale",
    "weights so large that a sum overflows",
    'InitCallback("auto"), or a smaller scale: params={"scale": 0.5}',
)
_DATA = Cause(
    "data",
    "NaN or infinity in the batch, or made of it before the first layer",
    "torch.isfinite(x).all() on the batch; after scaling, a feature with std 0 divides by 0",
)
_ARCHITECTURE = Cause(
    "architecture",
    "a logarithm, root or division that meets 0 or less",
    "add a small constant inside of log, sqrt and divisions; Trainer(detect_anomaly=True) "
    "names the operation",
)
_WEIGHTS = Cause(
    "init scale",
    "the weight held NaN or infinity before training",
    'check what wrote it (a checkpoint, a custom init); InitCallback("auto") draws it anew',
)


@detector(order=0, explains=("*",))
def non_finite(
    readings: Readings, *, patience: Annotated[int, Range(1, 1000)] = 5
) -> Iterator[Finding]:
    """NaN or infinity in a batch, a loss, an output, a weight or a gradient: the first place.

    Args:
        readings: What was measured.
        patience: Steps in a row that a gradient scaler may skip before it counts.
    """
    lost = _lost(readings, patience)
    for reading in readings.steps:
        if lost is not None and lost < reading.step:
            break
        place = _place(reading, readings.skips_allowed)
        if place is not None:
            yield _finding(readings, reading.step, *place)
            return
    if lost is not None:
        before = [reading for reading in readings.steps if reading.step < lost]
        yield _finding(readings, lost, "loss", f"the loss is not finite{_largest(before)}", None)


def _lost(readings: Readings, patience: int) -> int | None:
    """The first step of the first run of losses that are not finite, long enough to count."""
    needed = patience if readings.skips_allowed else 1
    run: list[int] = []
    for step, loss in sorted(readings.loss.items()):
        run = [] if math.isfinite(loss) else [*run, step]
        if len(run) >= needed:
            return run[0]
    return None


def _place(reading: StepReading, skips_allowed: bool) -> tuple[str, str, Cause | None] | None:
    # Later on an update has spread it to every weight; only the first reading tells whose it is.
    own = reading.weights if reading.step == 0 else ()
    for weight in own:
        if not math.isfinite(weight.std):
            return weight.name, f"{weight.name} itself is not finite", _WEIGHTS
    for one in reading.inputs:
        if not one.finite:
            return "data", f"what {one.name} takes from outside is not finite", _DATA
    previous = None
    for layer in reading.layers:
        if not layer.finite:
            return layer.name, *_output(layer, previous)
        if layer.after is not None and not math.isfinite(layer.after.absmax):
            text = f"{layer.after.function} after {layer.name} gives what is not finite"
            return layer.name, text, None
        previous = layer
    if skips_allowed:
        return None  # an overflowing gradient is how a scaler finds its scale
    for weight in reading.weights:
        if not weight.finite:
            return weight.name, f"{weight.name} or its gradient is not finite", None
    return None


def _output(layer: LayerReading, previous: LayerReading | None) -> tuple[str, Cause | None]:
    text = f"the output of {layer.name} is not finite"
    if not math.isnan(layer.input_rms) or previous is None or math.isnan(previous.input_rms):
        return text, None
    # What the layer takes is broken already, and the weight layer before it was in order.
    between = f"what {layer.name} takes is NaN, though the output of {previous.name} was not"
    return f"{text}: {between}", _ARCHITECTURE


def _largest(before: list[StepReading]) -> str:
    layers = [layer for layer in before[-1].layers if layer.finite] if before else []
    if not layers:
        return ""
    top = max(layers, key=lambda layer: layer.absmax)
    return f"; at step {before[-1].step} the largest output was {top.absmax:.3g}, of {top.name}"


def _finding(
    readings: Readings, step: int, where: str, symptom: str, known: Cause | None
) -> Finding:
    """The finding; a batch that held it itself comes before all other causes."""
    if _bad_batch(readings, step):
        symptom = f"the batch of step {step} itself holds NaN or infinity: {symptom}"
        where, known = "data", _DATA
    elif known is None and step and readings.small_eps:
        known = _precision(readings.small_eps)
    later = (_LEARNING_RATE, _DATA, _INIT_SCALE, _ARCHITECTURE)
    causes = ranked(readings, *(later if step else (_INIT_SCALE, _DATA, _ARCHITECTURE)))
    if known is not None:
        causes = (known, *(cause for cause in causes if cause.name != known.name))
    return found(
        "non_finite", "error", where, step, math.nan, math.inf, symptom, causes,
        "https://docs.pytorch.org/docs/stable/autograd.html#anomaly-detection",
    )  # fmt: skip


def _precision(small_eps: str) -> Cause:
    return Cause(
        "precision",
        f"{small_eps}: the square of a gradient of 1e-4 is 0 there, and eps no number to divide by",
        'Trainer(precision="bf16-true") or "16-mixed", or eps=1e-4 in the optimizer',
    )


def _bad_batch(readings: Readings, step: int) -> bool:
    """Whether a bad batch came at this step, and none before it did no harm."""
    bad = [one for one in readings.bad_batches if one <= step]
    harmless = any(math.isfinite(readings.loss.get(one, math.nan)) for one in bad)
    return step in bad and not harmless
