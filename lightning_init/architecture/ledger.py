"""Numbers on their devices, read by the host in one transfer."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Ledger:
    """Takes scalars and vectors; gives all of them back in one transfer for each device.

    Example:
        >>> ledger = Ledger()
        >>> place, first = ledger.note(torch.tensor(2.0)), ledger.note(torch.tensor([3.0, 4.0]))
        >>> numbers = ledger.read()
        >>> numbers[place], numbers[first + 1]
        (2.0, 4.0)
    """

    def __init__(self) -> None:
        self._values: list[tuple[int, Tensor]] = []
        self._count = 0

    def note(self, value: Tensor) -> int:
        """Keep a scalar or a vector; the place of its first number in what `read` returns."""
        place = self._count
        self._values.append((place, value))
        self._count += value.numel()
        return place

    def read(self) -> list[float]:
        """Every number, in the order of the notes; forgets them."""
        found = [math.nan] * self._count
        devices: dict[torch.device, list[tuple[int, Tensor]]] = {}
        for place, value in self._values:
            devices.setdefault(value.device, []).append((place, value))
        for group in devices.values():
            scalars = [(place, value) for place, value in group if value.ndim == 0]
            vectors = [(place, value) for place, value in group if value.ndim > 0]
            parts = [torch.stack([value for _, value in scalars])] if scalars else []
            numbers = iter(torch.cat([*parts, *(value for _, value in vectors)]).tolist())
            for place, value in [*scalars, *vectors]:
                for i in range(value.numel()):
                    found[place + i] = next(numbers)
        self._values, self._count = [], 0
        return found
