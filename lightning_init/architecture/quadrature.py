"""Expectations over a standard normal: what an activation does to the scale of its input.

Gauss-Legendre quadrature on short panels, so that kinks at round numbers (relu, hardtanh, relu6,
hardswish, softshrink) lie between panels and are exact, unlike with Gauss-Hermite's global nodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

Activation = str | Callable[[Tensor], Tensor]
_REACH, _PANEL, _ORDER = 10.0, 0.25, 16


@cache
def nodes() -> tuple[Tensor, Tensor]:
    """Points z and weights w, float64, with sum(w f(z)) = E[f(z)] for z ~ N(0, 1).

    Example:
        >>> z, w = nodes()
        >>> round(float(w @ z**4), 9)
        3.0
    """
    k = torch.arange(1, _ORDER, dtype=torch.float64)
    beside = k / (4 * k**2 - 1).sqrt()  # Golub & Welsch: the nodes are eigenvalues
    points, vectors = torch.linalg.eigh(beside.diag(1) + beside.diag(-1))
    left = torch.arange(-_REACH, _REACH, _PANEL, dtype=torch.float64)
    z = (left[:, None] + (points + 1) * _PANEL / 2).flatten()
    density = torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    w = (vectors[0] ** 2 * _PANEL).repeat(len(left)) * density
    return z, w


def activation_gain(activation: Activation) -> float:
    """1 / sqrt(E[phi(z)^2]), z ~ N(0, 1): the gain that undoes what an activation does to scale.

    With std = gain / sqrt(fan_in) the pre-activations of a deep net of such layers keep variance
    1. That is not trainability: see `activation_chi`.

    Args:
        activation: A function of one tensor, element by element, or the name of one in
            `torch.nn.functional` or `torch`.

    Raises:
        ValueError: If there is no function of that name, or it is 0 or infinite on a normal.

    References:
        He et al. (2015), https://arxiv.org/abs/1502.01852, section 2.2, for other functions than
        relu; Poole et al. (2016), https://arxiv.org/abs/1606.05340

    Example:
        >>> round(activation_gain("relu"), 6), round(activation_gain("gelu"), 4)
        (1.414214, 1.5335)
        >>> round(activation_gain(lambda x: x + torch.sin(x) ** 2), 4)
        0.8746
    """
    z, w = nodes()
    moment = float(w @ _function(activation)(z.clone()) ** 2)
    if not 0 < moment < math.inf:
        raise ValueError(f"{activation} has mean square {moment} on a standard normal: no gain")
    return 1 / math.sqrt(moment)


def activation_chi(activation: Activation, gain: float | None = None) -> float:
    """gain^2 E[phi'(z)^2], z ~ N(0, 1): growth of the squared gradient norm per layer.

    Below 1 gradients vanish with depth, above 1 they explode.

    Args:
        activation: As in `activation_gain`; it must be differentiable by autograd.
        gain: sigma_w, None for the gain that keeps variance 1.

    References:
        Schoenholz et al. (2017), https://arxiv.org/abs/1611.01232

    Example:
        >>> round(activation_chi("tanh"), 3), round(activation_chi("relu"), 6)
        (1.178, 1.0)
    """
    gain = activation_gain(activation) if gain is None else gain
    z, w = nodes()
    with torch.enable_grad():
        x = z.clone().requires_grad_()
        (slope,) = torch.autograd.grad(_function(activation)(x).sum(), x)
    return gain**2 * float(w @ slope**2)


def _function(activation: Activation) -> Callable[[Tensor], Tensor]:
    if callable(activation):
        return activation
    if activation == "linear":
        return torch.clone
    found: Callable[[Tensor], Tensor] | None = getattr(F, activation, None)
    found = found or getattr(torch, activation, None)
    if not callable(found):
        raise ValueError(
            f"no activation is called {activation!r} in torch.nn.functional or torch: "
            "pass the function itself"
        )
    return found
