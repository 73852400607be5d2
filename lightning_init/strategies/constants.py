"""One law for every tensor, whatever its size: constants, one std, one bound, and nothing at all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from lightning_init.architecture.arguments import Range
from lightning_init.architecture.params import ParamInfo
from lightning_init.strategies.distributions import Constant, Distribution, Keep
from lightning_init.strategies.initializers import ByRole
from lightning_init.strategies.registry import Strategy, strategy
from lightning_init.strategies.variance import Std, table_with


@strategy
def keep(scale: Annotated[float, Range(1.0, 1.0)] = 1.0) -> Strategy:  # noqa: ARG001
    """Every tensor stays as the model built it, the baseline of every comparison.

    Args:
        scale: Must be 1: nothing is drawn that could be scaled.
    """
    return Strategy(_as_built)


@strategy
def normal(std: Std = 0.02) -> Strategy:
    """N(0, std^2) for every matrix, kernel and table, whatever its size.

    Args:
        std: Standard deviation, 1e-4 to 10.

    Example:
        >>> normal(0.05).initializer(ParamInfo(("w",), (2, 4), Role.WEIGHT)).std
        0.05
    """
    return table_with(std, "one std for all", "normal")


@strategy(search=False)
def uniform(
    bound: Annotated[float, Range(1e-4, 10.0, log=True, search=(0.01, 0.3))] = 0.05,
) -> Strategy:
    """U(-bound, bound) for every matrix, kernel and table; its std is bound / sqrt(3).

    Args:
        bound: Largest magnitude, 1e-4 to 10.

    Example:
        >>> uniform(0.3).initializer(ParamInfo(("w",), (2, 4), Role.WEIGHT)).high
        0.3
    """
    return table_with(bound / math.sqrt(3), "one bound for all", "uniform")


@strategy(search=False)
def truncated_normal(std: Std = 0.02) -> Strategy:
    """A normal cut at two standard deviations whose own std is `std`, for every matrix and table.

    Args:
        std: Standard deviation of what is drawn, 1e-4 to 10.

    Example:
        >>> truncated_normal().initializer(ParamInfo(("w",), (2, 4), Role.WEIGHT)).std
        0.02
    """
    return table_with(std, "one std for all", "truncated")


@strategy(search=False)
def constant(value: Annotated[float, Range(-10.0, 10.0)] = 0.0) -> Strategy:
    """The same value in every matrix, kernel and table; units stay equal, so layers cannot learn.

    Args:
        value: The constant, -10 to 10.

    Example:
        >>> constant(0.5).initializer(ParamInfo(("w",), (2, 4), Role.WEIGHT)).mean
        0.5
    """
    rule = _Constant(value)
    return Strategy(ByRole(weight=rule, embedding=rule))


@strategy(aliases=("zero",), search=False)
def zeros() -> Strategy:
    """0 in every matrix, kernel, table and bias; alone it stops all learning, use it for a part.

    A model whose matrices are all 0 passes on neither signals nor gradients. It is meant for
    overrides and chains: `{"role:head": zeros}` starts at a loss of exactly ln(classes).

    Example:
        >>> zeros().initializer(ParamInfo(("head.weight",), (2, 4), Role.WEIGHT))
        Constant(value=0.0, reason='zero')
    """
    rule = _Constant(0.0, "zero")
    return Strategy(ByRole(weight=rule, embedding=rule))


@dataclass(frozen=True, slots=True)
class _Constant:
    value: float
    reason: str = "one value for all"

    def __call__(self, info: ParamInfo) -> Distribution:  # noqa: ARG002
        return Constant(self.value, reason=self.reason)


def _as_built(info: ParamInfo) -> Distribution:  # noqa: ARG001
    return Keep("as built")
