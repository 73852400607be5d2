"""A fused tensor drawn part by part: query, key and value, or the gates of an LSTM.

Fused or separate, a matrix gets the same distribution: an initializer is asked about each part as
if it stood alone, with its own rows, fans and heads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from lightning_init.architecture.params import ParamInfo, Part
from lightning_init.strategies.distributions import (
    Constant,
    Distribution,
    Keep,
    Normal,
    TruncatedNormal,
    Uniform,
    reason_field,
)
from lightning_init.strategies.initializers import Initializer

_ELEMENTWISE = (Normal, TruncatedNormal, Uniform, Constant, Keep)


@dataclass(frozen=True, slots=True)
class Stacked:
    """A distribution for each part of a tensor, drawn in the order of the parts.

    Args:
        axis: The dimension along which the parts are stacked.
        parts: Each part and its distribution; together they cover every row once.

    Example:
        >>> halves = Part("a", ((0, 2),)), Part("b", ((2, 4),))
        >>> gates = Stacked(0, ((halves[0], Constant(0.0)), (halves[1], Constant(1.0))))
        >>> gates.sample((4,), torch.Generator())
        tensor([0., 0., 1., 1.])
    """

    axis: int
    parts: tuple[tuple[Part, Distribution], ...]
    reason: str = reason_field()

    @property
    def mean(self) -> float:
        """Mean over all parts."""
        rows = sum(part.size for part, _ in self.parts)
        return sum(part.size * each.mean for part, each in self.parts) / rows

    @property
    def std(self) -> float:
        """Standard deviation over all parts."""
        rows, mean = sum(part.size for part, _ in self.parts), self.mean
        squares = (part.size * (each.std**2 + (each.mean - mean) ** 2) for part, each in self.parts)
        return math.sqrt(sum(squares) / rows)

    @property
    def key(self) -> tuple[str, ...]:
        """The names that a part's randomness is made from, if it is shared; `()` if not."""
        keys: list[tuple[str, ...]] = [getattr(each, "key", ()) for _, each in self.parts]
        return next(filter(None, keys), ())

    def sample(self, shape: tuple[int, ...], generator: Generator) -> Tensor:
        """Draw a float32 tensor on the CPU."""
        out = torch.empty(shape)
        for part, distribution in self.parts:
            drawn = distribution.sample(with_rows(shape, self.axis, part.size), generator)
            rows = torch.cat([torch.arange(start, stop) for start, stop in part.rows])
            out.index_copy_(self.axis, rows, drawn)
        return out

    def scaled(self, factor: float) -> Stacked:
        """The same with the std of each part multiplied by `factor`."""
        parts = tuple((part, each.scaled(factor)) for part, each in self.parts)
        return replace(self, parts=parts)

    def __str__(self) -> str:
        said: dict[str, list[str]] = {}
        for part, distribution in self.parts:
            said.setdefault(str(distribution), []).append(part.name)
        return "; ".join(f"{'|'.join(names)} {text}" for text, names in said.items())


def with_rows(shape: tuple[int, ...], axis: int, rows: int) -> tuple[int, ...]:
    """A shape with another number of rows.

    Example:
        >>> with_rows((48, 16), 0, 16)
        (16, 16)
    """
    return (*shape[:axis], rows, *shape[axis + 1 :])


def split(info: ParamInfo) -> list[tuple[Part, ParamInfo]]:
    """The parts of a fused tensor, each described as if it stood alone.

    Example:
        >>> halves = Part("key", ((0, 2),)), Part("value", ((2, 6),))
        >>> info = ParamInfo(("kv",), (6, 8), "weight", 8.0, 3.0, blocks=2, parts=halves)
        >>> [(part.name, each.shape, each.fan_out) for part, each in split(info)]
        [('key', (2, 8), 2.0), ('value', (4, 8), 4.0)]
    """
    total, usage = sum(part.size for part in info.parts), info.usage
    found = []
    for part in info.parts:
        own = usage
        if usage is not None and usage.attention:
            query = next((p.size for p in info.parts if p.name == "query"), part.size)
            attends = "" if part.name == "rest" else part.name
            heads = max(1, usage.num_heads * part.size // query) if attends else 0
            own = replace(usage, attention=attends, num_heads=heads)
        each = replace(
            info,
            shape=with_rows(info.shape, info.axis, part.size),
            fan_out=info.fan_out * part.size * len(info.parts) / total,
            blocks=1,
            parts=(),
            part=part.name,
            usage=own,
        )
        found.append((part, each))
    return found


def decide(initializer: Initializer, info: ParamInfo) -> Distribution:
    """What an initializer says of a tensor, part by part where it is fused.

    Example:
        >>> halves = Part("query", ((0, 2),)), Part("key", ((2, 4),))
        >>> info = ParamInfo(("qk",), (4, 8), "weight", 8.0, 2.0, blocks=2, parts=halves)
        >>> str(decide(lambda i: Normal(1.0 if i.shape == (2, 8) else 2.0), info))
        'normal, std 1'
    """
    if not info.parts:
        return initializer(info)
    parts = tuple((part, initializer(each)) for part, each in split(info))
    first = parts[0][1]
    if any(isinstance(each, Keep) or not isinstance(each, Distribution) for _, each in parts):
        return initializer(info)
    if isinstance(first, _ELEMENTWISE) and all(each == first for _, each in parts):
        return first
    if _even(info) and len({str(each) for _, each in parts}) == 1:
        return initializer(info)  # equal blocks along dim 0 say the same
    return Stacked(info.axis, parts, reason=first.reason)


def _even(info: ParamInfo) -> bool:
    """Whether the parts are equal blocks, one after the other, along dim 0."""
    size = info.shape[0] // len(info.parts)
    return info.axis == 0 and all(
        part.rows == ((i * size, (i + 1) * size),) for i, part in enumerate(info.parts)
    )
