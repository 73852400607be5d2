"""What a tensor is drawn from: frozen values with an exact mean and std, and one way to sample.

`std` and `mean` are those of what is drawn, not of a parent distribution: a `TruncatedNormal`
with `std=0.02` has entries of std 0.02. Each carries the reason why it was chosen, in words.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Generator, Tensor


@runtime_checkable
class Distribution(Protocol):
    """Something a tensor can be drawn from."""

    @property
    def std(self) -> float:
        """Standard deviation of what is drawn."""

    @property
    def mean(self) -> float:
        """Mean of what is drawn."""

    @property
    def reason(self) -> str:
        """Why this was chosen."""

    def sample(self, shape: tuple[int, ...], generator: Generator) -> Tensor:
        """Draw a float32 tensor on the CPU."""

    def scaled(self, factor: float) -> Distribution:
        """The same with its std multiplied by `factor`."""


def reason_field() -> str:
    """The field for why a distribution was chosen; it does not count in comparisons."""
    return field(default="", compare=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class Normal:
    """N(mean, std^2).

    Args:
        std: Standard deviation, at least 0.
        mean: Mean.

    Example:
        >>> Normal(0.02).sample((2, 3), torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3])
    """

    std: float
    mean: float = 0.0
    reason: str = reason_field()

    def __post_init__(self) -> None:
        check_std(self.std)

    def sample(self, shape: tuple[int, ...], generator: Generator) -> Tensor:
        """Draw a float32 tensor on the CPU."""
        return self.fill_(torch.empty(shape), generator)

    def fill_(self, tensor: Tensor, generator: Generator) -> Tensor:
        """Draw into a contiguous float32 tensor on the CPU."""
        return tensor.normal_(self.mean, self.std, generator=generator)

    def scaled(self, factor: float) -> Self:
        """The same with its std multiplied by `factor`."""
        return replace(self, std=self.std * factor)

    def __str__(self) -> str:
        return f"normal, std {self.std:.4g}" + (f", mean {self.mean:.4g}" if self.mean else "")


@dataclass(frozen=True, slots=True)
class TruncatedNormal:
    """A normal cut at `cut` standard deviations of its parent, whose own std is `std`.

    With cut c, phi and Phi the standard normal density and distribution function, the parent's
    std is `std / sqrt(1 - 2 c phi(c) / (2 Phi(c) - 1))`; for c = 2 that is `std / 0.8796`.

    Args:
        std: Standard deviation of what is drawn, at least 0.
        mean: Mean.
        cut: Where the parent is cut, in its standard deviations, above 0.

    References:
        Johnson, Kotz & Balakrishnan (1994), Continuous Univariate Distributions 1, eq. 13.135.

    Example:
        >>> draw = TruncatedNormal(1.0).sample((10000,), torch.Generator().manual_seed(0))
        >>> bool(draw.abs().max() < 2 / 0.8796)
        True
    """

    std: float
    mean: float = 0.0
    cut: float = 2.0
    reason: str = reason_field()

    def __post_init__(self) -> None:
        check_std(self.std)
        if not self.cut > 0:
            raise ValueError(f"`cut > 0` must hold, but got cut={self.cut}")

    @property
    def parent_std(self) -> float:
        """Standard deviation of the normal before it is cut."""
        density = math.exp(-(self.cut**2) / 2) / math.sqrt(2 * math.pi)
        return self.std / math.sqrt(1 - 2 * self.cut * density / self._mass)

    @property
    def _mass(self) -> float:
        return math.erf(self.cut / math.sqrt(2))

    def sample(self, shape: tuple[int, ...], generator: Generator) -> Tensor:
        """Draw a float32 tensor on the CPU, by inverting the distribution function."""
        return self.fill_(torch.empty(shape), generator)

    def fill_(self, tensor: Tensor, generator: Generator) -> Tensor:
        """Draw into a contiguous float32 tensor on the CPU."""
        tensor.uniform_(-self._mass, self._mass, generator=generator)
        return tensor.erfinv_().mul_(self.parent_std * math.sqrt(2)).add_(self.mean)

    def scaled(self, factor: float) -> Self:
        """The same with its std multiplied by `factor`."""
        return replace(self, std=self.std * factor)

    def __str__(self) -> str:
        return f"truncated normal, std {self.std:.4g}"


@dataclass(frozen=True, slots=True)
class Uniform:
    """U(low, high).

    Args:
        low: Lower bound.
        high: Upper bound, at least `low`.

    Example:
        >>> round(Uniform(-1.0, 1.0).std, 4)
        0.5774
    """

    low: float
    high: float
    reason: str = reason_field()

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"`low <= high` must hold, but got low={self.low}, high={self.high}")

    @classmethod
    def from_std(cls, std: float, *, reason: str = "") -> Self:
        """U(-a, a) with a = sqrt(3) std."""
        check_std(std)
        return cls(-math.sqrt(3) * std, math.sqrt(3) * std, reason=reason)

    @property
    def std(self) -> float:
        """Standard deviation, (high - low) / sqrt(12)."""
        return (self.high - self.low) / math.sqrt(12)

    @property
    def mean(self) -> float:
        """Mean, (low + high) / 2."""
        return (self.low + self.high) / 2

    def sample(self, shape: tuple[int, ...], generator: Generator) -> Tensor:
        """Draw a float32 tensor on the CPU."""
        return self.fill_(torch.empty(shape), generator)

    def fill_(self, tensor: Tensor, generator: Generator) -> Tensor:
        """Draw into a contiguous float32 tensor on the CPU."""
        return tensor.uniform_(self.low, self.high, generator=generator)

    def scaled(self, factor: float) -> Self:
        """The same with its std multiplied by `factor`."""
        half = (self.high - self.low) / 2 * factor
        return replace(self, low=self.mean - half, high=self.mean + half)

    def __str__(self) -> str:
        return f"uniform, {self.low:.4g} to {self.high:.4g}"


@dataclass(frozen=True, slots=True)
class Constant:
    """The same value everywhere.

    Example:
        >>> Constant(1.0).sample((2,), torch.Generator())
        tensor([1., 1.])
    """

    value: float
    reason: str = reason_field()

    @property
    def std(self) -> float:
        """0."""
        return 0.0

    @property
    def mean(self) -> float:
        """The value."""
        return self.value

    def sample(self, shape: tuple[int, ...], generator: Generator) -> Tensor:  # noqa: ARG002
        """Fill a float32 tensor on the CPU; draws nothing."""
        return torch.full(shape, self.value)

    def scaled(self, factor: float) -> Self:  # noqa: ARG002
        """Itself: a constant has no std."""
        return self

    def __str__(self) -> str:
        return f"constant {self.value:.4g}"


@dataclass(frozen=True, slots=True)
class Keep:
    """The tensor stays as it is; the reason says why.

    Example:
        >>> Keep(reason="frozen").reason
        'frozen'
    """

    reason: str

    @property
    def std(self) -> float:
        """NaN: the values are the model's own."""
        return math.nan

    @property
    def mean(self) -> float:
        """NaN: the values are the model's own."""
        return math.nan

    def sample(self, shape: tuple[int, ...], generator: Generator) -> Tensor:
        """Never: nothing is drawn for a tensor that is kept.

        Raises:
            TypeError: Always.
        """
        raise TypeError(f"a kept tensor is not drawn ({self.reason}); shape {shape}, {generator}")

    def scaled(self, factor: float) -> Self:  # noqa: ARG002
        """Itself."""
        return self

    def __str__(self) -> str:
        return "keep"


@dataclass(frozen=True, slots=True)
class Calibrated:
    """Values that a calibration has set on data; only their statistics are known."""

    std: float
    mean: float
    reason: str = reason_field()

    def sample(self, shape: tuple[int, ...], generator: Generator) -> Tensor:
        """Never: the values depend on data.

        Raises:
            TypeError: Always.
        """
        raise TypeError(
            f"calibrated values cannot be drawn again (shape {shape}, {generator}): "
            "make the plan anew and run it with its forward"
        )

    def scaled(self, factor: float) -> Self:
        """The statistics of the values times `factor`."""
        return replace(self, std=self.std * factor, mean=self.mean * factor)

    def __str__(self) -> str:
        return f"calibrated, std {self.std:.4g}"


def check_std(value: float, name: str = "std") -> None:
    """Raise a ValueError unless `0 <= value < inf`."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"`{name} >= 0` must hold and be finite, but got {name}={value}")
