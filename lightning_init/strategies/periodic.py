"""Layers before a sine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from lightning_init.architecture.arguments import Range
from lightning_init.architecture.params import ParamInfo, Role
from lightning_init.strategies.chain import modifier
from lightning_init.strategies.distributions import Distribution, Uniform
from lightning_init.strategies.initializers import Initializer
from lightning_init.strategies.registry import Strategy, strategy


@dataclass(frozen=True, slots=True)
class Sines:
    """SIREN's bounds for layers followed by a sine and for output layers, else another scheme.

    Args:
        initializer: For all other tensors.
        w0: The frequency that the model multiplies pre-activations with.
    """

    initializer: Initializer
    w0: float = 30.0

    def __call__(self, info: ParamInfo) -> Distribution:
        """The distribution of one tensor."""
        usage = info.usage
        if usage is None or "sin" not in info.traits or not info.fan_in >= 1:
            return self.initializer(info)
        head = usage.is_output and not usage.ends_branch
        if usage.nonlinearity != "sin" and not head:
            return self.initializer(info)
        if info.role is Role.BIAS:
            bound = 1 / math.sqrt(info.fan_in)
            return Uniform(-bound, bound, reason="SIREN: biases as PyTorch draws them")
        if info.role is not Role.WEIGHT:
            return self.initializer(info)
        if usage.depth == 1 and not head:
            return Uniform(-1 / info.fan_in, 1 / info.fan_in, reason="SIREN: first layer")
        bound = math.sqrt(6 / info.fan_in) / self.w0
        return Uniform(-bound, bound, reason=f"SIREN: w0 {self.w0:g}, fan_in {info.fan_in:g}")


@strategy(needs=("sine",), nearest="xavier_uniform", search=False)
def siren(
    w0: Annotated[float, Range(0.1, 1000.0, log=True, search=(5.0, 60.0))] = 30.0,
) -> Strategy:
    """U(+-sqrt(6/in)/w0) for layers before sin(w0 x), first layer U(+-1/in); other layers by auto.

    A layer counts if the forward pass shows a sine after it, whatever class it has; output layers
    have the bound of the hidden ones, biases are U(+-1/sqrt(in)) as PyTorch draws them, both as in
    the authors' code. w0 must be the factor that the model itself applies before its sines.

    Args:
        w0: The model's frequency factor, 0.1 to 1000.

    References:
        Sitzmann et al. (2020), section 3.2 and supplement 1.5, https://arxiv.org/abs/2006.09661

    Example:
        >>> usage = Usage(depth=2, nonlinearity="sin")
        >>> info = ParamInfo(("w",), (6, 6), Role.WEIGHT, 6, 6, usage=usage, traits={"sin"})
        >>> round(siren(10.0).initializer(info).high, 6)
        0.1
    """
    return modifier(lambda below: Sines(below, w0))
