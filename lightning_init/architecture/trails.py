"""Where a tensor in a forward pass came from: the weight layer that ran last before it.

Each call of PyTorch hands the trails of its arguments on to its results, by identity of the tensor
objects; no tensor is kept. A tensor without a trail came from outside, with the batch.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_init.architecture.calls import plain
from lightning_init.architecture.operations import (
    CONVERSIONS,
    CONVOLUTIONS,
    ELEMENTWISE,
    MOVEMENTS,
    RECURRENT,
    RECURRENT_CELLS,
)

WEIGHTED = CONVOLUTIONS | RECURRENT | RECURRENT_CELLS | {"linear", "bilinear"}
MOVED = MOVEMENTS | CONVERSIONS | {"dropout"}  # what leaves a result that result
SCALED = ELEMENTWISE | MOVEMENTS | {"cat"}  # what leaves attention's scores scores


class Trail(NamedTuple):
    """What is known of a tensor's origin.

    Attributes:
        made: Number of the run of a weight layer or table that it came from last, 0 if from none.
        layer: Name of that layer, or of the module that owns a parameter; None if it has none.
        straight: Whether it is that layer's very result, moved at most.
        scores: Whether it is a product of two signals, scaled and masked at most.
        learned: Whether it is made of parameters and constants alone.
        normed: Whether it came from outside through a norm.
    """

    made: int = 0
    layer: str | None = None
    straight: bool = False
    scores: bool = False
    learned: bool = False
    normed: bool = False


OUTSIDE = Trail()
CONSTANT = Trail(learned=True)


class Trails:
    """Tensor -> trail, for tensors that live.

    Example:
        >>> trails, x = Trails(), torch.zeros(2)
        >>> trails[x] = Trail(made=3)
        >>> trails[x].made, trails[torch.zeros(2)].made
        (3, 0)
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Tensor], Trail]] = {}

    def __setitem__(self, tensor: Tensor, trail: Trail) -> None:
        self._known[id(tensor)] = (weakref.ref(tensor), trail)

    def __getitem__(self, tensor: Tensor) -> Trail:
        known = self._known.get(id(tensor))
        # An id may have been used before: the reference tells whether it is the same tensor.
        if known is not None and known[0]() is tensor:
            return known[1]
        return OUTSIDE

    def clear(self) -> None:
        """Forget everything."""
        self._known = {}


def merged(trails: Iterable[Trail]) -> Trail:
    """The trail of what is computed from several tensors: the latest of theirs.

    Example:
        >>> merged([Trail(made=2, layer="a"), Trail(made=1, layer="b"), CONSTANT]).layer
        'a'
    """
    found = list(trails)
    if len(found) == 1:
        return found[0]
    signals = [trail for trail in found if not trail.learned]
    if not signals:
        owner = next((trail.layer for trail in found if trail.layer is not None), None)
        return Trail(layer=owner, learned=True)
    latest = max(signals, key=lambda trail: trail.made)
    return Trail(
        latest.made,
        latest.layer,
        False,
        any(trail.scores for trail in signals),
        False,
        latest.made == 0 and all(trail.normed for trail in signals),
    )


def ordinary(value: object) -> bool:
    """Whether a value is a plain tensor of numbers whose values can be read."""
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.layout is torch.strided
        and not value.is_meta
        and not value.is_nested
        and plain(value) is value
        and value.numel() > 0
    )


def signals(args: Iterable[Any]) -> list[Tensor]:
    """The floating-point tensors among the arguments of a call, those in lists included."""
    found: list[Tensor] = []
    for value in args:
        if isinstance(value, Tensor):
            if value.is_floating_point():
                found.append(value)
        elif isinstance(value, (list, tuple)):
            found += signals(value)
    return found
