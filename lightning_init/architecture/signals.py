"""What a few numbers say of a tensor: cheap reductions on its device, kept there until asked for.

Means, norms and extremes accumulate in float32 or better whatever the tensor's own type is, so
half-precision values neither overflow nor vanish. Variances come as E[x^2] - E[x]^2: on a CPU a
Welford pass costs 45 times as much as a norm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

LEAST = 16  # rows; a monitored step reads the first 1/16 of the batch, at least that many
_ENOUGH = 2**17  # values that a mean is taken over
_UNIT_ROWS = 256  # samples that a statement about single units rests on


class Ledger:
    """Scalars on their devices, read by the host in one transfer for each device.

    Example:
        >>> ledger = Ledger()
        >>> place = ledger.note(torch.tensor(2.0))
        >>> ledger.read()[place]
        2.0
    """

    def __init__(self) -> None:
        self._values: list[Tensor] = []

    def __len__(self) -> int:
        return len(self._values)

    def note(self, value: Tensor) -> int:
        """Keep a scalar; its place in what `read` returns."""
        self._values.append(value)
        return len(self._values) - 1

    def read(self) -> list[float]:
        """Every scalar as a number, in the order of the notes; forgets them."""
        found = [math.nan] * len(self._values)
        places: dict[torch.device, list[int]] = {}
        for place, value in enumerate(self._values):
            places.setdefault(value.device, []).append(place)
        for group in places.values():
            numbers = torch.stack([self._values[place] for place in group]).tolist()
            for place, number in zip(group, numbers, strict=True):
                found[place] = number
        self._values = []
        return found


class Moments(NamedTuple):
    """Places of a tensor's moments in a ledger."""

    mean: int
    rms: int
    low: int
    high: int
    nonzero: int

    def of(self, numbers: Sequence[float]) -> dict[str, float]:
        """Mean, std, rms, absmax and zeros as numbers."""
        mean, rms, low, high = (numbers[place] for place in self[:4])
        return {
            "mean": mean,
            "std": spread(mean, rms),
            "rms": rms,
            "absmax": max(abs(low), abs(high)),
            "zeros": 1 - numbers[self.nonzero],
        }


def spread(mean: float, rms: float) -> float:
    """Standard deviation from mean and root mean square.

    Example:
        >>> spread(3.0, 5.0)
        4.0
    """
    return math.sqrt(max(rms**2 - mean**2, 0.0)) if math.isfinite(rms) else rms


def leading(value: Tensor, full: bool) -> Tensor:
    """The rows that are read: all, or the first sixteenth of the batch and at least 16.

    Where fewer rows hold 131,072 values already they will do, down to a sixteenth of the batch.

    Example:
        >>> len(leading(torch.zeros(640, 2), full=False)), len(leading(torch.zeros(20, 2), False))
        (40, 16)
    """
    if full or value.ndim < 2:
        return value
    share = max(1, len(value) // LEAST)
    enough = max(1, math.ceil(_ENOUGH / (value.numel() // len(value))))
    return value[: max(share, min(LEAST, enough))]


def moments(ledger: Ledger, value: Tensor) -> Moments:
    """Mean, root mean square, extremes and the fraction that is not zero."""
    low, high = torch.aminmax(value)
    return Moments(
        ledger.note(value.mean(dtype=_wide(value))),
        ledger.note(rms(value)),
        ledger.note(low),
        ledger.note(high),
        ledger.note(value.sign().abs_().mean(dtype=_wide(value))),
    )


def rms(value: Tensor) -> Tensor:
    """Root mean square, summed in float32 or better."""
    size: Tensor = torch.linalg.vector_norm(value, dtype=_wide(value))
    return size / math.sqrt(value.numel())


def euclidean(value: Tensor) -> Tensor:
    """Euclidean norm as float32, summed in float32 or better."""
    dense = value.coalesce().values() if value.is_sparse else value
    wide = None if dense.dtype in (torch.float64, torch.complex128) else torch.float32
    found: Tensor = torch.linalg.vector_norm(dense.detach(), dtype=wide)
    return found.float()


def norms(values: Sequence[Tensor]) -> list[Tensor]:
    """The Euclidean norm of each tensor, those of one kind and device in one call.

    Example:
        >>> [float(norm) for norm in norms([torch.tensor([3.0, 4.0]), torch.tensor([2.0])])]
        [5.0, 2.0]
    """
    found: dict[int, Tensor] = {}
    kinds: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for place, value in enumerate(values):
        if value.layout is torch.strided and value.is_floating_point():
            kinds.setdefault((value.device, value.dtype), []).append(place)
        else:
            found[place] = euclidean(value)
    for (_, dtype), places in kinds.items():
        wide = torch.float64 if dtype is torch.float64 else torch.float32
        group = [values[place].detach() for place in places]
        found |= zip(places, torch._foreach_norm(group, 2, dtype=wide), strict=True)
    return [found[place] for place in range(len(values))]


class Cosine(NamedTuple):
    """Places of what a mean cosine between vectors follows from: their number and unit sum."""

    vectors: int
    square: int

    def of(self, numbers: Sequence[float]) -> float:
        """Mean cosine over all pairs of two different vectors, zero vectors aside."""
        count, square = numbers[self.vectors], numbers[self.square]
        if not count > 1 or not math.isfinite(square):
            return math.nan
        return (square - count) / (count * (count - 1))


def sample_cosine(ledger: Ledger, value: Tensor) -> Cosine | None:
    """How much the rows point in one direction, from their norms and the sum of the unit rows."""
    if value.ndim < 2 or len(value) < 2:
        return None
    rows = _float(value.flatten(1))
    length = torch.linalg.vector_norm(rows, dim=1)
    return _cosine(ledger, length, _inverse(length) @ rows)


def unit_cosine(ledger: Ledger, value: Tensor, channels: bool) -> Cosine | None:
    """How much the units (channels, or the last dimension) do the same on the leading rows."""
    if value.ndim < 2:
        return None
    value = value[:LEAST]
    if channels:
        maps = _float(value.flatten(2))  # (N, C, positions)
        maps = maps[:, :, :: math.ceil(maps.shape[2] / LEAST)]
        length = torch.linalg.vector_norm(maps, dim=(0, 2))
        return _cosine(ledger, length, _inverse(length) @ maps)
    columns = _thinned(value, _UNIT_ROWS)
    length = torch.linalg.vector_norm(_float(columns), dim=0)
    return _cosine(ledger, length, _float(columns) @ _inverse(length))


def _cosine(ledger: Ledger, length: Tensor, total: Tensor) -> Cosine:
    total = total.flatten()
    return Cosine(ledger.note(torch.count_nonzero(length)), ledger.note(total @ total))


def _inverse(length: Tensor) -> Tensor:
    # Of a zero vector any multiple is zero.
    return length.clamp_min(1e-30).reciprocal_()


class Units(NamedTuple):
    """Place of the fraction of dead units, their number, and the values read of each."""

    dead: int
    units: int
    rows: int


def dead_units(ledger: Ledger, value: Tensor, channels: bool) -> Units:
    """Units that are nowhere above zero: for channels every position counts as a row."""
    if channels:
        peak = value.flatten(2).amax(dim=(0, 2))
        return Units(
            ledger.note((peak <= 0).mean(dtype=torch.float32)),
            len(peak),
            value.numel() // value.shape[1],
        )
    rows = _thinned(value, _UNIT_ROWS)
    dead = rows.amax(dim=0) <= 0
    return Units(ledger.note(dead.mean(dtype=torch.float32)), rows.shape[1], rows.shape[0])


def _thinned(value: Tensor, most: int) -> Tensor:
    """A (rows, units) matrix of at most about `most` rows, evenly spaced in every sample."""
    if value.ndim < 3:
        return value[:most].reshape(-1, value.shape[-1])
    value = value.flatten(1, -2)
    inside = max(1, most // len(value))
    thin = value[:most, :: math.ceil(value.shape[1] / inside)]
    return thin.reshape(-1, value.shape[-1])


def fraction(ledger: Ledger, found: Tensor) -> int:
    """Place of the fraction of true entries."""
    return ledger.note(found.mean(dtype=torch.float32))


def between(value: Tensor, low: float, high: float) -> Tensor:
    """Which entries lie outside of the open interval (low, high)."""
    return (value <= low) | (value >= high)


def _float(value: Tensor) -> Tensor:
    return value if value.dtype in (torch.float32, torch.float64) else value.float()


def _wide(value: Tensor) -> torch.dtype:
    return torch.float64 if value.dtype is torch.float64 else torch.float32
