"""Rules on the first loss: against chance, and against what it is given."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

from lightning_init.architecture.arguments import Range
from lightning_init.architecture.readings import LossReading, Readings
from lightning_init.health.evidence import ranked, suspicions
from lightning_init.health.findings import Cause, Finding, Severity, found
from lightning_init.health.registry import Factor, Share, detector

_REFERENCE = "Karpathy (2019), A Recipe for Training Neural Networks: verify loss @ init"
_HIGH = (
    Cause(
        "output layer",
        "an output layer with too large weights: it is sure of answers that it cannot know",
        'draw it small: overrides={"<head>.weight": {"strategy": "normal", "params": '
        '{"std": 0.01}}}, or InitCallback("auto")',
    ),
    Cause(
        "init scale",
        "outputs that explode before the last layer",
        'InitCallback("auto")',
    ),
    Cause(
        "data scale",
        "inputs that are not normalized",
        "scale inputs to mean 0 and std 1",
    ),
)
_LOW = (
    Cause(
        "data",
        "the target is among the inputs, or shifted by one the wrong way",
        "check what the batch holds",
    ),
    Cause(
        "frozen weights",
        "trained weights that were loaded",
        "for a loaded model this is as it should be",
    ),
    Cause(
        "loss function",
        "a loss that is averaged over more elements than there are answers",
        "count only the answers: ignore_index, or a mask",
    ),
)


@detector(order=40, explains=("loss_flat", "loss_oscillates"))
def initial_loss(
    readings: Readings,
    *,
    low: Share = 0.5,
    high: Factor = 1.5,
    far: Factor = 25.0,
    note_low: Share = 0.8,
    note_high: Factor = 1.5,
    excess: Annotated[float, Range(0.0, 100.0)] = 1.0,
    order_of_magnitude: Factor = 10.0,
    off_scale: Factor = 20.0,
) -> Iterator[Finding]:
    """A loss before the first step that is not about that of a model that knows nothing.

    Args:
        readings: What was measured.
        low: Fraction of chance below which it is an error (the target leaks).
        high: Factor above chance from which it is an error if the readings say why: weights, data
            or an output layer of another scale.
        far: Factor above chance from which it is an error anyhow.
        note_low: Fraction of chance below which it is a warning.
        note_high: Factor above chance from which it is a warning.
        excess: Nats above chance that an error needs too, a warning half of them: with two classes
            a factor is soon reached.
        order_of_magnitude: Factor from which regression, whose outputs add their own variance, is
            a warning; its cube is an error.
        off_scale: Factor from which regression is an error if the readings say why, as `high`.
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
                upper = (off_scale, order_of_magnitude)
            if above > upper[1] and over > excess / 2:
                # Deep nets with dropout start above chance, too, and learn.
                unexplained = (far, note_high) if loss.exact else (upper[1] ** 3, upper[1])
                upper = upper if _explained(readings) else unexplained
                error = above > upper[0] and over > excess
                limit = upper[0] if error else upper[1]
                yield _start(readings, "error" if error else "warning", loss, above, limit)
                return
            if loss.exact and below < note_low and not readings.trained:
                limit = low if below < low else note_low
                yield _start(readings, "error" if below < low else "warning", loss, below, limit)
                return


def _explained(readings: Readings) -> bool:
    """Whether a scale is off by so much that the readings speak of it."""
    known = {cause.name for _, cause in suspicions(readings)}
    if "tied weights" in known and known.isdisjoint(("init scale", "data scale")):
        return False  # they start far above chance, and learn
    return not known.isdisjoint(("data scale", "init scale", "output layer", "loss function"))


def _start(
    readings: Readings, severity: Severity, loss: LossReading, value: float, limit: float
) -> Finding:
    start = f"{loss.kind} starts at {loss.value:.4g}, "
    if value > 1:
        text = f"{start}{value:.2f} times the {loss.chance:.4g} of a model that knows nothing"
        # Nothing has been updated yet.
        causes = ranked(readings, *_HIGH, without=("learning rate",))
    else:
        floor = min(loss.chance, loss.prior)
        text = (
            f"{start}below the {floor:.4g} that the best constant answer reaches: the model knows "
            "before it has learned"
        )
        causes = _LOW
    return found(
        "initial_loss", severity, "loss", 0, value, limit, f"{text} (limit {limit:g} times)",
        causes, _REFERENCE,
    )  # fmt: skip
