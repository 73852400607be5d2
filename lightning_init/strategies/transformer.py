"""The published recipes of transformers: one small std, and less where a residual branch ends."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from torch import nn

from lightning_init.architecture.arguments import Range
from lightning_init.architecture.params import Architecture, ParamInfo
from lightning_init.strategies.distributions import Distribution, Keep, Normal
from lightning_init.strategies.initializers import BranchScaled, ByRole
from lightning_init.strategies.registry import Strategy, strategy
from lightning_init.strategies.stacks import stacks
from lightning_init.strategies.variance import Fixed, Shape, Std, table_with
from lightning_init.strategies.widths import Widths, widths


@strategy
def gpt2(
    std: Std = 0.02,
    shape: Shape = "normal",
    position: Annotated[float, Range(0.01, 10.0, log=True, search=(0.5, 1.0))] = 1.0,
) -> Strategy:
    """N(0, std^2) everywhere, std / sqrt(2L) where a residual branch ends; zero bias.

    2L is the number of residual additions that one forward pass shows (two per block).

    Args:
        std: Standard deviation of matrices and tables, 1e-4 to 10.
        shape: `uniform` draws U(-a, a) with a = sqrt(3) std, so that the std is the same. Code
            that says U(-0.02, 0.02) means another thing: its std is 0.0115.
        position: Factor on the std of position tables, 0.01 to 10. The first code has 0.5 (0.01
            for positions, 0.02 for tokens), transformers has 1.

    References:
        Radford et al. (2019), Language Models are Unsupervised Multitask Learners, section 2.3

    Example:
        >>> gpt2().initializer(ParamInfo(("w",), (4, 4), Role.WEIGHT)).std
        0.02
    """
    rule = Fixed(std, shape, "GPT-2")
    positions = Fixed(std * position, shape, "GPT-2")
    return Strategy(ByRole(weight=BranchScaled(rule), embedding=rule, position=positions))


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


@dataclass(frozen=True, slots=True)
class SmallInit:
    """N(0, 2 / (5 d)), d being the width of the residual stream."""

    widths: Widths = field(default_factory=Widths)

    def __call__(self, info: ParamInfo) -> Distribution:
        """The distribution of one matrix or table."""
        if info.numel == 0:
            return Keep("empty")
        width = self.widths.of(info) or 1.0  # 0 in a lazy layer, which the plan refuses
        return Normal(math.sqrt(2 / (5 * width)), reason=f"small init: width {width:g}")


@dataclass(frozen=True, slots=True)
class WangInit:
    """N(0, (2 / (L sqrt(d)))^2) where a residual branch ends, `SmallInit` elsewhere.

    Args:
        small: For all the other matrices.
        layers: Index of a branch -> the layers L of its stack.
    """

    small: SmallInit = field(default_factory=SmallInit)
    layers: Mapping[int, int] = field(default_factory=dict)

    def __call__(self, info: ParamInfo) -> Distribution:
        """The distribution of one matrix or table."""
        usage = info.usage
        if usage is None or not usage.ends_branch or usage.branch not in self.layers:
            return self.small(info)
        layers, width = self.layers[usage.branch], self.small.widths.of(info)
        reason = f"Wang init: {layers} layers, width {width:g}"
        return Normal(2 / (layers * math.sqrt(width)), reason=reason)


@strategy(wants=("forward",))
def small() -> Strategy:
    """N(0, 2 / (5 d)) for every matrix and table, d the width of the residual stream; zero bias.

    That is Xavier's std of a (4d, d) matrix, used for all of them. d is read from what ends each
    residual branch, so that an encoder and a decoder may differ; a layer in a model without
    residual branches goes by its own fan_in, a table by its own width.

    References:
        Nguyen & Salazar (2019), https://arxiv.org/abs/1910.05895

    Example:
        >>> small().initializer(ParamInfo(("w",), (40, 10), Role.WEIGHT, fan_in=10)).std
        0.2
    """

    def prepare(model: nn.Module, architecture: Architecture) -> Strategy:
        del model
        return _with(SmallInit(widths(architecture)))

    return _with(SmallInit())._replace(prepare=prepare)


@strategy(search=False, needs=("branches",), nearest="small")
def wang() -> Strategy:
    """N(0, (2 / (L sqrt(d)))^2) where a residual branch ends, N(0, 2 / (5 d)) elsewhere; zero bias.

    L is the number of layers of the stack (not of residual additions, 2L), d its width: the
    recipe of GPT-NeoX-20B, `wang_init` with `small_init`. Below 4 layers the ends of branches are
    larger than the rest.

    References:
        Black et al. (2022), https://arxiv.org/abs/2204.06745, who quote Wang (2021),
        https://github.com/kingoflolz/mesh-transformer-jax; Nguyen & Salazar (2019), see `small`

    Example:
        >>> import torch
        >>> from lightning_init import make_plan
        >>> layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        >>> model = nn.TransformerEncoder(layer, 8, enable_nested_tensor=False)
        >>> plan = make_plan(model, "wang", forward=lambda: model(torch.ones(1, 4, 16)))
        >>> plan["layers.0.linear2.weight"].std  # 2 / (8 layers * sqrt(16))
        0.0625
    """

    def prepare(model: nn.Module, architecture: Architecture) -> Strategy:
        del model
        layers = {stack.stream: stack.layers for stack in stacks(architecture)}
        each = {at: layers[branch.stream] for at, branch in enumerate(architecture.branches)}
        return _with(WangInit(SmallInit(widths(architecture)), each))

    return _with(WangInit())._replace(prepare=prepare)


def _with(rule: SmallInit | WangInit) -> Strategy:
    return Strategy(ByRole(weight=rule, embedding=rule))
