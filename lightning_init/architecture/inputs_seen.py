"""What a model is fed: the scale of what its first layers take from the batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from lightning_init.architecture.ledger import Ledger
from lightning_init.architecture.readings import InputReading
from lightning_init.architecture.signals import leading, norm

_ROUNDING = 1e-6  # a feature whose std is less of its magnitude does not vary
_SAMPLES = 64  # of a monitored step; an audit reads up to 4096
_ALL = 4096
T = TypeVar("T")


class Numbers(NamedTuple, Generic[T]):
    """Of an input: the places in a ledger, then the numbers."""

    mean: T
    std: T
    rms: T
    low: T
    high: T
    widest: T
    narrowest: T


class Seen(NamedTuple):
    """What was read of one input."""

    places: Numbers[int]
    normalized: bool

    def of(self, name: str, numbers: Sequence[float], normalized: bool) -> InputReading:
        """The reading; `normalized` says that a norm takes the layer's result."""
        found = Numbers(*(numbers[place] for place in self.places))
        return InputReading(
            name,
            mean=found.mean,
            std=found.std,
            rms=found.rms,
            absmax=max(abs(found.low), abs(found.high)),
            spread=found.widest / found.narrowest if 0 < found.narrowest < math.inf else 1.0,
            normalized=self.normalized or normalized,
            finite=math.isfinite(found.low) and math.isfinite(found.high),
        )


def read_input(ledger: Ledger, value: Tensor, channels: bool, normalized: bool, full: bool) -> Seen:
    """Read an input: its extremes over all rows, the rest over the rows that are read.

    Args:
        ledger: Takes the numbers.
        value: The input.
        channels: Whether its features lie along dimension 1.
        normalized: Whether a norm takes it.
        full: Whether all rows are read.
    """
    low, high = torch.aminmax(value)
    wide = value.dtype if value.dtype is torch.float64 else torch.float32
    rows = leading(value, channels and value.ndim > 2, full).to(wide)
    mean = rows.mean()
    # The data may lie far from zero: their spread is taken about the mean.
    root = math.sqrt(rows.numel())
    std = norm(rows - mean) / root
    widest, narrowest = _features(value[: _ALL if full else _SAMPLES].to(wide), channels)
    values = (mean, std, norm(rows) / root, low, high, widest, narrowest)
    return Seen(Numbers(*map(ledger.note, values)), normalized)


def _features(rows: Tensor, channels: bool) -> tuple[Tensor, Tensor]:
    """Largest and smallest std of a feature, of those that vary."""
    if channels and rows.ndim > 2:
        rows = rows.transpose(0, 1).flatten(1)
        dim = 1
    else:
        rows = rows.reshape(-1, rows.shape[-1])
        dim = 0
    count = rows.shape[dim]
    centered = rows - rows.mean(dim=dim, keepdim=True)
    std = torch.linalg.vector_norm(centered, dim=dim) / math.sqrt(count)
    size = torch.linalg.vector_norm(rows, dim=dim) / math.sqrt(count)
    varies = std > _ROUNDING * size
    return std.amax(), torch.where(varies, std, math.inf).amin()
