"""The matrices of attention: scaled by heads, or shaped as trained ones are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from torch import nn

from lightning_init.architecture.arguments import Range
from lightning_init.architecture.params import Architecture, ParamInfo, Role
from lightning_init.strategies.chain import modifier
from lightning_init.strategies.distributions import Distribution
from lightning_init.strategies.factors import Factor
from lightning_init.strategies.initializers import Initializer, with_reason
from lightning_init.strategies.needs import unsuitable
from lightning_init.strategies.pairs import Attention, attentions
from lightning_init.strategies.registry import Strategy, strategy


@dataclass(frozen=True, slots=True)
class HeadScaled:
    """Another initializer, times 1/sqrt(heads) where the heads of attention are joined.

    Example:
        >>> from lightning_init.architecture.params import Usage
        >>> from lightning_init.strategies.distributions import Normal
        >>> usage = Usage(attention="out", num_heads=4)
        >>> info = ParamInfo(("w",), (2, 2), Role.WEIGHT, usage=usage)
        >>> HeadScaled(lambda info: Normal(0.02))(info).std
        0.01
    """

    initializer: Initializer

    def __call__(self, info: ParamInfo) -> Distribution:
        """The distribution of one tensor."""
        base, usage = self.initializer(info), info.usage
        if info.role is not Role.WEIGHT or usage is None or usage.attention != "out":
            return base
        heads = max(usage.num_heads, 1)
        reason = f"{base.reason}, / sqrt({heads} heads)"
        return with_reason(base.scaled(1 / math.sqrt(heads)), reason)


@dataclass(frozen=True, slots=True)
class QueryKeyScaled:
    """Another initializer, times a factor for query and key matrices.

    Example:
        >>> from lightning_init.architecture.params import Usage
        >>> from lightning_init.strategies.distributions import Normal
        >>> info = ParamInfo(("w",), (2, 2), Role.WEIGHT, usage=Usage(attention="key"))
        >>> QueryKeyScaled(lambda info: Normal(0.02), 0.5)(info).std
        0.01
    """

    initializer: Initializer
    factor: float

    def __call__(self, info: ParamInfo) -> Distribution:
        """The distribution of one tensor."""
        base, usage = self.initializer(info), info.usage
        steers = usage is not None and usage.attention in ("query", "key", "query|key")
        if info.role is not Role.WEIGHT or not steers:
            return base
        scaled = base.scaled(self.factor)
        return with_reason(scaled, f"{base.reason}, query and key x {self.factor:.4g}")


@dataclass(frozen=True, slots=True)
class Mimetic:
    """Another initializer, but query and key, value and output as factors of a near-identity.

    Args:
        below: For all other tensors.
        members: Name of a tensor -> the attention that it is part of.
        alpha1: Noise in the product of query and key.
        beta1: Identity in it.
        alpha2: Noise in the product of value and output.
        beta2: Identity in it, with a minus.
    """

    below: Initializer
    members: Mapping[str, Attention] = field(default_factory=dict)
    alpha1: float = 0.7
    beta1: float = 0.7
    alpha2: float = 0.4
    beta2: float = 0.4

    def __call__(self, info: ParamInfo) -> Distribution:
        """The distribution of one tensor."""
        found, usage = self.members.get(info.name), info.usage
        if found is None or usage is None or info.role is not Role.WEIGHT:
            return self.below(info)
        features = found.heads * found.head_width
        match usage.attention:
            case "query" | "key":
                return Factor(
                    "query key",
                    "left" if usage.attention == "query" else "right",
                    *(found.width, found.head_width, found.heads, self.alpha1, self.beta1),
                    *(info.axis, found.key),
                    reason="mimetic: query @ key near the identity",
                )
            case "value" | "out":
                return Factor(
                    "value out",
                    "left" if usage.attention == "value" else "right",
                    *(found.width, features, 1, self.alpha2, -self.beta2),
                    *(info.axis, found.key),
                    reason="mimetic: value @ output near minus the identity",
                )
        return self.below(info)


@strategy(search=False, needs=("attention",), nearest="auto")
def attention_scaled() -> Strategy:
    """The output matrix of attention times 1/sqrt(heads); all else as the scheme below, or `auto`.

    References:
        Vaswani et al. (2017), section 3.2.2, https://arxiv.org/abs/1706.03762 (heads, whose
        results the output matrix adds up)

    Example:
        >>> import torch
        >>> from lightning_init import make_plan
        >>> layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        >>> forward = lambda: layer(torch.ones(1, 4, 16))
        >>> name = "self_attn.out_proj.weight"
        >>> plans = [make_plan(layer, s, forward=forward) for s in ("auto", "attention_scaled")]
        >>> round(plans[1][name].std / plans[0][name].std, 4)
        0.5
    """
    return modifier(HeadScaled)


@strategy(search=False, needs=("attention",), nearest="auto")
def qk_scaled(
    factor: Annotated[float, Range(0.01, 10.0, log=True, search=(0.25, 2.0))] = 0.5**0.5,
) -> Strategy:
    """Query and key matrices times `factor`, logits times its square; all else as below, or `auto`.

    With Xavier and inputs of std 1 the logits have std `factor`^2 where queries and keys do not
    depend on each other. The default, 1/sqrt(2), is the gain of fairseq, which found convergence
    much better with it; torch's own layer has it too, since it draws the fused matrix as one.

    Args:
        factor: On the std of both, 0.01 to 10.

    References:
        Ott et al. (2019), fairseq, https://arxiv.org/abs/1904.01038, modules/multihead_attention.py

    Example:
        >>> import torch
        >>> from lightning_init import make_plan
        >>> layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        >>> plan = make_plan(layer, "qk_scaled", forward=lambda: layer(torch.ones(1, 4, 16)))
        >>> print(plan["self_attn.in_proj_weight"])
        query|key normal, std 0.1768; value normal, std 0.25
    """
    return modifier(lambda below: QueryKeyScaled(below, factor))


Noise = Annotated[float, Range(0.01, 2.0, search=(0.1, 1.0))]
Identity = Annotated[float, Range(-2.0, 2.0, search=(-1.0, 1.0))]


@strategy(search=False, needs=("attention",), nearest="attention_scaled")
def mimetic(
    alpha1: Noise = 0.7, beta1: Identity = 0.7, alpha2: Noise = 0.4, beta2: Identity = 0.4
) -> Strategy:
    """Per head W_q W_k^T = alpha1 Z + beta1 I, W_v W_out = alpha2 Z - beta2 I, with Z ~ N(0, 1/d).

    As in trained vision transformers; W_q W_k^T is the best approximation of the rank of a head.
    All else is as the scheme below, or `auto`. The two factors of
    a product share one Z, new for each head and layer. The paper has sinusoidal positions with it,
    which the queries and keys of a token's neighbours then find. In trained language models the
    signs are the other way round: beta1 < 0, beta2 < 0. With rotary positions or normalized
    queries it is reported not to help. Attention to another sequence, attention whose key and
    value heads serve several query heads, and attention that is not as wide as its input stay as
    below: the product is not a square matrix there, or not each head's own.

    Known code differs from the paper: some stores value and output untransposed (their product
    then has the right trace only), some draws Z from a uniform distribution of the same std.

    Args:
        alpha1: Noise in the product of query and key, 0.01 to 2.
        beta1: Identity in it, -2 to 2.
        alpha2: Noise in the product of value and output, 0.01 to 2.
        beta2: Identity that is subtracted in it, -2 to 2.

    References:
        Trockman & Kolter (2023), https://arxiv.org/abs/2305.09828

    Example:
        >>> import torch
        >>> from lightning_init import initialize_
        >>> layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        >>> _ = initialize_(layer, "mimetic", seed=0, forward=lambda: layer(torch.ones(1, 4, 16)))
        >>> product = layer.self_attn.out_proj.weight @ layer.self_attn.in_proj_weight[32:]
        >>> bool(product.diagonal().mean() < -0.2)
        True
    """

    def prepare(model: nn.Module, architecture: Architecture) -> Strategy:
        del model
        served, left = attentions(architecture)
        if not served:
            why = "; ".join(dict.fromkeys(left)) or "the forward pass shows none"
            raise unsuitable(
                f"mimetic needs self-attention with a key and value head per query, but {why}: ",
                "attention_scaled",
            )
        members = {name: each for each in served for name in each.names}
        notes = [
            f"mimetic leaves {left.count(why)} attentions: {why}" for why in dict.fromkeys(left)
        ]
        if any(info.role is Role.POSITION for info in architecture):
            notes.append("mimetic wants sinusoidal positions: the table here is drawn as below")

        def change(below: Initializer) -> Initializer:
            return Mimetic(below, members, alpha1, beta1, alpha2, beta2)

        return modifier(change, notes=tuple(notes))

    return modifier(Mimetic, prepare=prepare)
