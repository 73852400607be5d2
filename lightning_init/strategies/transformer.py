"""The published recipes of transformers: one small std, and less where a residual branch ends."""

from __future__ import annotations

from lightning_init.strategies.initializers import BranchScaled, ByRole
from lightning_init.strategies.registry import Strategy, strategy
from lightning_init.strategies.variance import Fixed, Std, table_with


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
