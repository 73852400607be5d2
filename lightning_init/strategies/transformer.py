"""The published recipes of transformers: one small std, and less where a residual branch ends."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from lightning_init.architecture.params import ParamInfo
from lightning_init.strategies.distributions import Distribution
from lightning_init.strategies.initializers import ByRole, Initializer
from lightning_init.strategies.registry import Strategy, strategy
from lightning_init.strategies.variance import Fixed, Std, table_with


@dataclass(frozen=True, slots=True)
class BranchScaled:
    """Another initializer, times 1/sqrt(residual additions) where a branch ends.

    The sum of n branches of equal variance then has the variance of one.

    Example:
        >>> usage = Usage(ends_branch=True, num_branches=4)
        >>> info = ParamInfo(("w",), (2, 2), Role.WEIGHT, usage=usage)
        >>> BranchScaled(Fixed(0.02, "normal", "GPT-2"))(info).std
        0.01
    """

    initializer: Initializer

    def __call__(self, info: ParamInfo) -> Distribution:
        """The distribution of one tensor."""
        base = self.initializer(info)
        usage = info.usage
        if usage is None or not usage.ends_branch:
            return base
        scaled = base.scaled(1 / math.sqrt(usage.num_branches))
        return with_reason(scaled, f"{base.reason}, / sqrt({usage.num_branches} branches)")


def with_reason(distribution: Distribution, reason: str) -> Distribution:
    """The same distribution for another reason."""
    return replace(distribution, reason=reason)  # type: ignore[type-var]  # all are dataclasses


@strategy
def gpt2(std: Std = 0.02) -> Strategy:
    """N(0, std^2) everywhere, std / sqrt(2L) where a residual branch ends; zero bias.

    2L is the number of residual additions that one forward pass shows (two per block).

    Args:
        std: Standard deviation of matrices and tables, 1e-4 to 10.

    References:
        Radford et al. (2019), Language Models are Unsupervised Multitask Learners, section 2.3;
        the std of position tables is 0.02 as in transformers, not 0.01 as in the first code.

    Example:
        >>> gpt2().initializer(ParamInfo(("w",), (4, 4), Role.WEIGHT)).std
        0.02
    """
    rule = Fixed(std, "normal", "GPT-2")
    return Strategy(ByRole(weight=BranchScaled(rule), embedding=rule))


@strategy
def bert(std: Std = 0.02) -> Strategy:
    """A normal cut at two standard deviations whose own std is `std`, everywhere; zero bias.

    The first BERT code gave 0.02 to a function that returns 0.88 of the std it is given; here
    `std` is the std of the weights.

    Args:
        std: Standard deviation of matrices and tables, 1e-4 to 10.

    References:
        Devlin, Chang, Lee & Toutanova (2018), https://arxiv.org/abs/1810.04805

    Example:
        >>> bert().initializer(ParamInfo(("w",), (4, 4), Role.WEIGHT)).std
        0.02
    """
    return table_with(std, "BERT", "truncated")
