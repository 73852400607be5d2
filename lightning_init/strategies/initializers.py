"""Functions from ParamInfo to Distribution, and how they combine.

Each combinator is itself an initializer, so they nest: a scheme is `ByRole(weight=law)`, an
override wraps it in `Overridden`, a factor on std in `Scaled`. All are frozen, hence they pickle
to worker processes and print.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from lightning_init.architecture.params import ParamInfo, Role
from lightning_init.strategies.distributions import Constant, Distribution, Keep

Initializer = Callable[[ParamInfo], Distribution]

HEAD = "role:head"  # the weights and biases of output layers, whatever else they are


def keep(info: ParamInfo) -> Distribution:
    """Leave a tensor as the model built it.

    Example:
        >>> keep(ParamInfo(("w",), (2, 2), Role.WEIGHT)).reason
        "as built: this scheme says nothing of a tensor with role 'weight'"
    """
    return Keep(f"as built: this scheme says nothing of a tensor with role {str(info.role)!r}")


def zero_bias(info: ParamInfo) -> Distribution:  # noqa: ARG001
    """The constant 0, for biases."""
    return Constant(0.0, reason="zero")


def identity_scale(info: ParamInfo) -> Distribution:
    """The constant that changes nothing: 1, or 0 where the model adds 1 to the scale itself.

    Example:
        >>> identity_scale(ParamInfo(("norm",), (8,), Role.NORM_SCALE, identity=0.0)).mean
        0.0
    """
    return Constant(info.identity, reason="identity")


def identity_shift(info: ParamInfo) -> Distribution:  # noqa: ARG001
    """The constant 0, for the shift of a norm layer."""
    return Constant(0.0, reason="identity")


@dataclass(frozen=True, slots=True)
class ByRole:
    """One initializer per role; roles that are not named are kept as built.

    Args:
        weight: For matrices and kernels.
        recurrent: For hidden-to-hidden matrices; None means as `weight`.
        embedding: For lookup tables.
        position: For tables of positions; None means as `embedding`.
        bias: For biases.

    Example:
        >>> from lightning_init.strategies.distributions import Normal
        >>> rule = ByRole(weight=lambda info: Normal(0.1))
        >>> rule(ParamInfo(("b",), (2,), Role.BIAS))
        Constant(value=0.0, reason='zero')
    """

    weight: Initializer
    recurrent: Initializer | None = None
    embedding: Initializer = keep
    position: Initializer | None = None
    bias: Initializer = zero_bias
    norm_scale: Initializer = identity_scale
    norm_shift: Initializer = identity_shift
    other: Initializer = keep

    def __call__(self, info: ParamInfo) -> Distribution:
        """The distribution of one tensor."""
        match info.role:
            case Role.WEIGHT:
                return self.weight(info)
            case Role.RECURRENT:
                return (self.recurrent or self.weight)(info)
            case Role.EMBEDDING:
                return self.embedding(info)
            case Role.POSITION:
                return (self.position or self.embedding)(info)
            case Role.BIAS:
                return self.bias(info)
            case Role.NORM_SCALE:
                return self.norm_scale(info)
            case Role.NORM_SHIFT:
                return self.norm_shift(info)
        return self.other(info)


@dataclass(frozen=True, slots=True)
class Scaled:
    """Another initializer with every std multiplied by a factor.

    Example:
        >>> from lightning_init.strategies.distributions import Normal
        >>> Scaled(lambda info: Normal(0.1), 2.0)(ParamInfo(("w",), (2, 2), Role.WEIGHT)).std
        0.2
    """

    initializer: Initializer
    factor: float

    def __call__(self, info: ParamInfo) -> Distribution:
        """The distribution of one tensor."""
        return self.initializer(info).scaled(self.factor)


@dataclass(frozen=True)
class Overridden:
    """An initializer with exceptions by role (`"role:embedding"`) or by name (`"head.*"`).

    Of several keys that match a tensor the last one wins.

    Example:
        >>> from lightning_init.strategies.distributions import Normal
        >>> rule = Overridden(keep, {"head.*": lambda info: Normal(0.01)})
        >>> rule(ParamInfo(("head.weight",), (2, 2), Role.WEIGHT)).std
        0.01
    """

    default: Initializer
    exceptions: Mapping[str, Initializer] = field(default_factory=dict)

    def __call__(self, info: ParamInfo) -> Distribution:
        """The distribution of one tensor."""
        key = deciding_key(self.exceptions, info)
        return (self.default if key is None else self.exceptions[key])(info)


@dataclass(frozen=True, slots=True)
class OnTop:
    """An initializer, and another one for all that the first keeps.

    Example:
        >>> from lightning_init.strategies.distributions import Normal
        >>> rule = OnTop(keep, lambda info: Normal(0.1))
        >>> rule(ParamInfo(("w",), (2, 2), Role.WEIGHT)).std
        0.1
    """

    initializer: Initializer
    below: Initializer

    def __call__(self, info: ParamInfo) -> Distribution:
        """The distribution of one tensor."""
        found = self.initializer(info)
        return self.below(info) if isinstance(found, Keep) else found


def matches(key: str, info: ParamInfo) -> bool:
    """Whether an override key or a scope pattern means this tensor; `role:head`: output layers.

    Example:
        >>> info = ParamInfo(("net.0.weight",), (2, 2), Role.WEIGHT)
        >>> matches("role:weight", info), matches("net.*.weight", info), matches("0.*", info)
        (True, True, False)
    """
    if key == HEAD:
        return info.usage is not None and info.usage.is_output and not info.usage.ends_branch
    if key.startswith("role:"):
        return str(info.role) == key.removeprefix("role:")
    return any(fnmatchcase(name, key) for name in info.names)


def deciding_key(keys: Mapping[str, object], info: ParamInfo) -> str | None:
    """The last key that means this tensor, None if no key does."""
    return next((key for key in reversed(list(keys)) if matches(key, info)), None)


@dataclass(frozen=True, slots=True)
class BranchScaled:
    """Another initializer, times 1/sqrt(residual additions) where a branch ends.

    The sum of n branches of equal variance then has the variance of one.

    Example:
        >>> from lightning_init.architecture.params import Usage
        >>> from lightning_init.strategies.distributions import Normal
        >>> usage = Usage(ends_branch=True, num_branches=4)
        >>> info = ParamInfo(("w",), (2, 2), Role.WEIGHT, usage=usage)
        >>> BranchScaled(lambda info: Normal(0.02))(info).std
        0.01
    """

    initializer: Initializer

    def __call__(self, info: ParamInfo) -> Distribution:
        """The distribution of one tensor."""
        base = self.initializer(info)
        usage = info.usage
        if usage is None or not usage.ends_branch:
            return base
        scaled = base.scaled(1 / math.sqrt(usage.num_branches))
        return with_reason(scaled, f"{base.reason}, / sqrt({usage.num_branches} branches)")


def with_reason(distribution: Distribution, reason: str) -> Distribution:
    """The same distribution for another reason."""
    return replace(distribution, reason=reason)  # type: ignore[type-var]  # all are dataclasses
