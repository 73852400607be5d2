"""What a loss function is given: logits, probabilities, their logarithms, or a bounded output."""

from __future__ import annotations

import math
from typing import TypedDict

import torch
from torch import Tensor

_ROWS = 4096  # rows that are looked at: all alike in kind
_ROUNDING = {torch.float16: 2e-2, torch.bfloat16: 5e-2}


class Given(TypedDict):
    """Fields of a `LossReading`."""

    outputs: str
    low: float
    high: float
    spread: float


def given(outputs: Tensor, classes: int = 0) -> Given:
    """What the values say of the outputs that a loss was given.

    Args:
        outputs: Shape (samples, classes, ...), or (classes) for one sample; any shape if there
            are no classes.
        classes: Number of classes, 0 if each output stands for itself.

    Returns:
        `probabilities` if rows sum to 1, `log-probabilities` if their exponentials do, `fractions`
        if all lie in [0, 1], `nonnegative`, else `logits`; smallest and largest output; standard
        deviation over the samples, mean over outputs.

    Example:
        >>> given(torch.randn(9, 4).softmax(1), 4)["outputs"], given(torch.randn(9, 4), 4)["outputs"]
        ('probabilities', 'logits')
    """
    values = outputs.detach()
    samples = (
        values[: max(2, _ROWS * max(classes, 1) // max(values[:1].numel(), 1))]
        if values.ndim
        else values
    )
    rows = values.movedim(1 if values.ndim > 1 else 0, -1) if classes else values.reshape(-1, 1)
    rows = rows.reshape(-1, classes or 1)[:_ROWS].float()
    low, high = (float(end) for end in torch.aminmax(values))
    one_sample = values.ndim < 2 if classes else values.ndim < 1
    flat = samples.float().reshape(len(samples), -1) if not one_sample else rows[:1]
    spread = float(flat.std(0, correction=0).mean()) if len(flat) > 1 else math.nan
    near = _ROUNDING.get(values.dtype, 1e-3)
    if math.isnan(low) or math.isnan(high):
        kind = ""
    elif classes > 1 and low >= 0 and _all_near(rows.sum(-1), 1.0, near):
        kind = "probabilities"
    elif classes > 1 and high <= near and _all_near(rows.logsumexp(-1), 0.0, near):
        kind = "log-probabilities"
    elif low >= 0:
        kind = "fractions" if high <= 1 else "nonnegative"
    else:
        kind = "logits"
    return Given(outputs=kind, low=low, high=high, spread=spread)


def _all_near(values: Tensor, wanted: float, near: float) -> bool:
    return bool(((values - wanted).abs() <= near).all())
