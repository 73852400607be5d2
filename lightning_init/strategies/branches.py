"""Initializers that know residual branches: what ends one, how long it is, what scales it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lightning_init.architecture.params import Architecture, ParamInfo, Role
from lightning_init.strategies.branch_scales import layerscale_value
from lightning_init.strategies.distributions import Constant, Distribution, Keep
from lightning_init.strategies.initializers import Initializer, with_reason
from lightning_init.strategies.stacks import stack_of
from lightning_init.strategies.variance import VarianceScaling

_MATRICES = (Role.WEIGHT, Role.RECURRENT)


@dataclass(frozen=True, slots=True)
class ZeroEnd:
    """Another initializer, but 0 for what ends a residual branch: its norm, else its last layer.

    Args:
        initializer: For all other tensors.
        normed: Indices of the branches that a norm with a scale ends.
        last_layer: Whether branches without such a norm get a zero last layer.

    Example:
        >>> from lightning_init.strategies.initializers import keep
        >>> usage = Usage(ends_branch=True, branch=0, num_branches=4)
        >>> rule = ZeroEnd(keep, frozenset({0}))
        >>> str(rule(ParamInfo(("gamma",), (8,), Role.NORM_SCALE, usage=usage)))
        'constant 0'
    """

    initializer: Initializer
    normed: frozenset[int] = frozenset()
    last_layer: bool = True

    def __call__(self, info: ParamInfo) -> Distribution:
        """The distribution of one tensor."""
        usage = info.usage
        if usage is None or not usage.ends_branch:
            return self.initializer(info)
        if info.role is Role.NORM_SCALE:  # Gemma's norm adds 1 to its scale
            return Constant(info.identity - 1, reason="zero gamma: the branch starts at 0")
        if info.role is Role.NORM_SHIFT:
            return Constant(0.0, reason="zero gamma: the branch starts at 0")
        if self.last_layer and usage.branch not in self.normed:
            if info.role in _MATRICES:
                return Constant(0.0, reason="last layer of a branch: it starts at 0")
            if info.role is Role.BIAS:
                return Constant(0.0, reason="zero")
        return self.initializer(info)


@dataclass(frozen=True, slots=True)
class SkipGain:
    """Another initializer, with the std of what ends a residual branch times a factor.

    Example:
        >>> from lightning_init.strategies.distributions import Normal
        >>> usage = Usage(ends_branch=True, num_branches=4)
        >>> info = ParamInfo(("w",), (2, 2), Role.WEIGHT, usage=usage)
        >>> SkipGain(lambda info: Normal(0.1), 2.0)(info).std
        0.2
    """

    initializer: Initializer
    gain: float

    def __call__(self, info: ParamInfo) -> Distribution:
        """The distribution of one tensor."""
        base, usage = self.initializer(info), info.usage
        ends = usage is not None and usage.ends_branch and info.role in _MATRICES
        if not ends or isinstance(base, Keep):
            return base
        return with_reason(
            base.scaled(self.gain), f"{base.reason}, * {self.gain:.4g}: added to a skip path"
        )


@dataclass(frozen=True, slots=True)
class BranchStart:
    """Another initializer, and a constant for the learned scale of each residual branch.

    Scales that are not trained, as DeepNorm's, stay.

    Example:
        >>> from lightning_init.strategies.initializers import keep
        >>> str(BranchStart(keep, 0.0)(ParamInfo(("alpha",), (1,), Role.BRANCH_SCALE)))
        'constant 0'
    """

    initializer: Initializer
    value: float
    by_depth: Architecture | None = None

    def __call__(self, info: ParamInfo) -> Distribution:
        """The distribution of one tensor."""
        if info.role is not Role.BRANCH_SCALE:
            return self.initializer(info)
        if "frozen" in info.flags:
            return Keep("frozen: a constant of the model")
        if self.by_depth is None:
            return Constant(self.value, reason="scale of a residual branch")
        stack = stack_of(info, self.by_depth)
        layers = stack.layers if stack else self.by_depth.num_branches
        return Constant(layerscale_value(layers), reason=f"scale of a branch, {layers} layers")


@dataclass(frozen=True, slots=True)
class FixupWeight:
    """He's law for a weight; in a residual branch of m layers times L^(-1/(2m-2)), its end 0.

    Args:
        layers: Weight layers of each branch, in execution order.
        mode: The fan that He's law preserves.

    Example:
        >>> usage = Usage(within=0, num_branches=4)
        >>> info = ParamInfo(("w",), (8, 8), Role.WEIGHT, 8, 8, usage=usage)
        >>> FixupWeight((2, 2, 2, 2))(info).std  # sqrt(2 / 8) * 4 ** (-1 / 2)
        0.25
    """

    layers: tuple[int, ...]
    mode: Literal["fan_in", "fan_out"] = "fan_in"

    def __call__(self, info: ParamInfo) -> Distribution:
        """The distribution of one matrix or kernel."""
        usage = info.usage
        he = VarianceScaling(2, self.mode, 1.0, "normal", "Fixup: He")(info)
        if usage is None:
            return he
        if usage.ends_branch:
            return Constant(0.0, reason="Fixup: the last layer of a branch is 0")
        if usage.is_output:
            return Constant(0.0, reason="Fixup: the output layer is 0")
        layers = self.layers[usage.within] if usage.within >= 0 else 1
        if layers < 2:
            return he
        branches = len(self.layers)
        factor = branches ** (-1 / (2 * layers - 2))
        return with_reason(
            he.scaled(factor), f"{he.reason}, * {branches}^(-1/{2 * layers - 2}) branches"
        )
