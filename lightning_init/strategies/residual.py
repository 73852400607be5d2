"""Residual branches that start small, or at zero: then a stack of blocks starts as the identity.

Zero-gamma and its kin change what ends a branch and leave the rest to other schemes; Fixup decides
for the whole model. SkipInit, ReZero and LayerScale set a learned scale that each branch must have
(`structure.add_branch_scales_`).
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from torch import nn

from lightning_init.architecture.arguments import Range
from lightning_init.architecture.params import Architecture, Role
from lightning_init.strategies.branch_scales import layerscale_value
from lightning_init.strategies.branches import BranchStart, FixupWeight, SkipGain, ZeroEnd
from lightning_init.strategies.chain import modifier
from lightning_init.strategies.initializers import ByRole
from lightning_init.strategies.registry import Strategy, strategy
from lightning_init.strategies.variance import tied_table

_SQRT2 = math.sqrt(2)
Gain = Annotated[float, Range(0.1, 10.0, log=True, search=(0.5, 2.0))]
Start = Annotated[float, Range(0.0, 1.0)]


@strategy(search=False, needs=("branches",), nearest="auto")
def zero_gamma(last_layer: bool = True) -> Strategy:
    """0 for the last norm's scale in each residual branch (else for its last layer): x + 0.

    All else is as other schemes decide, `auto` if there is none. Each block then starts as its
    skip path. The norm of a projection shortcut is part of the skip path and keeps its scale. A
    branch without a norm at its end gets a zero last layer (weight and bias), which is not in the
    paper. It can slow very short trainings.

    Args:
        last_layer: Whether branches without a norm at their end get a zero last layer.

    References:
        Goyal et al. (2017), section 5.1, https://arxiv.org/abs/1706.02677;
        He et al. (2018), section 3.1, https://arxiv.org/abs/1812.01187

    Example:
        >>> from lightning_init import make_plan
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, norm_first=True)
        >>> plan = make_plan(layer, "zero_gamma", forward=lambda: layer(torch.ones(4, 1, 8)))
        >>> str(plan["linear2.weight"]), str(plan["linear1.weight"])
        ('constant 0', 'normal, std 0.2887')
    """

    def prepare(model: nn.Module, architecture: Architecture) -> Strategy:  # noqa: ARG001
        normed = frozenset(
            info.usage.branch
            for info in architecture
            if info.role is Role.NORM_SCALE and info.usage and info.usage.ends_branch
        )
        return modifier(lambda below: ZeroEnd(below, normed, last_layer))

    return modifier(lambda below: ZeroEnd(below, frozenset(), last_layer), prepare=prepare)


@strategy(search=False, needs=("branches",), nearest="auto")
def skip_gain(gain: Gain = _SQRT2) -> Strategy:
    """The std times gain, sqrt(2), for layers whose result is added to a skip path.

    All else is as other schemes decide, `auto` if there is none. A rule of thumb without a paper
    that we know: it doubles the variance that a branch adds to its skip path, so that few and
    short branches count from the start; below 1 it damps them.

    Args:
        gain: Factor on std, 0.1 to 10.

    Example:
        >>> from lightning_init import make_plan
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16)
        >>> plan = make_plan(layer, "skip_gain", forward=lambda: layer(torch.ones(4, 1, 8)))
        >>> round(plan["linear2.weight"].std / plan["linear1.weight"].std, 4)  # / sqrt(2 branches)
        1.0
    """
    return modifier(lambda below: SkipGain(below, gain))


@strategy(
    search=False,
    needs=("branches",),
    wants=("no norms", "branch scales"),
    nearest="kaiming_normal",
)
def fixup(mode: Literal["fan_in", "fan_out"] = "fan_in") -> Strategy:
    """N(0, s^2), s = sqrt(2/fan) L^(-1/(2m-2)) in L branches of m layers; their ends and the head 0.

    m is counted for each branch. Stem and shortcuts are He's, biases and scalar biases 0, branch
    scales 1; a branch of one layer is 0. An output layer that is tied to a table stays
    N(0, 1/width), as a table of zeros would not train. The scalars want a tenth of the learning
    rate (`param_groups`). A forward pass counts m, for attention along value and output; the
    reference's transformer takes m = 4 there.

    Args:
        mode: The fan of He's law. The reference's code takes `fan_out`, there without strides.

    References:
        Zhang, Dauphin & Ma (2019), section 3, https://arxiv.org/abs/1901.09321

    Example:
        >>> from lightning_init import initialize_
        >>> class Block(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)
        ...     def forward(self, x):
        ...         return x + self.two(self.one(x).relu())
        >>> blocks, x = nn.Sequential(Block(), Block()), torch.ones(2, 8)
        >>> plan = initialize_(blocks, "fixup", seed=0, forward=lambda: blocks(x))
        >>> bool((blocks(x) == x).all())
        True
    """

    def prepare(model: nn.Module, architecture: Architecture) -> Strategy:  # noqa: ARG001
        return _fixup(tuple(branch.layers for branch in architecture.branches), mode)

    return _fixup((), mode)._replace(prepare=prepare)


def _fixup(layers: tuple[int, ...], mode: Literal["fan_in", "fan_out"]) -> Strategy:
    rule = ByRole(weight=FixupWeight(layers, mode), embedding=tied_table)
    return Strategy(BranchStart(rule, 1.0))


@strategy(search=False, needs=("branches", "branch scales"), nearest="zero_gamma")
def skipinit(value: Start = 0.0) -> Strategy:
    """The learned scale s of each residual branch, x + s f(x), is 0.

    All else is as other schemes decide, `auto` if there is none. With s = 0 the weights of a
    branch get no gradient in the first step; the scale does.

    Args:
        value: The start of s, 0 to 1; the paper also takes 1/sqrt(branches).

    References:
        De & Smith (2020), section 4, https://arxiv.org/abs/2002.10444

    Example:
        >>> str(skipinit().initializer(ParamInfo(("alpha",), (1,), Role.BRANCH_SCALE)))
        'constant 0'
    """
    return modifier(lambda below: BranchStart(below, value))


@strategy(search=False, needs=("branches", "branch scales"), nearest="zero_gamma")
def rezero() -> Strategy:
    """The scale s of each branch, x + s f(x), is 0, in a transformer without norms or warmup.

    All else is as other schemes decide, `auto` if there is none. The same start as `skipinit`;
    the models differ (`add_branch_scales_(model, "rezero", per_layer=True)` after
    `remove_norms_` is the authors' transformer).

    References:
        Bachlechner et al. (2020), eq. 4, https://arxiv.org/abs/2003.04887

    Example:
        >>> str(rezero().initializer(ParamInfo(("resweight",), (1,), Role.BRANCH_SCALE)))
        'constant 0'
    """
    return modifier(lambda below: BranchStart(below, 0.0))


@strategy(search=False, needs=("branches", "branch scales"), nearest="zero_gamma")
def layerscale(value: Start = 0.0) -> Strategy:
    """The vector s of each branch, x + diag(s) f(x), is 0.1 up to 18 layers, 1e-5 to 24, 1e-6 beyond.

    All else is as other schemes decide, `auto` if there is none. Norms stay.

    Args:
        value: The start of s, up to 1; 0 takes the paper's value for the number of layers.

    References:
        Touvron et al. (2021), section 2, https://arxiv.org/abs/2103.17239

    Example:
        >>> str(layerscale(1e-4).initializer(ParamInfo(("gamma",), (8,), Role.BRANCH_SCALE)))
        'constant 0.0001'
    """
    if value:
        return modifier(lambda below: BranchStart(below, value))

    def prepare(model: nn.Module, architecture: Architecture) -> Strategy:  # noqa: ARG001
        return modifier(lambda below: BranchStart(below, 0.0, architecture))

    return modifier(lambda below: BranchStart(below, layerscale_value(0)), prepare=prepare)
