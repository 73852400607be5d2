"""Values that come from a file: whole, sliced, or in a corner of what is drawn."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Generator, Tensor

from lightning_init.strategies.distributions import Distribution, reason_field


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """Values of another model; `scale` does not change them.

    Args:
        values: The values, not copied: they may lie in a mapped file.
        how: What was done to them, `""` if nothing.

    Example:
        >>> law = Loaded(torch.tensor([1.0, 3.0]), reason="from best.ckpt: bias")
        >>> law.mean, law.std, str(law)
        (2.0, 1.0, 'loaded')
    """

    values: Tensor = field(repr=False)
    how: str = ""
    reason: str = reason_field()

    # Measured at once: a mapped file may be overwritten later, and no longer be there to read.
    mean: float = field(init=False, compare=False, repr=False)
    std: float = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        var, mean = 0.0, 0.0
        if self.values.numel():
            var, mean = map(float, torch.var_mean(self.values.float(), correction=0))
        object.__setattr__(self, "std", math.sqrt(var))
        object.__setattr__(self, "mean", mean)

    def sample(self, shape: tuple[int, ...], generator: Generator) -> Tensor:  # noqa: ARG002
        """A copy of the values, in float32 at least."""
        kind = torch.float64 if self.values.dtype == torch.float64 else torch.float32
        return self.values.to(kind, copy=True).reshape(shape)

    def scaled(self, factor: float) -> Self:  # noqa: ARG002
        """The same: what is loaded has no std to scale."""
        return self

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Loaded):
            return NotImplemented
        return self.how == other.how and _same(self.values, other.values)

    def __hash__(self) -> int:
        return hash((tuple(self.values.shape), self.how))

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        # A view of a mapped file would take the whole file along.
        return _loaded, (self.values.clone(), self.how, self.reason)

    def __str__(self) -> str:
        return f"loaded, {self.how}" if self.how else "loaded"


@dataclass(frozen=True, slots=True, eq=False)
class Grown:
    """Values of a smaller model inside of a larger tensor; what is new is drawn, or 0.

    Args:
        values: The values.
        places: For each dimension where they go, ascending.
        below: What the new rows are drawn from.
        silent: The dimensions of the inputs: there the old rows take nothing from new inputs.

    Example:
        >>> from lightning_init.strategies.distributions import Constant
        >>> places = (torch.arange(1), torch.arange(1))
        >>> Grown(torch.ones(1, 1), places, Constant(5.0), (1,)).sample((2, 2), Generator())
        tensor([[1., 0.],
                [5., 5.]])
    """

    values: Tensor = field(repr=False)
    places: tuple[Tensor, ...] = field(repr=False)
    below: Distribution
    silent: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()
    reason: str = reason_field()

    @property
    def mean(self) -> float:
        """Mean over all."""
        share, quiet = self._shares()
        values = self.values.double()
        return share * float(values.mean()) + (1 - share - quiet) * self.below.mean

    @property
    def std(self) -> float:
        """Standard deviation over all."""
        share, quiet = self._shares()
        square = share * float(self.values.double().square().mean())
        square += (1 - share - quiet) * (self.below.std**2 + self.below.mean**2)
        return math.sqrt(max(0.0, square - self.mean**2))

    def _shares(self) -> tuple[float, float]:
        """How much is loaded, and how much is 0."""
        total = max(1, math.prod(self.shape))
        rows = math.prod(
            size if dim in self.silent else len(self.places[dim])
            for dim, size in enumerate(self.shape)
        )
        share = self.values.numel() / total
        return share, (rows / total - share if self.silent else 0.0)

    def sample(self, shape: tuple[int, ...], generator: Generator) -> Tensor:
        """Draw a float32 tensor on the CPU."""
        out = self.below.sample(shape, generator)
        if self.silent:
            old = [
                torch.arange(size) if dim in self.silent else self.places[dim]
                for dim, size in enumerate(shape)
            ]
            out[torch.meshgrid(*old, indexing="ij")] = 0.0
        out[torch.meshgrid(*self.places, indexing="ij")] = self.values.to(out.dtype)
        return out

    def scaled(self, factor: float) -> Grown:
        """The same with the std of what is drawn multiplied by `factor`."""
        below = self.below.scaled(factor)
        return Grown(self.values, self.places, below, self.silent, self.shape, reason=self.reason)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Grown):
            return NotImplemented
        places = zip(self.places, other.places, strict=False)
        return (
            (self.below, self.silent, self.shape) == (other.below, other.silent, other.shape)
            and _same(self.values, other.values)
            and all(_same(one, two) for one, two in places)
        )

    def __hash__(self) -> int:
        return hash((self.shape, self.silent))

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        own = (self.values.clone(), self.places, self.below, self.silent, self.shape, self.reason)
        return _grown, own

    def __str__(self) -> str:
        return f"loaded {'x'.join(map(str, self.values.shape))}, the rest {self.below}"


def _loaded(values: Tensor, how: str, reason: str) -> Loaded:
    return Loaded(values, how, reason=reason)


def _grown(
    values: Tensor,
    places: tuple[Tensor, ...],
    below: Distribution,
    silent: tuple[int, ...],
    shape: tuple[int, ...],
    reason: str,
) -> Grown:
    return Grown(values, places, below, silent, shape, reason=reason)


def _same(one: Tensor, two: Tensor) -> bool:
    return one.dtype == two.dtype and one.shape == two.shape and torch.equal(one, two)
