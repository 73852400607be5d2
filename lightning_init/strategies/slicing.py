"""Some neurons of a larger model, or all of a smaller one, as the tensors of a model.

Sets of neurons (`axes.Axis`) are chosen once and used wherever they occur. Where heads of attention
are known, each head keeps the same number of its features. Columns that are left out are made up
for: what remains is scaled to the norm of all, on average sqrt(n_donor / n_model).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_init.architecture.params import Role
from lightning_init.strategies.axes import Axis, Key, Pair, axes_of, ends, out_dim
from lightning_init.strategies.positions import resized

Select = Literal["importance", "even"]
Rescale = Literal["norm", "fan_in", "none"]


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

    @property
    def grows(self) -> bool:
        """Whether the model has more."""
        return self.sizes[1] > self.sizes[0]

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

        def over(places: Tensor, size: int) -> Tensor:
            copies = torch.arange(count)
            if axis.inner:
                return (places[:, None] * count + copies).flatten()
            return (copies[:, None] * size + places).flatten()

        old, new = self.sizes
        return Choice(over(self.source, old), over(self.target, new), (old * count, new * count))


@dataclass(frozen=True, slots=True)
class Cut:
    """A donor's tensor made to fit.

    Attributes:
        values: What goes into the model's tensor.
        places: For each dimension where, `()` if everywhere.
        silent: Dimensions of inputs of which the model has more.
        how: What was done, in words.
    """

    values: Tensor
    places: tuple[Tensor, ...] = ()
    silent: tuple[int, ...] = ()
    how: str = ""


@dataclass(frozen=True)
class Slicer:
    """How the tensors of a donor are made to fit a model.

    Args:
        pairs: All tensors that have a donor of as many dimensions.
        heads: Heads of attention in the donor and in the model, by tensor.
        select: Which neurons of a larger donor are taken.
        rescale: How what is left of the inputs of a layer is scaled.
    """

    pairs: Sequence[Pair]
    heads: Mapping[str, tuple[int, int]]
    select: Select = "importance"
    rescale: Rescale = "norm"

    def cut(self) -> dict[str, Cut | str]:
        """For each tensor what goes into it, or why nothing does."""
        pairs = [Pair(p.info, resized(p.info, p.donor)) for p in self.pairs]
        other = {
            pair.info.name: f"another kernel: {_shapes(pair)}" for pair in pairs if _kernel(pair)
        }
        pairs = [pair for pair in pairs if not _kernel(pair)]
        axes = axes_of(pairs)
        choices, wrong = self._choices(pairs, axes), ends(axes, pairs)
        return {p.info.name: self._one(p, axes, choices, wrong) for p in pairs} | other

    def choices(self) -> dict[tuple[str, int], Choice]:
        """What is taken along each dimension that differs."""
        axes = axes_of(self.pairs)
        chosen = self._choices(self.pairs, axes)
        return {at: chosen[axis.key].spread(axis) for at, axis in axes.items() if axis.copies}

    def _one(
        self,
        pair: Pair,
        axes: Mapping[tuple[str, int], Axis],
        choices: Mapping[Key, Choice],
        wrong: Mapping[Key, str],
    ) -> Cut | str:
        info, values = pair
        shapes = _shapes(pair)
        places: dict[int, Tensor] = {}
        silent, inputs = [], []
        for dim in range(len(info.shape)):
            axis = axes.get((info.name, dim))
            if axis is None:
                continue
            if axis.key in wrong:
                return f"{wrong[axis.key]}: {shapes}"
            if not axis.copies or axis.key not in choices:
                return f"its parts are arranged otherwise: {shapes}"
            chosen = choices[axis.key].spread(axis)
            if chosen.sizes != pair.sizes(dim):
                return f"its parts are arranged otherwise: {shapes}"
            if chosen.grows:
                places[dim] = chosen.target
                silent += [dim] if axis.kind == "in" else []
            elif axis.kind == "in":
                inputs.append((dim, chosen.source))
            else:
                values = values.index_select(dim, chosen.source)
        values = self._narrowed(values, inputs)
        if values is pair.donor and not places:
            return Cut(values)
        if not places:
            return Cut(values, how=f"sliced {shapes}")
        where = tuple(places.get(dim, torch.arange(size)) for dim, size in enumerate(info.shape))
        return Cut(values, where, tuple(silent), how=f"grown {shapes}")

    def _narrowed(self, values: Tensor, inputs: list[tuple[int, Tensor]]) -> Tensor:
        """The values without some of their inputs, which the others make up for."""
        for dim, source in inputs:
            kept = values.index_select(dim, source)
            factor = 1.0
            if self.rescale == "fan_in":
                factor = (values.shape[dim] / kept.shape[dim]) ** 0.5
            elif self.rescale == "norm":
                norm = float(torch.linalg.vector_norm(kept.float()))
                whole = float(torch.linalg.vector_norm(values.float()))
                factor = whole / norm if norm else 1.0
            values = kept if factor == 1 else kept * factor
        return values

    def _choices(
        self, pairs: Sequence[Pair], axes: Mapping[tuple[str, int], Axis]
    ) -> dict[Key, Choice]:
        by_name = {pair.info.name: pair for pair in pairs}
        of: dict[Key, list[tuple[Pair, int, Axis]]] = {}
        for (name, dim), axis in axes.items():
            if axis.copies:
                of.setdefault(axis.key, []).append((by_name[name], dim, axis))
        found = {}
        for key, members in of.items():
            pair, dim, axis = members[0]
            old, new = (size // axis.copies for size in pair.sizes(dim))
            if any(a.kind == "rows" for _, _, a in members):
                first = torch.arange(min(old, new))  # words keep their numbers
                found[key] = Choice(first, first, (old, new))
                continue
            heads = next(
                (
                    self.heads[p.info.name]
                    for p, _, a in members
                    if a.kind == "out" and p.info.name in self.heads
                ),
                (1, 1),
            )
            score = torch.zeros(old) if self.select == "even" else importance(members, old)
            found[key] = chosen(score, new, heads, self.select)
        return found


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
        if axis.kind in square:
            square[axis.kind] += per
            if "tied" in pair.info.flags and pair.info.role is Role.EMBEDDING:
                square["in"] += per  # the output layer reads it
        elif pair.info.role is Role.BIAS:
            square["out"] += per
        elif pair.info.role is Role.NORM_SCALE:
            # Several norms of one stream: what each lets through counts alike.
            scale = scale * (per.sqrt() / per.sqrt().mean().clamp_min(1e-12)).clamp_min(0)
    norms = sum(p.info.role is Role.NORM_SCALE for p, _, _ in members)
    scale = scale ** (1 / norms) if norms else scale
    reads = any(axis.kind == "in" for _, _, axis in members)
    return square["out"].sqrt() * (square["in"].sqrt() if reads else 1.0) * scale


def chosen(score: Tensor, size: int, heads: tuple[int, int], select: Select) -> Choice:
    """Neurons by their score, the same number from each head.

    Args:
        score: For each neuron of the donor.
        size: How many the model has.
        heads: Heads of the donor and of the model, (1, 1) without attention.
        select: `"importance"`: the largest scores; `"even"`: evenly spaced.

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


def _kernel(pair: Pair) -> bool:
    """Whether two kernels are of different sizes."""
    is_matrix = pair.info.role in (Role.WEIGHT, Role.RECURRENT) and out_dim(pair.info) is not None
    return is_matrix and tuple(pair.donor.shape[2:]) != pair.info.shape[2:]


def _shapes(pair: Pair) -> str:
    old, new = ("x".join(map(str, shape)) for shape in (pair.donor.shape, pair.info.shape))
    return f"{old} -> {new}"
