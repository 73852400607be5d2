"""Orthogonal matrices: every singular value equals the gain, so depth neither grows nor shrinks."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_init.architecture.params import ParamInfo
from lightning_init.strategies.distributions import Distribution, Keep, Normal
from lightning_init.strategies.gains import Activation, observed_gain
from lightning_init.strategies.initializers import ByRole
from lightning_init.strategies.layout import layout_of
from lightning_init.strategies.matrices import DeltaOrthogonal, Orthogonal
from lightning_init.strategies.registry import Strategy, strategy
from lightning_init.strategies.variance import Gain, tied_table


@dataclass(frozen=True, slots=True)
class Orthonormal:
    """`gain` times an orthogonal matrix, per gate, head block and group."""

    gain: float = 1.0
    name: str = "orthogonal"
    activation: Activation = "fixed"

    def __call__(self, info: ParamInfo) -> Distribution:
        """The distribution of one matrix or kernel."""
        if info.numel == 0:
            return Keep("empty")
        gain, said = _gain(info, self.gain, self.activation)
        if len(info.shape) < 2:  # a weight that is a vector has nothing to be orthogonal to
            std = gain / max(info.fan_in, 1.0) ** 0.5
            return Normal(std, reason=f"{self.name}: a vector{said}")
        reason = f"{self.name}, {info.blocks} blocks" if info.blocks > 1 else self.name
        return Orthogonal(info.shape, gain, info.blocks, info.axis, reason=reason + said)


def _gain(info: ParamInfo, factor: float, activation: Activation) -> tuple[float, str]:
    if activation == "fixed":
        return factor, ""
    gain, said = observed_gain(info)
    return factor * gain, f", {said}"


@strategy
def orthogonal(gain: Gain = 1.0, activation: Activation = "fixed") -> Strategy:
    """Gain times an orthogonal matrix (rows or columns orthonormal), per gate, block and group.

    The gain that keeps deep tanh nets trainable is 1; ReLU nets want sqrt(2).

    Args:
        gain: Every singular value, 0.5 to 2.
        activation: `observed` multiplies by the gain of the function that the forward pass shows
            behind the layer (`activation_gain`): unit variance, which is not trainability.

    References:
        Saxe, McClelland & Ganguli (2013), section 3, https://arxiv.org/abs/1312.6120

    Example:
        >>> orthogonal(2.0).initializer(ParamInfo(("w",), (4, 4), Role.WEIGHT)).std
        1.0
    """
    return Strategy(ByRole(weight=Orthonormal(gain, activation=activation), embedding=tied_table))


@dataclass(frozen=True, slots=True)
class Delta:
    """`gain` times an orthogonal matrix at the centre tap of a kernel; other matrices whole."""

    gain: float = 1.0
    activation: Activation = "fixed"

    def __call__(self, info: ParamInfo) -> Distribution:
        """The distribution of one matrix or kernel."""
        if info.numel == 0:
            return Keep("empty")
        layout = layout_of(info) if len(info.shape) > 2 else None
        if layout is None or not layout.taps:
            return Orthonormal(self.gain, "orthogonal", self.activation)(info)
        reason = "delta-orthogonal"
        if layout.rows < layout.columns:
            reason += f", keeps {layout.rows} of {layout.columns} directions"
        gain, said = _gain(info, self.gain, self.activation)
        return DeltaOrthogonal(layout, gain, reason=reason + said)


@strategy(search=False)
def delta_orthogonal(gain: Gain = 1.0, activation: Activation = "fixed") -> Strategy:
    """Kernels 0 but for an orthogonal matrix times gain at the centre tap; other layers orthogonal.

    Such a convolution keeps norms (times gain) with circular padding and stride 1, whatever the
    depth. It does not mix positions at the start: what follows must, a global mean would be all
    that is seen. With fewer outputs than inputs the rows are orthonormal, and the other directions
    are lost. One matrix per group; transposed convolutions likewise; even kernels at size // 2.

    Args:
        gain: Every singular value, 0.5 to 2; 1 for tanh, sqrt(2) for ReLU.
        activation: `observed` multiplies by the gain of the function that the forward pass shows
            behind the layer (`activation_gain`): unit variance, which is not trainability.

    References:
        Xiao et al. (2018), algorithm 2, https://arxiv.org/abs/1806.05393

    Example:
        >>> kernel = ParamInfo(("w",), (4, 4, 3, 3), Role.WEIGHT, layer="Conv2d")
        >>> round(delta_orthogonal().initializer(kernel).std, 6)  # 4 entries of 1/2 in 36
        0.166667
    """
    return Strategy(ByRole(weight=Delta(gain, activation), embedding=tied_table))
