"""Very deep transformers: scaled by the number of layers, so that none dominates.

All three speak of layers, counted per stack by `stacks`. What is scaled is what a residual branch
passes on: value and output matrices and the feed-forward ones; query and key only steer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from lightning_init.architecture.names import named_tensors
from lightning_init.architecture.params import Architecture, ParamInfo, Role
from lightning_init.architecture.sharded import whole
from lightning_init.strategies.branch_scales import deepnorm_alphas
from lightning_init.strategies.distributions import Constant, Distribution, Normal
from lightning_init.strategies.gate import Accept
from lightning_init.strategies.initializers import ByRole, Initializer, keep, with_reason
from lightning_init.strategies.omegas import profile
from lightning_init.strategies.registry import Strategy, strategy
from lightning_init.strategies.stacks import Stack, stacks
from lightning_init.strategies.variance import VarianceScaling, scheme, tied_table

Kind = Literal["auto", "encoder", "decoder"]


@dataclass(frozen=True, slots=True)
class BranchGain:
    """A law for matrices, times a gain for those that carry what a residual branch passes on.

    These are value and output matrices of attention, and all others of a branch that are no part
    of attention. In a branch that attends to another stack the latter are on the way from there,
    and are not scaled.

    Args:
        law: For every matrix.
        name: Who is quoted as the reason.
        gains: Index of a branch -> its gain.
        crossing: Branches that attend to another stack.

    Example:
        >>> from lightning_init.architecture.params import Usage
        >>> rule = BranchGain(lambda info: Normal(1.0), "half", {0: 0.5})
        >>> info = ParamInfo(("v",), (4, 4), Role.WEIGHT, usage=Usage(within=0, attention="value"))
        >>> rule(info).std
        0.5
    """

    law: Initializer
    name: str
    gains: Mapping[int, float] = field(default_factory=dict)
    crossing: frozenset[int] = frozenset()

    def __call__(self, info: ParamInfo) -> Distribution:
        """The distribution of one matrix."""
        base, usage = self.law(info), info.usage
        if usage is None or usage.attention in ("query", "key"):
            return base
        if usage.within in self.crossing and not usage.attention:
            return base
        gain = self.gains.get(usage.within)
        if gain is None:
            return base
        return with_reason(base.scaled(gain), f"{base.reason}, {self.name} {gain:.4g}")


@strategy(search=False, needs=("branches", "attention"), nearest="xavier_normal")
def deepnorm(kind: Kind = "auto") -> Strategy:
    """Xavier normal; value, output and feed-forward matrices times (8L)^(-1/4), L layers per stack.

    An encoder of N layers with a decoder of M: 0.87 (N^4 M)^(-1/16) and (12M)^(-1/4). It goes with
    LN(alpha x + f(x)), alpha = (2L)^(1/4), or 0.81 (N^4 M)^(1/16) and (3M)^(1/4), which is
    LN(x + f(x) / alpha): the plan says what to call where the model lacks it. The paper's
    formulas for an encoder alone and a decoder alone are the same. Query, key and matrices outside
    of residual branches have gain 1; tables, of which it says nothing, are as in `xavier_normal`.
    The constant of torchscale for an encoder with a decoder is 1.15 where the paper has 0.87.

    Args:
        kind: `auto` takes a stack that attends to another one for a decoder with that encoder;
            `encoder` and `decoder` take each stack by itself.

    References:
        Wang et al. (2022), figure 2, https://arxiv.org/abs/2203.00555

    Example:
        >>> from lightning_init import make_plan
        >>> layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
        >>> model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        >>> plan = make_plan(model, "deepnorm", forward=lambda: model(torch.ones(1, 4, 8)))
        >>> round(plan["layers.0.linear1.weight"].std * 8**0.5, 4)  # 16 ** (-1 / 4)
        0.5
    """
    law = VarianceScaling(1, "fan_avg", 1.0, "normal", "Xavier")

    def prepare(model: nn.Module, architecture: Architecture) -> Strategy:
        found = _attending(architecture, kind)
        betas = {stack.stream: _beta(stack, partner) for stack, partner in found}
        alphas = {stack.stream: (2 * stack.layers) ** 0.25 for stack, _ in found}
        if kind == "auto":
            alphas = deepnorm_alphas(architecture)
        rule = _gained(law, "DeepNorm", betas, architecture)
        made = Strategy(ByRole(weight=rule, embedding=tied_table))
        return made._replace(notes=_alpha_notes(model, architecture, alphas))

    return scheme(law)._replace(prepare=prepare)


@strategy(
    search=False, needs=("branches", "attention"), wants=("no norms",), nearest="xavier_uniform"
)
def tfixup(kind: Kind = "auto") -> Strategy:
    """Xavier; v, out, feed-forward x 0.67 N^(-1/4) or (9N)^(-1/4), tables (9N)^(-1/4) N(0, 1/d).

    The first factor is an encoder's, the second a decoder's; N is the number of layers of the
    stack, for tables that of the deeper one. A shared or tied table is drawn once, its padding row
    is 0; logits of a tied one shrink with it. It wants a model without norm layers, trained
    without warmup, whose tables are multiplied by sqrt(d). Fused or not, query and key are plain
    Xavier; the reference code, which starts from fairseq's, leaves them at 0.71 of that.

    Args:
        kind: `auto` takes a stack that attends to another one for a decoder, every other one for
            an encoder, whose form it has; `encoder` and `decoder` say it of all stacks.

    References:
        Huang, Perez, Ba & Volkovs (2020), ICML,
        https://proceedings.mlr.press/v119/huang20f.html

    Example:
        >>> from lightning_init import make_plan
        >>> layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
        >>> model = nn.TransformerEncoder(layer, 16, enable_nested_tensor=False)
        >>> plan = make_plan(model, "tfixup", forward=lambda: model(torch.ones(1, 4, 8)))
        >>> round(plan["layers.0.linear1.weight"].std * 8**0.5, 4)  # 0.67 * 16 ** (-1 / 4)
        0.335
    """
    law = VarianceScaling(1, "fan_avg", 1.0, "uniform", "Xavier")

    def prepare(model: nn.Module, architecture: Architecture) -> Strategy:
        del model
        found = [stack for stack, _ in _attending(architecture, kind)]
        gains = {
            s.stream: _tfixup(s, s.crosses if kind == "auto" else kind == "decoder") for s in found
        }
        table = _InputTable((9 * max(stack.layers for stack in found)) ** -0.25)
        rule = _gained(law, "T-Fixup", gains, architecture)
        return Strategy(ByRole(weight=rule, embedding=table))

    return Strategy(ByRole(weight=law, embedding=_InputTable(1.0)), prepare=prepare)


@strategy(
    search=False,
    needs=("batch", "branches", "branch scales"),
    nearest="xavier_uniform",
    cost="1 forward, and 2 with backward to compare",
)
def admin(accept: Accept = "better") -> Strategy:
    """Xavier; in LN(x + f_i(x) / omega_i), omega_i^2 = Var(x_0) + the sum of Var f_j over j < i.

    The first branch of a stream has omega 1, as in the authors' code. The variances are those of
    one forward pass with all omega at 1, dropout off; encoder and decoder are separate. LN(omega x
    + f) = LN(x + f / omega), so the scales that `add_branch_scales_(model, "admin")` puts on the
    branches take 1 / omega in every channel. A scale that several branches share takes the
    largest omega.

    Args:
        accept: `better` puts the scales back to 1 if they made the model worse, `always` never.

    References:
        Liu, Liu, Gao, Chen & Han (2020), https://arxiv.org/abs/2004.08249

    Example:
        >>> admin().initializer(ParamInfo(("scale",), (8,), Role.BRANCH_SCALE)).mean
        1.0
    """
    law = VarianceScaling(1, "fan_avg", 1.0, "uniform", "Xavier")

    def prepare(model: nn.Module, architecture: Architecture) -> Strategy:
        del model
        streams = tuple(branch.stream for branch in architecture.branches)
        return made._replace(calibrate_=profile(streams, accept), prepare=None)

    table = ByRole(weight=law, embedding=tied_table, other=_one)
    made = Strategy(table, profile((), accept), on_top=_ScalesAtOne, prepare=prepare)
    return made


@dataclass(frozen=True, slots=True)
class _ScalesAtOne:
    below: Initializer

    def __call__(self, info: ParamInfo) -> Distribution:
        return _one(info) if info.role is Role.BRANCH_SCALE else self.below(info)


@dataclass(frozen=True, slots=True)
class _InputTable:
    factor: float

    def __call__(self, info: ParamInfo) -> Distribution:
        std = self.factor * max(info.shape[-1], 1) ** -0.5
        return Normal(std, reason=f"T-Fixup {self.factor:.4g}, / sqrt(width)")


def _one(info: ParamInfo) -> Distribution:
    if info.role is not Role.BRANCH_SCALE:
        return keep(info)
    return Constant(1.0, reason="until the variances of the branches are known")


def _attending(architecture: Architecture, kind: Kind) -> list[tuple[Stack, Stack | None]]:
    """The stacks with attention, each with the decoder or encoder that goes with it, if any."""
    found = [stack for stack in stacks(architecture) if stack.attends]
    encoders = [stack for stack in found if not stack.crosses]
    decoders = [stack for stack in found if stack.crosses]
    if kind != "auto" or not decoders:
        return [(stack, None) for stack in found]
    of_decoder = encoders[0] if encoders else decoders[0]
    return [(stack, of_decoder if stack.crosses else decoders[0]) for stack in found]


def _beta(stack: Stack, partner: Stack | None) -> float:
    layers = stack.layers
    if partner is None:
        return math.pow(8 * layers, -0.25)
    if stack.crosses:
        return math.pow(12 * layers, -0.25)
    return 0.87 * math.pow(layers**4 * partner.layers, -1 / 16)


def _tfixup(stack: Stack, is_decoder: bool) -> float:
    return math.pow(9 * stack.layers, -0.25) if is_decoder else 0.67 * math.pow(stack.layers, -0.25)


def _gained(
    law: Initializer, name: str, gains: Mapping[int, float], architecture: Architecture
) -> BranchGain:
    branches = list(enumerate(architecture.branches))
    return BranchGain(
        law,
        name,
        {at: gains[branch.stream] for at, branch in branches if branch.stream in gains},
        frozenset(at for at, branch in branches if branch.crosses),
    )


def _alpha_notes(
    model: nn.Module, architecture: Architecture, alphas: Mapping[int, float]
) -> tuple[str, ...]:
    """What the skip paths of a model lack of DeepNorm's alpha."""
    said = ", ".join(f"{alpha:.4g}" for alpha in dict.fromkeys(alphas.values()))
    call = 'call add_branch_scales_(model, "deepnorm", forward=...) where a Post-LN model is built'
    wanted = f"deepnorm wants LN(alpha x + f(x)) with alpha {said}"
    values = dict(named_tensors(model))
    seen: dict[int, float] = {}
    for info in architecture:
        if info.role is Role.BRANCH_SCALE and info.usage and not values[info.names].is_meta:
            seen[info.usage.branch] = float(whole(values[info.names]).float().mean())
    off = [
        at
        for at, branch in enumerate(architecture.branches)
        if branch.stream in alphas and abs(seen.get(at, 1.0) * alphas[branch.stream] - 1) > 0.01
    ]
    if not off:
        return ()
    if not seen:
        return (f"{wanted}, but the branches have no scale: {call}",)
    return (f"{wanted}, but the scale of {len(off)} branches is not 1 / alpha: {call}",)
