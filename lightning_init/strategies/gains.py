"""Which gain a layer gets: the constant of a paper, or that of the function that was seen."""

from __future__ import annotations

from typing import Annotated, Literal

from lightning_init.architecture.arguments import UNSEARCHED
from lightning_init.architecture.params import ParamInfo
from lightning_init.architecture.quadrature import activation_gain

# The search has `gain` for what this would change.
Activation = Annotated[Literal["fixed", "observed"], UNSEARCHED]


def observed_gain(info: ParamInfo) -> tuple[float, str]:
    """1 / sqrt(E[phi(z)^2]) of the function phi that follows a layer, and what to say of it.

    The function behind the layer counts, as with `torch.nn.init.calculate_gain`: what undoes it is
    the next layer's scale, which is the same in a net of one activation but for its first and last.
    Without a forward pass the modules suggest the function; where it is unknown, the gain is 1.

    Example:
        >>> usage = Usage(nonlinearity="leaky_relu", gain=1.35)
        >>> observed_gain(ParamInfo(("w",), (2, 2), Role.WEIGHT, usage=usage))
        (1.35, 'gain 1.35 of the leaky_relu that follows')
        >>> observed_gain(ParamInfo(("w",), (2, 2), Role.WEIGHT, usage=Usage()))
        (1.0, 'gain 1: the function that follows is unknown')
    """
    if info.usage is None:
        gain = activation_gain(info.nonlinearity)
        return gain, f"gain {gain:.4g} of {info.nonlinearity}, by the modules"
    if info.usage.gain is None:
        return 1.0, "gain 1: the function that follows is unknown"
    name = info.activation
    if name == "linear":
        name = "function" if info.usage.gain != 1 else "linear way"
    return info.usage.gain, f"gain {info.usage.gain:.4g} of the {name} that follows"
