"""What follows a weight layer: an activation's output, and where it is flat.

Relu and its kin are flat at zero: a unit that is zero for every row is dead. Bounded functions are
flat at their ends: what lies there is saturated. Gelu, silu and the like are neither.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from lightning_init.architecture.ledger import Ledger
from lightning_init.architecture.operations import ACTIVATIONS
from lightning_init.architecture.pool import Ends, Peaks, Pool, Pooled
from lightning_init.architecture.readings import ActivationReading

WATCHED = frozenset(ACTIVATIONS) | {"softsign", "clamp", "clip", "erf", "atan", "arctan"}

_ENDS: dict[str, tuple[float, float]] = {
    "tanh": (-0.97, 0.97),
    "softsign": (-0.97, 0.97),
    "erf": (-0.97, 0.97),
    "atan": (-1.5, 1.5),  # of pi / 2: a slope below 0.005
    "arctan": (-1.5, 1.5),
    "sigmoid": (0.03, 0.97),
    "hardsigmoid": (0.0, 1.0),
}


class Activation(NamedTuple):
    """Places of what was read of one activation."""

    function: str
    values: Pooled
    units: Peaks | None

    def of(self, numbers: Sequence[float]) -> ActivationReading:
        """The reading."""
        found: dict[str, Any] = self.values.of(numbers)
        if self.units is not None:
            found |= {"dead": numbers[self.units.dead]}
            found |= {"units": self.units.units, "rows": self.units.rows}
        if self.values.beyond >= 0:
            found |= {"saturated": numbers[self.values.beyond]}
        return ActivationReading(self.function, **found)


def clamps(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[float, float] | None:
    """Where a function cuts off: (0, inf) for relu; None if it does not or in another way.

    Example:
        >>> clamps("relu6", (), {}), clamps("clamp", (None,), {"min": 0}), clamps("clamp", (), {})
        ((0.0, 6.0), (0.0, inf), None)
    """
    low, high = _CLAMPS.get(name, (None, None))
    if name in _ARGUMENTS:
        for place, keys in enumerate(_ARGUMENTS[name]):
            given = args[place + 1] if len(args) > place + 1 else None
            given = next((kwargs[key] for key in keys if key in kwargs), given)
            if given is not None and not isinstance(given, (int, float)):
                return None
            low, high = (given, high) if place == 0 and given is not None else (low, high)
            high = given if place == 1 and given is not None else high
    if low is None or (low != 0 and high is None):  # `x.clamp(min=1e-6)` is no activation
        return None
    return float(low), float("inf") if high is None else float(high)


_CLAMPS: dict[str, tuple[float | None, float | None]] = {
    "relu": (0, None),
    "relu6": (0, 6),
    "hardtanh": (-1, 1),
}
_ARGUMENTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "hardtanh": (("min_val",), ("max_val",)),
    "clamp": (("min",), ("max",)),
    "clip": (("min",), ("max",)),
    "clamp_min": (("min",),),
}


def activation(
    pool: Pool,
    ledger: Ledger,
    name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    out: Tensor,
    channels: bool,
    full: bool,
) -> Activation | None:
    """Read the output of an activation, None if the call is none.

    Args:
        pool: Takes the output.
        ledger: Takes the numbers.
        name: The function's canonical name.
        args: What it was called with.
        kwargs: Likewise.
        out: Its output.
        channels: Whether units lie along dimension 1, as behind a convolution.
        full: Whether all rows are read.
    """
    ends = clamps(name, args, kwargs)
    if name not in WATCHED or (name in _CUT and ends is None):
        return None
    flat: Ends | None = _ENDS.get(name)
    units = None
    if ends is not None:
        low, high = ends
        name = _called(name, low, high)
        if low == 0:  # flat there, too, but that is what `zeros` and `dead` count
            units = pool.peaks(out, channels, full)
            flat = (-math.inf, high) if high < math.inf else None
        else:
            flat = ends
    return Activation(name, pool.add(ledger, out, channels, full, ends=flat), units)


_CUT = frozenset(_ARGUMENTS) | frozenset(_CLAMPS)


def _called(name: str, low: float, high: float) -> str:
    """The activation that a clamp amounts to."""
    if low == 0:
        return {float("inf"): "relu", 6.0: "relu6"}.get(high, "hardtanh")
    return name if name in ACTIVATIONS else "hardtanh"
