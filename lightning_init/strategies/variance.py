"""Variance scaling: std = gain * sqrt(factor / fan), one law under the names of its authors.

The classic schemes differ only in which fan they preserve and for which activation. They speak of
matrices and kernels; biases become zero, norms the identity, and a lookup table, which sums no
products, stays as built unless it is tied to an output layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from lightning_init.architecture.arguments import Range
from lightning_init.architecture.params import ParamInfo
from lightning_init.strategies.distributions import (
    Distribution,
    Keep,
    Normal,
    TruncatedNormal,
    Uniform,
)
from lightning_init.strategies.gains import Activation, observed_gain
from lightning_init.strategies.initializers import ByRole
from lightning_init.strategies.registry import Strategy, strategy

Gain = Annotated[float, Range(0.5, 2.0, log=True)]
Std = Annotated[float, Range(1e-4, 10.0, log=True, search=(0.005, 0.2))]
Fan = Literal["fan_in", "fan_out", "fan_avg"]
Shape = Literal["normal", "uniform"]
RELU_LIKE = frozenset({"relu", "leaky_relu", "gelu", "silu", "elu", "mish", "softplus"})


@dataclass(frozen=True, slots=True)
class VarianceScaling:
    """The law std = gain * sqrt(factor / fan), or gain * observed / sqrt(fan).

    Args:
        factor: 1 for LeCun and Xavier, 2 for Kaiming.
        fan: Which fan is preserved.
        gain: A further factor on std.
        shape: Normal or uniform.
        name: Who is quoted as the reason.
        activation: `observed` puts the gain of the function that follows for sqrt(factor).
    """

    factor: float
    fan: Fan
    gain: float
    shape: Shape
    name: str
    activation: Activation = "fixed"

    def __call__(self, info: ParamInfo) -> Distribution:
        """The distribution of one matrix or kernel."""
        if info.numel == 0:
            return Keep("empty")
        fans = {"fan_in": info.fan_in, "fan_out": info.fan_out}
        fans["fan_avg"] = (info.fan_in + info.fan_out) / 2
        fan = fans[self.fan] or 1.0  # 0 in a lazy layer, which the plan refuses
        std = self.gain * math.sqrt(self.factor / fan)
        reason = f"{self.name}: {self.fan} {fan:g}"
        if self.activation == "observed":
            observed, said = observed_gain(info)
            std = self.gain * observed / math.sqrt(fan)
            reason += f", {said}"
        if info.blocks > 1:
            reason += f", {info.blocks} blocks"
        return _shaped(self.shape, std, reason)


@dataclass(frozen=True, slots=True)
class Fixed:
    """The same std for every tensor."""

    std: float
    shape: Literal["normal", "uniform", "truncated"]
    name: str

    def __call__(self, info: ParamInfo) -> Distribution:  # noqa: ARG002
        """The distribution of one tensor."""
        if self.shape == "truncated":
            return TruncatedNormal(self.std, reason=self.name)
        return _shaped(self.shape, self.std, self.name)


def tied_table(info: ParamInfo) -> Distribution:
    """N(0, 1/width) for a table that is also an output layer; other tables are kept.

    Logits are then of order 1 for inputs of order 1.

    Example:
        >>> info = ParamInfo(("wte", "head"), (50, 16), Role.EMBEDDING, flags=frozenset({"tied"}))
        >>> tied_table(info).std
        0.25
    """
    if "tied" not in info.flags:
        return Keep("a lookup sums no products: kept as built")
    return Normal(info.shape[-1] ** -0.5, reason="tied to the output layer: 1/sqrt(width)")


def kaiming_gain(activation: str) -> float:
    """sqrt(2) before ReLU and its kin, else 1.

    Example:
        >>> kaiming_gain("tanh")
        1.0
    """
    return math.sqrt(2) if activation in RELU_LIKE else 1.0


def scheme(law: VarianceScaling) -> Strategy:
    """A variance-scaling law as a whole strategy."""
    return Strategy(ByRole(weight=law, embedding=tied_table))


def table_with(std: float, name: str, shape: Literal["normal", "uniform", "truncated"]) -> Strategy:
    """One std for all matrices, kernels and tables; zero biases; identity norms."""
    rule = Fixed(std, shape, name)
    return Strategy(ByRole(weight=rule, embedding=rule))


@strategy(aliases=("glorot_uniform",), search=False)
def xavier_uniform(gain: Gain = 1.0, activation: Activation = "fixed") -> Strategy:
    """U(-a, a) with a = gain * sqrt(6 / (fan_in + fan_out)), for tanh and linear layers.

    Args:
        gain: Factor on the bound, 0.5 to 2.
        activation: `fixed` for the paper's constant 1, `observed` for the gain of the
            function that the forward pass shows behind the layer (`activation_gain`).

    References:
        Glorot & Bengio (2010), eq. 16, https://proceedings.mlr.press/v9/glorot10a.html

    Example:
        >>> round(xavier_uniform().initializer(ParamInfo(("w",), (2, 4), Role.WEIGHT, 4, 2)).high, 6)
        1.0
    """
    return scheme(VarianceScaling(1, "fan_avg", gain, "uniform", "Xavier", activation))


@strategy(aliases=("glorot_normal",))
def xavier_normal(gain: Gain = 1.0, activation: Activation = "fixed") -> Strategy:
    """N(0, std^2) with std = gain * sqrt(2 / (fan_in + fan_out)), for tanh and linear layers.

    Args:
        gain: Factor on std, 0.5 to 2.
        activation: `fixed` for the paper's constant 1, `observed` for the gain of the
            function that the forward pass shows behind the layer (`activation_gain`).

    References:
        Glorot & Bengio (2010), eq. 12, https://proceedings.mlr.press/v9/glorot10a.html

    Example:
        >>> xavier_normal().initializer(ParamInfo(("w",), (4, 4), Role.WEIGHT, 4, 4)).std
        0.5
    """
    return scheme(VarianceScaling(1, "fan_avg", gain, "normal", "Xavier", activation))


@strategy(aliases=("he_uniform",), search=False)
def kaiming_uniform(
    gain: Gain = 1.0,
    mode: Literal["fan_in", "fan_out"] = "fan_in",
    activation: Activation = "fixed",
) -> Strategy:
    """U(-a, a) with a = gain * sqrt(6 / fan), for layers followed by ReLU.

    Args:
        gain: Factor on the bound, 0.5 to 2.
        mode: `fan_in` preserves the forward variance, `fan_out` the backward one.
        activation: `fixed` for the paper's constant sqrt(2), `observed` for the gain of the
            function that the forward pass shows behind the layer (`activation_gain`).

    References:
        He, Zhang, Ren & Sun (2015), eq. 10 and 14, https://arxiv.org/abs/1502.01852

    Example:
        >>> round(kaiming_uniform().initializer(ParamInfo(("w",), (2, 6), Role.WEIGHT, 6, 2)).high, 6)
        1.0
    """
    return scheme(VarianceScaling(2, mode, gain, "uniform", "Kaiming", activation))


@strategy(aliases=("he_normal",))
def kaiming_normal(
    gain: Gain = 1.0,
    mode: Literal["fan_in", "fan_out"] = "fan_in",
    activation: Activation = "fixed",
) -> Strategy:
    """N(0, std^2) with std = gain * sqrt(2 / fan), for layers followed by ReLU.

    Args:
        gain: Factor on std, 0.5 to 2.
        mode: `fan_in` preserves the forward variance, `fan_out` the backward one.
        activation: `fixed` for the paper's constant sqrt(2), `observed` for the gain of the
            function that the forward pass shows behind the layer (`activation_gain`).

    References:
        He, Zhang, Ren & Sun (2015), eq. 10 and 14, https://arxiv.org/abs/1502.01852

    Example:
        >>> kaiming_normal().initializer(ParamInfo(("w",), (2, 8), Role.WEIGHT, 8, 2)).std
        0.5
    """
    return scheme(VarianceScaling(2, mode, gain, "normal", "Kaiming", activation))


@strategy(search=False)
def lecun_uniform(gain: Gain = 1.0, activation: Activation = "fixed") -> Strategy:
    """U(-a, a) with a = gain * sqrt(3 / fan_in), the choice for SELU.

    Args:
        gain: Factor on the bound, 0.5 to 2.
        activation: `fixed` for the paper's constant 1, `observed` for the gain of the
            function that the forward pass shows behind the layer (`activation_gain`).

    References:
        LeCun, Bottou, Orr & Mueller (1998), Efficient BackProp, eq. 16;
        Klambauer et al. (2017), https://arxiv.org/abs/1706.02515

    Example:
        >>> round(lecun_uniform().initializer(ParamInfo(("w",), (2, 3), Role.WEIGHT, 3, 2)).high, 6)
        1.0
    """
    return scheme(VarianceScaling(1, "fan_in", gain, "uniform", "LeCun", activation))


@strategy
def lecun_normal(gain: Gain = 1.0, activation: Activation = "fixed") -> Strategy:
    """N(0, std^2) with std = gain / sqrt(fan_in), the choice for SELU.

    Args:
        gain: Factor on std, 0.5 to 2.
        activation: `fixed` for the paper's constant 1, `observed` for the gain of the
            function that the forward pass shows behind the layer (`activation_gain`).

    References:
        LeCun, Bottou, Orr & Mueller (1998), Efficient BackProp, eq. 16;
        Klambauer et al. (2017), https://arxiv.org/abs/1706.02515

    Example:
        >>> lecun_normal().initializer(ParamInfo(("w",), (2, 4), Role.WEIGHT, 4, 2)).std
        0.5
    """
    return scheme(VarianceScaling(1, "fan_in", gain, "normal", "LeCun", activation))


def _shaped(shape: Shape, std: float, reason: str) -> Distribution:
    if shape == "uniform":
        return Uniform.from_std(std, reason=reason)
    return Normal(std, reason=reason)
