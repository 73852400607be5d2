"""The rule on output and loss that do not fit: a softmax twice, a range that targets leave.

Values alone may deceive: a small model's outputs lie in [0, 1] by luck. Rows that sum to 1 do not
come by luck; for all else the function that follows the last weight layer is asked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from lightning_init.architecture.readings import LossReading, Readings, StepReading
from lightning_init.health.findings import Cause, Finding, Severity, found
from lightning_init.health.registry import Share, detector

_EXPLAINS = (
    *("initial_loss", "loss_flat", "frozen_layers", "uneven_gradients", "zero_gradients"),
    *("backward_growth", "dead_units", "loss_oscillates"),
)
_RANGES = {
    "sigmoid": (0.0, 1.0),
    "hardsigmoid": (0.0, 1.0),
    "softmax": (0.0, 1.0),
    "tanh": (-1.0, 1.0),
    "hardtanh": (-1.0, 1.0),
    "softsign": (-1.0, 1.0),
    "relu": (0.0, math.inf),
    "relu6": (0.0, 6.0),
    "softplus": (0.0, math.inf),
}


class Mismatch(NamedTuple):
    """An output and a loss that do not fit: how bad, measured against what, and why."""

    severity: Severity
    value: float
    limit: float
    text: str
    causes: tuple[Cause, ...]


@detector(order=5, explains=_EXPLAINS)
def loss_mismatch(
    readings: Readings, *, note: Share = 0.1, unreachable: Share = 0.3
) -> Iterator[Finding]:
    """An output layer and a loss function that do not fit each other, or targets out of reach.

    Args:
        readings: What was measured.
        note: Share of the targets' range that a bounded output cannot reach, from which it is a
            warning.
        unreachable: Share from which it is an error.
    """
    mismatch = mismatched(readings, note, unreachable)
    if mismatch is not None:
        yield found(
            "loss_mismatch", mismatch.severity, "loss", readings.steps[0].step, mismatch.value,
            mismatch.limit, mismatch.text, mismatch.causes,
            "https://docs.pytorch.org/docs/stable/nn.html#loss-functions",
        )  # fmt: skip


def mismatched(readings: Readings, note: float = 0.1, unreachable: float = 0.3) -> Mismatch | None:
    """The first mismatch of the losses of the first step, the worst first."""
    found = [
        mismatch
        for reading in readings.steps[:1]
        for loss in reading.losses
        if (mismatch := _mismatch(loss, _last_function(reading), note, unreachable)) is not None
    ]
    rank = ("error", "warning", "info")
    return min(found, key=lambda one: rank.index(one.severity), default=None)


def _last_function(reading: StepReading) -> str:
    """The function that follows the last weight layer, `""` if none does."""
    last = [layer for layer in reading.layers if layer.is_output]
    after = last[-1].after if last else None
    return after.function if after is not None else ""


def _mismatch(loss: LossReading, last: str, note: float, unreachable: float) -> Mismatch | None:
    kind = loss.kind
    if kind.startswith("cross-entropy"):
        return _cross_entropy(loss, last)
    if kind.startswith("negative log-likelihood"):
        return _likelihood(loss)
    if kind.startswith("binary cross-entropy"):
        return _binary(loss, last)
    if kind.endswith(" error"):
        return _squared(loss, last, note, unreachable)
    return None


def _cross_entropy(loss: LossReading, last: str) -> Mismatch | None:
    # With outputs in [0, 1] the loss cannot fall below that of 1 against all others at 0.
    floor = math.log(1 + (loss.classes - 1) / math.e) if loss.classes > 1 else math.nan
    bound = f"the loss cannot fall below {floor:.3g}" if loss.classes > 1 else "learning is slow"
    name = "F.cross_entropy (nn.CrossEntropyLoss)"
    if loss.outputs == "probabilities":
        cause = Cause(
            "loss function",
            f"a softmax before {name}, which takes logits and applies its own",
            "return the logits: take the softmax out of the model, and apply it where "
            "probabilities are needed",
        )
        text = f"{loss.kind} is given probabilities: softmax is applied twice, {bound}"
        return Mismatch("error", 1.0, 0.0, text, (cause, _other("nll_loss on log_softmax outputs")))
    if loss.outputs == "log-probabilities":
        cause = Cause(
            "loss function",
            f"a log_softmax before {name}: harmless, since it changes nothing the second time",
            "return the logits, or use F.nll_loss",
        )
        return Mismatch("info", 1.0, 0.0, f"{loss.kind} is given log-probabilities", (cause,))
    if loss.outputs == "fractions" and last in ("sigmoid", "hardsigmoid"):
        cause = Cause(
            "output layer",
            f"a sigmoid before {name}, which takes logits of any size",
            "take the sigmoid out; for labels that do not exclude each other use "
            "F.binary_cross_entropy_with_logits",
        )
        text = f"{loss.kind} is given the outputs of a sigmoid: {bound}"
        return Mismatch(
            "error", loss.high, 1.0, text, (cause, _other("binary_cross_entropy_with_logits"))
        )
    if last in ("relu", "relu6", "tanh", "softplus") and _within(loss, last):
        cause = Cause(
            "output layer",
            f"a {last} between the last weight layer and {name}",
            f"take the {last} out of the end of the model",
        )
        lost = "no answer can be ruled out" if last != "tanh" else "no answer can be sure"
        text = f"{loss.kind} is given the outputs of {last}: {lost}"
        # Exact zeros are what a relu leaves; products of its outputs hardly ever are.
        severity: Severity = "error" if last in ("relu", "relu6") and loss.low == 0 else "warning"
        return Mismatch(severity, loss.low, _RANGES[last][0], text, (cause,))
    return None


def _likelihood(loss: LossReading) -> Mismatch | None:
    if loss.outputs == "log-probabilities" or not loss.outputs:
        return None
    given = "probabilities" if loss.outputs in ("probabilities", "fractions") else "logits"
    cause = Cause(
        "loss function",
        f"F.nll_loss (nn.NLLLoss) takes log-probabilities, but is given {given}: the loss is not "
        "bounded below"
        if given == "logits"
        else "F.nll_loss (nn.NLLLoss) takes log-probabilities, but is given probabilities: the "
        "logarithm is missing",
        "F.cross_entropy on the logits, or F.log_softmax(x, dim=1) before it",
    )
    # A log-probability is never positive; what is not may be unnormalized on purpose.
    severity: Severity = "error" if loss.high > 0.01 else "warning"
    text = f"{loss.kind} is given {given} (largest {loss.high:.3g}, but a log-probability is <= 0)"
    return Mismatch(severity, loss.high, 0.0, text, (cause, _other("cross_entropy")))


def _binary(loss: LossReading, last: str) -> Mismatch | None:
    low, high = loss.target_low, loss.target_high
    if low < -1e-3 or high > 1 + 1e-3:
        cause = Cause(
            "target",
            f"the targets reach from {low:.3g} to {high:.3g}; binary cross-entropy takes 0 to 1 "
            "and has no lower bound beyond",
            "y = (y > 0).float() for labels of -1 and 1; F.cross_entropy for more than two classes",
        )
        text = f"{loss.kind} has targets in [{low:.3g}, {high:.3g}], outside of [0, 1]"
        severity: Severity = "error" if low < -0.5 or high > 1.5 else "warning"
        return Mismatch(severity, max(-low, high - 1), 0.0, text, (cause,))
    if "logits" in loss.kind and loss.outputs in ("fractions", "probabilities"):
        if last not in ("sigmoid", "hardsigmoid", "softmax"):
            return None
        cause = Cause(
            "loss function",
            f"a {last} before F.binary_cross_entropy_with_logits, which applies its own",
            f"take the {last} out of the model, or use F.binary_cross_entropy",
        )
        text = f"{loss.kind} is given the outputs of {last}: the loss cannot fall below 0.31"
        return Mismatch("error", loss.high, 1.0, text, (cause,))
    return None


def _squared(loss: LossReading, last: str, note: float, unreachable: float) -> Mismatch | None:
    if last not in _RANGES or not _within(loss, last):
        return None
    low, high = _RANGES[last]
    span = loss.target_high - loss.target_low
    if not (math.isfinite(span) and span > 0):
        return None
    beyond = max(low - loss.target_low, 0.0) + max(loss.target_high - high, 0.0)
    share = beyond / span
    if share <= note:
        return None
    ends = f"[{low:g}, {high:g}]" if math.isfinite(high) else f"[{low:g}, inf)"
    causes = (
        Cause(
            "output layer",
            f"a {last} at the end of the model, whose outputs lie in {ends}",
            f"take the {last} out: the last layer of a regression is linear",
        ),
        Cause(
            "target",
            f"the targets reach from {loss.target_low:.3g} to {loss.target_high:.3g}",
            f"scale the targets to {ends}",
        ),
    )
    text = (
        f"{share:.0%} of the targets' range [{loss.target_low:.3g}, {loss.target_high:.3g}] is out "
        f"of the reach of the outputs of {last}"
    )
    if share > unreachable:
        return Mismatch("error", share, unreachable, text, causes)
    return Mismatch("warning", share, note, text, causes)


def _within(loss: LossReading, last: str) -> bool:
    """Whether what the loss was given may be what that function returned."""
    low, high = _RANGES[last]
    slack = 1e-3
    return loss.low >= low - slack and loss.high <= high + slack


def _other(wanted: str) -> Cause:
    return Cause("output layer", f"or the model is right and {wanted} was meant", f"use {wanted}")
