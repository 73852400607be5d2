"""Which dimensions of which parameters stand for the same neurons, read off one forward pass.

The rows of a layer make features; whatever takes them (columns of the next layer, norms, biases,
what is added to them) stands for the same ones. Sets are followed through the calls and merged
where signals are added. What cannot be followed, such as a layer over positions, is an answer too:
then nothing is said of the model.
"""

from __future__ import annotations

from collections.abc import Iterable

from lightning_init.architecture.calls import Op, Weight
from lightning_init.architecture.graph import Graph
from lightning_init.architecture.operations import (
    CONVERSIONS,
    CONVOLUTIONS,
    FRESH,
    LOOKUPS,
    PRODUCTS,
    SPLITS,
    TRANSPOSED,
)

_MIXING = frozenset({"pixel_shuffle", "pixel_unshuffle", "unfold", "fold", "outer", "kron"})
Axis = tuple[int, int]  # a parameter by its id, and its dimension


class _Lost(Exception):
    """A signal that cannot be followed."""


def channels(graph: Graph) -> dict[int, tuple[int, ...]]:
    """For each dimension of a parameter the number of its set of neurons, -1 where none is seen.

    Args:
        graph: The calls of a forward pass.

    Returns:
        By `id(parameter)`; empty if some signal cannot be followed.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_init.architecture.trace import trace
        >>> net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 1))
        >>> found = channels(Graph(trace(net, lambda: net(torch.ones(3, 2)))))
        >>> [found[id(layer.weight)] for layer in (net[0], net[2], net[3])]
        [(0, 1), (2, 0), (3, 2)]
    """
    try:
        return _Sets(graph).numbered()
    except _Lost:
        return {}


class _Sets:
    """Sets of axes, merged as the calls are read in order."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.parent: dict[Axis, Axis] = {}
        self.sizes: dict[Axis, set[int]] = {}
        self.shapes: dict[int, tuple[int, ...]] = {}
        self.flows: list[Axis | None] = []
        self.joined: list[Axis] = []  # features of several layers, one after the other
        self.taken: list[Axis] = []  # columns of matrices
        for op in graph.ops:
            self.flows.append(self._read(op))
        self.check()

    def check(self) -> None:
        """After a convolution, a matrix takes flattened maps: channel by channel, or side by side?"""
        convolved = {self._root(a) for a in self.parent if len(self.shapes[a[0]]) > 2}
        both = {self._root(axis) for axis in self.joined} & {self._root(a) for a in self.taken}
        if both & convolved:
            raise _Lost

    def numbered(self) -> dict[int, tuple[int, ...]]:
        """The sets, numbered in the order of their appearance."""
        numbers: dict[Axis, int] = {}
        found = {}
        for parameter, shape in self.shapes.items():
            axes = [(parameter, dim) for dim in range(len(shape))]
            roots = [self._root(axis) if axis in self.parent else None for axis in axes]
            found[parameter] = tuple(
                -1 if root is None else numbers.setdefault(root, len(numbers)) for root in roots
            )
        return found

    def _read(self, op: Op) -> Axis | None:
        """Merge what a call shows; the set of the features that it makes."""
        for _, weight in op.weights:
            self.shapes.setdefault(weight.params[0], weight.shape)
        if "computes" in op.seen:
            raise _Lost
        if op.is_recurrent:
            return self._recurrent(op)
        if op.product is not None:
            return self._product(op)
        if op.kind in LOOKUPS or "lookup" in op.seen:
            weight = self._only(op)
            self._axis(weight, 0)
            return self._axis(weight, len(weight.shape) - 1)
        if op.kind in _MIXING or (op.kind in SPLITS and op.inputs and self._unequal(op)):
            raise _Lost
        known = [self.flows[signal.op] for signal in op.signals]
        if op.kind == "scaled_dot_product_attention":
            query, key, value = (known + [None] * 3)[:3]
            self._join(query, key)
            return value
        if "meet" in op.seen or (op.kind in PRODUCTS and len(op.signals) > 1):
            one, two = (known + [None] * 2)[:2]
            if one is not None and two is not None:
                self._join(one, two)
                return None
            return one or two
        return self._alike(op, [flow for flow in known if flow is not None])

    def _alike(self, op: Op, flows: list[Axis]) -> Axis | None:
        """A call whose inputs all have the same features, or are broadcast to them."""
        wide = [flow for flow in flows if self._size(flow) > 1]
        for other in wide[1:]:
            self._join(wide[0], other)
        flow = wide[0] if wide else (flows[0] if flows else None)
        if flow is not None and len(flows) > 1 and self._side_by_side(op):
            self.joined.append(flow)
        for _, weight in op.weights:
            if len(weight.params) > 1 and op.kind not in CONVERSIONS:
                raise _Lost
            for dim in self._matching(weight, flow, op):
                axis = self._axis(weight, dim)
                self._join(flow, axis)
                flow = flow or axis
        if op.kind == "learned" and op.weights:
            weight = op.weights[0][1]
            return self._axis(weight, len(weight.shape) - 1) if weight.shape else None
        return flow if op.kind not in FRESH else None

    def _unequal(self, op: Op) -> bool:
        """Whether a signal is split into pieces of several sizes: each is a set of its own."""
        beside = (self.graph.ops[index] for index in self.graph.ops[op.inputs[0]].consumers)
        pieces = {
            other.out.shape for other in beside if other.kind in SPLITS and other.out is not None
        }
        return len(pieces) > 1

    def _side_by_side(self, op: Op) -> bool:
        """Whether signals are put next to each other along their features."""
        made = op.out
        found = (self.graph.ops[signal.op].out for signal in op.signals)
        outs = [out for out in found if out is not None and made is not None]
        if op.kind != "cat" or made is None or any(out.ndim != made.ndim for out in outs):
            return False
        dims = [d for d in range(made.ndim) if any(o.shape[d] != made.shape[d] for o in outs)]
        return dims in ([1], [made.ndim - 1])

    def _matching(self, weight: Weight, flow: Axis | None, op: Op) -> list[int]:
        """The dimension of a parameter, added or multiplied, that is that of the features."""
        wide = [dim for dim, size in enumerate(weight.shape) if size > 1]
        if not wide:
            return []
        if flow is None:
            return wide[-1:] if op.signals else []
        sizes = self.sizes[self._root(flow)]
        return [dim for dim in wide if weight.shape[dim] in sizes][-1:]

    def _product(self, op: Op) -> Axis | None:
        """A weight layer: its columns take what flows in, its rows make what flows out."""
        assert op.product is not None
        weight = next((w for at, w in op.weights if at == op.matrix), None)
        others = [w for at, w in op.weights if at != op.matrix]
        flow = self.flows[op.signals[0].op] if op.signals else None
        if weight is None or len(weight.params) > 1 or weight.joined or len(op.signals) != 1:
            raise _Lost
        if op.kind in CONVOLUTIONS:
            out = 1 if op.kind in TRANSPOSED else 0
            if op.product.blocks > 1:
                if weight.shape[1] != 1 or op.kind in TRANSPOSED:
                    raise _Lost  # groups
                self._join(flow, self._axis(weight, 0))
                return self._biased(self._axis(weight, 0), others)
            into = 1 - out
        elif len(weight.shape) == 2 and "axis" in op.seen:
            out = int(op.seen["axis"])
            into = 1 - out
        else:
            raise _Lost
        taken = self._axis(weight, into)
        self._join(flow, taken)
        if len(weight.shape) == 2:
            self.taken.append(taken)
        return self._biased(self._axis(weight, out), others)

    def _biased(self, made: Axis, others: Iterable[Weight]) -> Axis:
        for weight in others:
            if len(weight.shape) == 1 and weight.shape[0] > 1:
                self._join(made, self._axis(weight, 0))
        return made

    def _recurrent(self, op: Op) -> Axis:
        """An LSTM: gates of one hidden state, which the next layer takes."""
        flow = self.flows[op.signals[0].op] if op.signals else None
        hidden: Axis | None = None
        matrices = 0
        for _, weight in op.weights:
            gates = self._axis(weight, 0)
            self._join(hidden, gates)
            hidden = hidden or gates
            if len(weight.shape) == 2:
                first = matrices < 2 if op.seen.get("layers", 1) == 1 else matrices == 0
                taken = self._axis(weight, 1)
                into = matrices % 2 == 0
                self._join(flow if into and first else hidden, taken)
                matrices += 1
        if hidden is None:
            raise _Lost
        return hidden

    def _only(self, op: Op) -> Weight:
        weight = op.weights[0][1] if op.weights else None
        if weight is None or len(weight.shape) != 2:
            raise _Lost
        return weight

    def _axis(self, weight: Weight, dim: int) -> Axis:
        axis = (weight.params[0], dim)
        if axis not in self.parent:
            self.parent[axis] = axis
            self.sizes[axis] = {weight.shape[dim]}
        return axis

    def _size(self, axis: Axis) -> int:
        return min(self.sizes[self._root(axis)])

    def _root(self, axis: Axis) -> Axis:
        while self.parent[axis] != axis:
            axis = self.parent[axis]
        return axis

    def _join(self, one: Axis | None, two: Axis | None) -> None:
        """Merge two sets; sizes that are no multiples of each other cannot be one set."""
        if one is None or two is None:
            return
        first, second = self._root(one), self._root(two)
        if first == second:
            return
        sizes = self.sizes[first] | self.sizes[second]
        if any(size % min(sizes) for size in sizes):
            raise _Lost
        self.parent[second] = first
        self.sizes[first] = sizes
