"""Reductions of many outputs at once.

Where an output appears, only a small part of it is copied, which an in-place call cannot reach;
parts of one shape are then reduced together: on a CPU as on a GPU it is the number of calls that
costs, not their size. An output that is read in full is reduced where it appears, and not kept.

Variances come as E[x^2] - E[x]^2: on a CPU a Welford pass costs 45 times as much as a norm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_init.architecture.ledger import Ledger
from lightning_init.architecture.signals import LEAST, leading, rows_of_units, spread, wide

Ends = tuple[float, float]


class _Kind(NamedTuple):
    """What is reduced alike."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    channels: bool
    cosines: bool
    ends: Ends | None


@dataclass(slots=True)
class Pooled:
    """Places of what was read of one output; -1 for what was not.

    Attributes:
        size: Number of values that were read.
        mean: Place of their mean; norm, low, high, nonzero, beyond (the ends) likewise.
        vectors: Place of the number of samples that are not zero, and of units.
        sums: Places of the squared norms of the sums of their unit vectors.
    """

    size: int
    mean: int = -1
    norm: int = -1
    low: int = -1
    high: int = -1
    nonzero: int = -1
    beyond: int = -1
    vectors: tuple[int, int] = (-1, -1)
    sums: tuple[int, int] = (-1, -1)

    def of(self, numbers: Sequence[float]) -> dict[str, float]:
        """Mean, std, rms, absmax and zeros as numbers."""
        mean, rms = numbers[self.mean], numbers[self.norm] / math.sqrt(self.size)
        return {
            "mean": mean,
            "std": spread(mean, rms),
            "rms": rms,
            "absmax": max(abs(numbers[self.low]), abs(numbers[self.high])),
            "zeros": 1 - numbers[self.nonzero],
        }

    def cosine(self, numbers: Sequence[float], units: bool) -> float:
        """Mean cosine of all pairs of two samples, or of two units, zero vectors aside."""
        if self.sums[units] < 0:
            return math.nan
        count, square = numbers[self.vectors[units]], numbers[self.sums[units]]
        if not count > 1 or not math.isfinite(square):
            return math.nan
        return (square - count) / (count * (count - 1))


@dataclass(slots=True)
class Peaks:
    """Place of the fraction of dead units; how many units and values of each were read."""

    units: int
    rows: int
    dead: int = -1


class Pool:
    """Outputs of one step that wait to be reduced.

    Example:
        >>> pool, ledger = Pool(), Ledger()
        >>> read = pool.add(ledger, torch.tensor([[1.0, 3.0]]), channels=False, full=False)
        >>> pool.reduce(ledger)
        >>> read.of(ledger.read())["mean"]
        2.0
    """

    def __init__(self) -> None:
        self._waiting: dict[_Kind, list[tuple[Tensor, Pooled]]] = {}
        self._peaks: dict[tuple[torch.device, int], list[tuple[Tensor, Peaks]]] = {}

    def add(
        self,
        ledger: Ledger,
        value: Tensor,
        channels: bool,
        full: bool,
        cosines: bool = False,
        ends: Ends | None = None,
    ) -> Pooled:
        """Take an output.

        Args:
            ledger: Takes the numbers.
            value: The output.
            channels: Whether its units lie along dimension 1, else along the last.
            full: Whether all of it is read.
            cosines: Whether samples are compared with samples, and units with units.
            ends: Bounds beyond which values are counted.
        """
        part = leading(value.detach(), channels, full)
        found = Pooled(part.numel())
        kind = _Kind(part.shape, part.dtype, part.device, channels, cosines, ends)
        if full:
            _reduce(ledger, part[None], kind, [found])
        else:
            self._waiting.setdefault(kind, []).append((part.clone(), found))
        return found

    def peaks(self, value: Tensor, channels: bool, full: bool) -> Peaks:
        """Take the largest value of each unit: of channels over all positions that are read."""
        value = value.detach()
        if channels:
            part = leading(value, channels, full)
            peak = part.amax(dim=(0, *range(2, part.ndim)))
            found = Peaks(len(peak), part.numel() // len(peak))
        else:
            part = rows_of_units(value, full)
            peak = part.amax(dim=0)
            found = Peaks(part.shape[1], part.shape[0])
        self._peaks.setdefault((peak.device, len(peak)), []).append((peak, found))
        return found

    def reduce(self, ledger: Ledger) -> None:
        """Reduce everything that waits."""
        for kind, some in self._waiting.items():
            parts = torch.stack([part for part, _ in some])
            _reduce(ledger, parts, kind, [found for _, found in some])
        for peaks in self._peaks.values():
            dead = torch.stack([peak.float() for peak, _ in peaks]) <= 0
            first = ledger.note(dead.mean(dim=1, dtype=torch.float32))
            for i, (_, found) in enumerate(peaks):
                found.dead = first + i
        self._waiting, self._peaks = {}, {}


def _reduce(ledger: Ledger, parts: Tensor, kind: _Kind, found: list[Pooled]) -> None:
    """Reduce outputs of one kind, side by side along dimension 0."""
    flat, sum_type = parts.flatten(1), wide(parts)
    # Along a dimension `aminmax` takes 20 times as long as both, and a norm that is not along the
    # last one 27 times as long as a sum of squares.
    first = [
        ledger.note(each)
        for each in (
            flat.mean(1, dtype=sum_type),
            torch.linalg.vector_norm(flat, dim=1, dtype=sum_type),
            flat.amin(1),
            flat.amax(1),
            flat.sign().abs_().mean(1, dtype=sum_type),
        )
    ]
    beyond = -1
    if kind.ends is not None:
        outside = (flat <= kind.ends[0]) | (flat >= kind.ends[1])
        beyond = ledger.note(outside.mean(1, dtype=torch.float32))
    cosines = [(-1, -1), (-1, -1)]
    if kind.cosines and parts.ndim > 2:
        cosines = [_samples(ledger, parts), _units(ledger, parts, kind.channels)]
    for i, each in enumerate(found):
        each.mean, each.norm, each.low, each.high, each.nonzero = (place + i for place in first)
        each.beyond = beyond + i if beyond >= 0 else -1
        if kind.cosines and parts.ndim > 2:
            each.vectors = (cosines[0][0] + i, cosines[1][0] + i)
            each.sums = (cosines[0][1] + i, cosines[1][1] + i)


def _samples(ledger: Ledger, parts: Tensor) -> tuple[int, int]:
    rows = _float(parts.flatten(2))
    length = torch.linalg.vector_norm(rows, dim=2)
    return _noted(ledger, length, _inverse(length)[:, None] @ rows)


def _units(ledger: Ledger, parts: Tensor, channels: bool) -> tuple[int, int]:
    """On the leading rows: many agree on what a unit does as well as all."""
    parts = parts[:, :LEAST]
    if channels:
        maps = _float(parts.flatten(3))  # (outputs, rows, channels, positions)
        length = torch.linalg.vector_norm(torch.linalg.vector_norm(maps, dim=3), dim=1)
        return _noted(ledger, length, _inverse(length)[:, None, None] @ maps)
    columns = _float(parts.flatten(1, -2))
    length = columns.square().sum(1).sqrt_()
    return _noted(ledger, length, columns @ _inverse(length)[..., None])


def _noted(ledger: Ledger, length: Tensor, total: Tensor) -> tuple[int, int]:
    """Places of the number of vectors that are not zero, and of the squared norm of their sum."""
    count = (length != 0).sum(1)
    return ledger.note(count), ledger.note(total.flatten(1).square().sum(1))


def _inverse(length: Tensor) -> Tensor:
    # Of a zero vector any multiple is zero.
    return length.clamp_min(1e-30).reciprocal_()


def _float(value: Tensor) -> Tensor:
    return value if value.dtype in (torch.float32, torch.float64) else value.float()
