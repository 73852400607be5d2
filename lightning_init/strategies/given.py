"""Values that are known beforehand."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Generator, Tensor

from lightning_init.strategies.distributions import reason_field


@dataclass(frozen=True, slots=True)
class Given:
    """Known values, one per entry of a vector.

    Example:
        >>> Given((1.0, 3.0)).mean, Given((1.0, 3.0)).std
        (2.0, 1.0)
    """

    values: tuple[float, ...]
    reason: str = reason_field()

    @property
    def mean(self) -> float:
        """Mean of the values."""
        return sum(self.values) / len(self.values)

    @property
    def std(self) -> float:
        """Standard deviation of the values."""
        mean = self.mean
        return math.sqrt(sum((value - mean) ** 2 for value in self.values) / len(self.values))

    def sample(self, shape: tuple[int, ...], generator: Generator) -> Tensor:  # noqa: ARG002
        """The values, as a float32 tensor."""
        return torch.tensor(self.values).reshape(shape)

    def scaled(self, factor: float) -> Self:  # noqa: ARG002
        """The same: what is known has no spread to scale."""
        return self

    def __str__(self) -> str:
        return f"{len(self.values)} given values, {min(self.values):.3g} to {max(self.values):.3g}"
