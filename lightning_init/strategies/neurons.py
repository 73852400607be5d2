"""Choosing neurons: by importance or evenly spaced, the same number from each head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_init.architecture.params import Role
from lightning_init.strategies.axes import Axis, Pair

Select = Literal["importance", "even"]


@dataclass(frozen=True, slots=True)
class Choice:
    """Neurons of the donor and where they go in the model.

    Attributes:
        source: Their places in the donor.
        target: Their places in the model, in the same order.
        sizes: How many the donor and the model have.
    """

    source: Tensor
    target: Tensor
    sizes: tuple[int, int]

    def spread(self, axis: Axis) -> Choice:
        """The same for an axis with several copies of the set.

        Example:
            >>> one = Choice(torch.tensor([0, 2]), torch.tensor([0, 1]), (3, 2))
            >>> one.spread(Axis((), "out", copies=2)).source.tolist()
            [0, 2, 3, 5]
            >>> one.spread(Axis((), "in", copies=2, inner=True)).source.tolist()
            [0, 1, 4, 5]
        """
        count = axis.copies
        if axis.parts:
            return self._parted(axis)

        def over(places: Tensor, size: int) -> Tensor:
            copies = torch.arange(count)
            if axis.inner:
                return (places[:, None] * count + copies).flatten()
            return (copies[:, None] * size + places).flatten()

        old, new = self.sizes
        return Choice(over(self.source, old), over(self.target, new), (old * count, new * count))

    def _parted(self, axis: Axis) -> Choice:
        """The same for copies that are mixed; the donor's are as many and in the same order."""
        old, new = self.sizes
        pairs = []
        for part in axis.parts:
            rows = torch.cat([torch.arange(start, stop) for start, stop in part.rows])
            stretched = [(start * old // new, stop * old // new) for start, stop in part.rows]
            theirs = torch.cat([torch.arange(start, stop) for start, stop in stretched])
            pairs.append(torch.stack((rows[self.target], theirs[self.source])))
        target, source = torch.cat(pairs, 1)
        order = target.argsort()
        count = axis.copies
        return Choice(source[order], target[order], (old * count, new * count))


def importance(members: Sequence[tuple[Pair, int, Axis]], size: int) -> Tensor:
    """|what makes a neuron| * |what reads it|: norms of its rows and columns in all tensors.

    Example:
        >>> make = Pair(ParamInfo(("a",), (1, 2), Role.WEIGHT), torch.tensor([[3.0, 4.0], [1.0, 0.0]]))
        >>> read = Pair(ParamInfo(("b",), (1, 1), Role.WEIGHT), torch.tensor([[2.0, 2.0]]))
        >>> importance([(make, 0, Axis((), "out")), (read, 1, Axis((), "in"))], 2)
        tensor([10.,  2.])
    """
    square = {"out": torch.zeros(size), "in": torch.zeros(size)}
    scale = torch.ones(size)
    for pair, dim, axis in members:
        rows = (
            pair.donor.detach().float().movedim(dim, 0).flatten(1) if pair.donor.ndim > 1 else None
        )
        per = (pair.donor.float()[:, None] if rows is None else rows).square().sum(1)
        shape = (size, axis.copies) if axis.inner else (axis.copies, size)
        per = per.view(shape).sum(1 if axis.inner else 0)
        meets = axis.kind == "out" and pair.info.usage and pair.info.usage.attention == "key"
        if axis.kind in square:  # keys read queries
            square["in" if meets else axis.kind] += per
            if "tied" in pair.info.flags and pair.info.role is Role.EMBEDDING:
                square["in"] += per  # the output layer reads it
        elif pair.info.role is Role.BIAS:
            square["out"] += per
        elif pair.info.role is Role.NORM_SCALE:
            # Several norms of one stream: what each lets through counts alike.
            scale = scale * (per.sqrt() / per.sqrt().mean().clamp_min(1e-12)).clamp_min(0)
    norms = sum(p.info.role is Role.NORM_SCALE for p, _, _ in members)
    scale = scale ** (1 / norms) if norms else scale
    reads = bool(square["in"].any())
    return square["out"].sqrt() * (square["in"].sqrt() if reads else 1.0) * scale


def chosen(
    score: Tensor, size: int, heads: tuple[int, int], select: Select, alike: bool = False
) -> Choice:
    """Neurons by their score, the same number from each head.

    Args:
        score: For each neuron of the donor.
        size: How many the model has.
        heads: Heads of the donor and of the model, (1, 1) without attention.
        select: `"importance"`: the largest scores; `"even"`: evenly spaced.
        alike: Whether all heads keep the same features.

    Example:
        >>> chosen(torch.tensor([1.0, 5.0, 3.0, 4.0]), 2, (1, 1), "importance").source.tolist()
        [1, 3]
        >>> chosen(torch.tensor([1.0, 2.0, 5.0, 6.0]), 2, (2, 2), "importance").source.tolist()
        [1, 3]
    """
    old = len(score)
    before, after = heads
    if before < 1 or after < 1 or old % before or size % after:
        before = after = 1
    wide, narrow = old // before, size // after
    table = score.view(before, wide)
    which = _picked(table.sum(1), min(before, after), select)
    width = min(wide, narrow)
    table = table.sum(0).expand(before, wide) if alike else table
    source = torch.cat(
        [_picked(table[head], width, select) + head * wide for head in which.tolist()]
    )
    target = (torch.arange(len(which))[:, None] * narrow + torch.arange(width)).flatten()
    return Choice(source, target, (old, size))


def _picked(score: Tensor, count: int, select: Select) -> Tensor:
    """Places of the largest scores, or evenly spaced ones; ascending."""
    if count == len(score):
        return torch.arange(count)
    if select == "importance":
        return score.sort(descending=True, stable=True).indices[:count].sort().values
    return evenly(len(score), count)


def evenly(old: int, new: int) -> Tensor:
    """`new` evenly spaced numbers below `old`: every k-th where it divides, else rounded.

    Example:
        >>> evenly(8, 4).tolist(), evenly(5, 3).tolist()
        ([0, 2, 4, 6], [0, 2, 4])
    """
    if old % new == 0:
        return torch.arange(new) * (old // new)
    return torch.linspace(0, old - 1, new, dtype=torch.float64).round().long()
