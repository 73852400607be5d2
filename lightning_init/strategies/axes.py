"""Which axes of a model's tensors stand for the same neurons.

Whoever takes some neurons of a larger model must take the same ones wherever they occur: in the
rows that make them, the columns that read them, their biases, norms and running statistics.
Without that, a slice is worse than a fresh start. Axes are put together by what one forward pass
showed (`ParamInfo.channels`), else by their sizes, which connected layers share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from lightning_init.architecture.params import ParamInfo, Part, Role

Key = tuple[object, ...]
Kind = Literal["out", "in", "rows", "follows"]


class Pair(NamedTuple):
    """A tensor of a model and its donor, of equal dimensions but not always of equal sizes."""

    info: ParamInfo
    donor: Tensor

    def sizes(self, dim: int) -> tuple[int, int]:
        """The donor's and the model's size of a dimension."""
        return int(self.donor.shape[dim]), self.info.shape[dim]


@dataclass(frozen=True, slots=True)
class Axis:
    """A dimension of a tensor: some copies of a set of neurons.

    Attributes:
        key: Which set.
        kind: What the tensor does with them: makes them, takes them, lists words, or follows.
        copies: How many times the set lies along the axis: fused parts, gates, places of a map.
        inner: Whether the copies of one neuron lie together, as a flattened map has them.
        parts: The rows of each copy, where they do not lie one after the other.
    """

    key: Key
    kind: Kind
    copies: int = 1
    inner: bool = False
    parts: tuple[Part, ...] = ()


def out_dim(info: ParamInfo) -> int | None:
    """The dimension of a tensor's output features, None if it is no matrix or table.

    Example:
        >>> out_dim(ParamInfo(("w",), (8, 4), Role.WEIGHT)), out_dim(ParamInfo(("b",), (8,), Role.BIAS))
        (0, None)
    """
    if len(info.shape) < 2:
        return None
    if info.role is Role.EMBEDDING or (info.role is Role.POSITION and len(info.shape) == 2):
        return len(info.shape) - 1
    if info.role not in (Role.WEIGHT, Role.RECURRENT):
        return None
    if info.layer == "Conv1D" or info.layer.startswith(("ConvTranspose", "LazyConvTranspose")):
        return 1
    return info.axis if info.axis < 2 else None


def kind_of(info: ParamInfo, dim: int) -> Kind:
    """What a tensor does with the neurons along a dimension."""
    out = out_dim(info)
    if info.role in (Role.EMBEDDING, Role.POSITION):
        return "out" if dim == out else "rows" if dim == 0 else "follows"
    if out is None or dim > 1:
        return "follows"
    return "out" if dim == out else "in"


def axes_of(pairs: Sequence[Pair]) -> dict[tuple[str, int], Axis]:
    """The set of neurons of each dimension whose size differs, by tensor and dimension.

    Example:
        >>> import torch
        >>> one = Pair(ParamInfo(("a",), (4, 2), Role.WEIGHT), torch.ones(8, 2))
        >>> two = Pair(ParamInfo(("b",), (3, 4), Role.WEIGHT), torch.ones(3, 8))
        >>> found = axes_of([one, two])
        >>> found["a", 0].key == found["b", 1].key
        True
    """
    found = by_use(pairs)
    return by_size(pairs) if found is None else found


def by_use(pairs: Sequence[Pair]) -> dict[tuple[str, int], Axis] | None:
    """Axes put together by what a forward pass showed, None where that does not explain all."""
    sizes: dict[int, tuple[int, int]] = {}
    listed: list[tuple[Pair, int, int]] = []
    for pair in pairs:
        for dim in range(len(pair.info.shape)):
            if pair.sizes(dim)[0] == pair.sizes(dim)[1]:
                continue
            if len(pair.info.channels) <= dim or pair.info.channels[dim] < 0:
                return None
            own = pair.info.channels[dim]
            listed.append((pair, dim, own))
            sizes[own] = min(sizes.get(own, pair.sizes(dim)), pair.sizes(dim))
    found: dict[tuple[str, int], Axis] = {}
    convolved = {
        own
        for pair, dim, own in listed
        if len(pair.info.shape) > 2 and kind_of(pair.info, dim) == "out"
    }
    for pair, dim, own in listed:
        copies = _copies(pair.sizes(dim), sizes[own])
        kind = kind_of(pair.info, dim)
        if not copies:
            return None
        inner = copies > 1 and kind == "in" and own in convolved and len(pair.info.shape) == 2
        parts = _parts(pair.info, dim, copies)
        found[pair.info.name, dim] = Axis(("channels", own), kind, copies, inner, parts)
    return found


def by_size(pairs: Sequence[Pair]) -> dict[tuple[str, int], Axis]:
    """Axes put together by the sizes that they have in the donor and in the model."""
    listed: list[tuple[Pair, int, Kind, tuple[int, int]]] = []
    for pair in pairs:
        for dim in range(len(pair.info.shape)):
            old, new = pair.sizes(dim)
            if old == new:
                continue
            kind, blocks = kind_of(pair.info, dim), _blocks(pair.info, dim)
            base = (
                (old // blocks, new // blocks) if not (old % blocks or new % blocks) else (old, new)
            )
            listed.append((pair, dim, kind, base))
    made = {base for _, _, kind, base in listed if kind == "out"}
    used = {base for pair, dim, kind, base in listed if kind == "in" or _is_read(pair.info, dim)}
    whole = made & used
    # What a flattened map has copies of is a set too, though no tensor takes it by itself.
    for base in used - made:
        copied = [one for one in made if _copies(base, one)]
        whole |= {max(copied)} if copied else set()
    convolved = {
        base for pair, _, kind, base in listed if kind == "out" and len(pair.info.shape) > 2
    }
    found = {}
    for pair, dim, kind, base in listed:
        # Flattened maps are taken, and fused parts are made, in copies only.
        others = whole | (made if kind == "in" else used)
        smaller = [one for one in others if _copies(base, one)]
        if base not in whole and kind != "rows" and smaller:
            base = max(smaller)
        copies = _copies(pair.sizes(dim), base)
        inner = copies > 1 and kind == "in" and base in convolved and len(pair.info.shape) == 2
        parts = _parts(pair.info, dim, copies)
        found[pair.info.name, dim] = Axis(("size", *base), kind, copies, inner, parts)
    return found


def ends(axes: Mapping[tuple[str, int], Axis], pairs: Sequence[Pair]) -> dict[Key, str]:
    """Sets that nothing makes or nothing reads: a model's inputs and outputs, and why.

    These are no neurons of which some could be left out.
    """
    info = {pair.info.name: pair.info for pair in pairs}
    made = {axis.key for axis in axes.values() if axis.kind == "out"}
    used = {
        axis.key
        for (name, dim), axis in axes.items()
        if axis.kind == "in" or _is_read(info[name], dim)
    }
    rows = {axis.key for axis in axes.values() if axis.kind == "rows"}
    found: dict[Key, str] = {}
    for key in {axis.key for axis in axes.values()} - rows:
        if key not in made:
            found[key] = "other inputs"
        elif key not in used:
            found[key] = "other outputs"
    return found


def _is_read(info: ParamInfo, dim: int) -> bool:
    """Whether something reads what a tensor makes, though no tensor's columns show it.

    A table may be the matrix of an output layer too, and queries meet keys.
    """
    if info.role is Role.EMBEDDING:
        return "tied" in info.flags and dim == len(info.shape) - 1
    attends = set(info.usage.attention.split("|")) if info.usage else set()
    return bool(attends & {"query", "key"}) and dim == (out_dim(info) or 0)


def _blocks(info: ParamInfo, dim: int) -> int:
    stacked = info.role in (Role.WEIGHT, Role.RECURRENT, Role.BIAS) and dim == (out_dim(info) or 0)
    if not stacked or (info.layer.startswith("Conv") and info.layer != "Conv1D"):
        return 1  # the groups of a convolution are no copies
    return info.blocks


def _parts(info: ParamInfo, dim: int, copies: int) -> tuple[Part, ...]:
    """The parts of a fused tensor that do not lie one after the other."""
    mixed = any(len(part.rows) > 1 for part in info.parts)
    fits = len(info.parts) == copies and dim == (out_dim(info) or 0)
    return info.parts if mixed and fits else ()


def _copies(sizes: tuple[int, int], base: tuple[int, int]) -> int:
    """How often a pair of sizes is another one, 0 if it is not."""
    times = sizes[0] // base[0]
    return times if times and sizes == (times * base[0], times * base[1]) else 0
