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
from lightning_init.strategies.neurons import Choice, Select, chosen, importance
from lightning_init.strategies.positions import resized

Rescale = Literal["norm", "fan_in", "none"]


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
            if len(chosen.target) < chosen.sizes[1]:
                places[dim] = chosen.target
                silent += [dim] if axis.kind == "in" else []
            if axis.kind == "in" and len(chosen.source) < chosen.sizes[0]:
                inputs.append((dim, chosen.source))
            elif len(chosen.source) < chosen.sizes[0] or axis.parts:
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
            known = {
                self.heads[p.info.name]: a.copies
                for p, _, a in sorted(members, key=lambda member: -member[2].copies)
                if a.kind == "out" and p.info.name in self.heads
            }
            # Where queries share a key, the heads of both keep the same features.
            heads = min(known, key=lambda each: each[1], default=(1, 1))
            score = torch.zeros(old) if self.select == "even" else importance(members, old)
            found[key] = chosen(score, new, heads, self.select, alike=len(known) > 1)
        return found


def _kernel(pair: Pair) -> bool:
    """Whether two kernels are of different sizes, or in groups of different sizes."""
    is_matrix = pair.info.role in (Role.WEIGHT, Role.RECURRENT) and out_dim(pair.info) is not None
    grouped = out_dim(pair.info) is not None and len(pair.info.shape) > 2 and pair.info.blocks > 1
    differs = tuple(pair.donor.shape) != pair.info.shape
    if grouped and differs and pair.info.shape[1:2] != (1,):
        return True
    return is_matrix and tuple(pair.donor.shape[2:]) != pair.info.shape[2:]


def _shapes(pair: Pair) -> str:
    old, new = ("x".join(map(str, shape)) for shape in (pair.donor.shape, pair.info.shape))
    return f"{old} -> {new}"
