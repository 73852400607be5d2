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


def _reason() -> str:
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
    reason: str = _reason()

    def __post_init__(self) -> None:
        _check_std(self.std)

    def sample(self, shape: tuple[int, ...], generator: Generator) -> Tensor:
        """Draw a float32 tensor on the CPU."""
        return torch.empty(shape).normal_(self.mean, self.std, generator=generator)

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
    reason: str = _reason()

    def __post_init__(self) -> None:
        _check_std(self.std)
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
        draw = torch.empty(shape).uniform_(-self._mass, self._mass, generator=generator)
        return draw.erfinv_().mul_(self.parent_std * math.sqrt(2)).add_(self.mean)

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
    reason: str = _reason()

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"`low <= high` must hold, but got low={self.low}, high={self.high}")

    @classmethod
    def from_std(cls, std: float, *, reason: str = "") -> Self:
        """U(-a, a) with a = sqrt(3) std."""
        _check_std(std)
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
        return torch.empty(shape).uniform_(self.low, self.high, generator=generator)

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
    reason: str = _reason()

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
class Orthogonal:
    """`gain` times a matrix with orthonormal rows or columns, Haar distributed.

    A tensor is seen as `blocks` matrices stacked along dim 0, the other dims flattened; each is
    drawn on its own. The QR decomposition runs on one thread, since its last bits depend on the
    number of threads.

    Args:
        shape: Shape of the tensor; at least 2 dimensions.
        gain: Every singular value, at least 0.
        blocks: Independent matrices along dim 0; divides `shape[0]`.

    References:
        Saxe, McClelland & Ganguli (2013), https://arxiv.org/abs/1312.6120;
        Mezzadri (2007), https://arxiv.org/abs/math-ph/0609050 (signs that make it Haar).

    Example:
        >>> w = Orthogonal((4, 8), gain=2.0).sample((4, 8), torch.Generator().manual_seed(0))
        >>> bool(torch.allclose(w @ w.T, 4 * torch.eye(4), atol=1e-5))
        True
    """

    shape: tuple[int, ...]
    gain: float = 1.0
    blocks: int = 1
    reason: str = _reason()

    def __post_init__(self) -> None:
        if len(self.shape) < 2:
            raise ValueError(
                f"an orthogonal tensor needs 2 or more dimensions, but got {self.shape}"
            )
        if self.blocks < 1 or self.shape[0] % self.blocks:
            raise ValueError(
                f"`blocks` must divide the first dimension, but got blocks={self.blocks} "
                f"for shape {self.shape}"
            )
        _check_std(self.gain, "gain")

    @property
    def _matrix(self) -> tuple[int, int]:
        return self.shape[0] // self.blocks, math.prod(self.shape[1:])

    @property
    def std(self) -> float:
        """Root mean square of the entries, gain / sqrt(max(rows, columns))."""
        return self.gain / math.sqrt(max(*self._matrix, 1))

    @property
    def mean(self) -> float:
        """0."""
        return 0.0

    def sample(self, shape: tuple[int, ...], generator: Generator) -> Tensor:
        """Draw a float32 tensor on the CPU."""
        if tuple(shape) != self.shape:
            raise ValueError(f"drawn for shape {self.shape}, but got shape {tuple(shape)}")
        rows, columns = self._matrix
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            blocks = [_haar(rows, columns, generator) for _ in range(self.blocks)]
        finally:
            torch.set_num_threads(threads)
        return torch.cat(blocks).mul_(self.gain).reshape(shape)

    def scaled(self, factor: float) -> Self:
        """The same with its gain multiplied by `factor`."""
        return replace(self, gain=self.gain * factor)

    def __str__(self) -> str:
        blocks = f" in each of {self.blocks} blocks" if self.blocks > 1 else ""
        return f"orthogonal, gain {self.gain:.4g}{blocks}"


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
    reason: str = _reason()

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


def _haar(rows: int, columns: int, generator: Generator) -> Tensor:
    draw = torch.empty(max(rows, columns), min(rows, columns)).normal_(generator=generator)
    q, r = torch.linalg.qr(draw)
    diagonal = r.diagonal()
    q *= torch.where(diagonal < 0, -1.0, 1.0)
    haar: Tensor = q if rows >= columns else q.T
    return haar


def _check_std(value: float, name: str = "std") -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"`{name} >= 0` must hold and be finite, but got {name}={value}")
