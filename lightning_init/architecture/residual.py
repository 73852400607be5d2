"""Residual branches: which layers' results are added to a skip path.

An addition is residual if one side, the skip path, is a tensor S reached unchanged (norms, pools,
views, factors, an earlier residual sum or one projection layer aside) and the other side was
computed from S through more weight layers. Not residual are

- mixtures: gates multiply the skip path (highway, GRU);
- shifts: the would-be skip path is stretched over positions (FiLM, a mean that is added back);
- sums of the outputs of a stream's layers, which leave the stream inside of its branches (the
  skips of WaveNet), and the steps of a recurrence: both project what they add.
"""

from __future__ import annotations

from dataclasses import dataclass

from lightning_init.architecture.graph import Graph
from lightning_init.architecture.operations import (
    ACTIVATIONS,
    ADDITIONS,
    ARITHMETIC,
    MERGES,
    MOVEMENTS,
    NORMS,
    PRODUCTS,
    TRANSPARENT,
)


@dataclass(frozen=True, slots=True)
class Branch:
    """One residual sum.

    Attributes:
        ends: The weight layers whose results the sum takes, as calls.
        after: Calls between them and the sum: norms, factors, gates.
        layers: Weight layers on the longest way along the branch.
        sums: The additions to the skip path.
        inside: All weight layers of the branch, as calls; those of a branch inside of it are not.
        stream: Index of the stream that it adds to: an encoder and a decoder are two.
        attends: Whether it has attention.
        crosses: Whether it attends to something that does not come from its stream.
    """

    ends: tuple[int, ...]
    after: tuple[int, ...]
    layers: int
    sums: tuple[int, ...]
    inside: frozenset[int] = frozenset()
    stream: int = 0
    attends: bool = False
    crosses: bool = False

    def __or__(self, other: Branch) -> Branch:
        """Two ways from one place of the stream to another, as one branch."""
        return Branch(
            (*self.ends, *other.ends),
            (*self.after, *other.after),
            max(self.layers, other.layers),
            (*self.sums, *other.sums),
            self.inside | other.inside,
            self.stream,
            self.attends or other.attends,
            self.crosses or other.crosses,
        )


def residual_branches(graph: Graph) -> list[Branch]:
    """The residual branches of a forward pass, in execution order.

    Example:
        >>> import torch
        >>> from lightning_init.architecture.trace import trace
        >>> layer = torch.nn.Linear(4, 4)
        >>> def forward(x=torch.ones(1, 4)):
        ...     return x + layer(x)
        >>> len(residual_branches(Graph(trace(layer, forward))))
        1
    """
    found: list[Branch] = []
    skips: dict[int, int] = {}
    sums: dict[int, int] = {}
    starts: dict[int, int] = {}
    streams: dict[int, int] = {}
    for index, op in enumerate(graph.ops):
        if op.kind not in ADDITIONS or len(op.inputs) != 2:
            continue
        if op.kind == "sub" and not graph.reaches_layer[index]:
            continue  # a reconstruction error is no sum of a stream
        candidates = []
        one, two = op.inputs
        for skip, branch in ((one, two), (two, one)):
            if _is_stretched(graph, skip, index):
                continue
            source = _source(graph, skips, skip, graph.past(branch))
            own = graph.past(branch) & ~graph.past(skip) & graph.weights
            if source is None or own.bit_count() <= source[1]:
                continue
            start, layers, beside = source
            passed = graph.past(branch) & ~graph.past(start)
            if any(passed >> s & 1 and _before(graph, starts[s], start) for s in starts):
                continue  # the fork lies inside of a branch: its stream goes on beside it
            if layers and _recurs(graph, skip, own):
                continue
            way = graph.longest_way(start, branch)
            if way:
                candidates.append((layers, -own.bit_count(), skip, branch, start, beside, own, way))
        if not candidates:
            continue
        _, _, skip, branch, start, beside, own, way = min(candidates)
        ends, after = _ends(graph, skips, branch, own)
        if ends:
            skips[index], starts[index] = skip, start
            streams[index] = _stream(graph, streams, skip)
            inside = _inside(graph, found, streams, index, start, own)
            attends, crosses = _attends(graph, start, branch, skip)
            new = Branch(
                tuple(ends), tuple(after), way, (index,), inside, streams[index], attends, crosses
            )
            # x + attention(x) + mlp(x): both leave the stream at the same place.
            earlier = sums.get(beside, -1)
            if earlier >= 0:
                found[earlier] = found[earlier] | new
            sums[index] = earlier if earlier >= 0 else len(found)
            found += [new] if earlier < 0 else []
    return found


def _stream(graph: Graph, streams: dict[int, int], skip: int) -> int:
    """The stream of the last sum that a skip path comes from, or a new one."""
    index = skip
    while index not in streams:
        inputs = graph.signals(index)
        if len(inputs) != 1:
            return max(streams.values(), default=-1) + 1
        index = inputs[0]
    return streams[index]


def _inside(
    graph: Graph, found: list[Branch], streams: dict[int, int], total: int, start: int, own: int
) -> frozenset[int]:
    """The weight layers of a branch: no other's, nor what comes from beside and serves several."""
    for other, stream in streams.items():
        if stream != streams[total]:
            own &= ~graph.past(other)
    layers = {
        index
        for index in range(total)
        if own >> index & 1 and (graph.past(index) >> start & 1 or not _serves(graph, index, total))
    }
    return frozenset(layers.difference(*(branch.inside for branch in found)))


def _serves(graph: Graph, layer: int, total: int) -> bool:
    """Whether a layer, as that of a time embedding, also leads to layers that a sum does not take."""
    waiting, seen = list(graph.ops[layer].consumers), {total}
    while waiting:
        index = waiting.pop()
        if index in seen:
            continue
        seen.add(index)
        if graph.weights >> index & 1 and not graph.past(total) >> index & 1:
            return True
        waiting += graph.ops[index].consumers
    return False


def _attends(graph: Graph, start: int, branch: int, skip: int) -> tuple[bool, bool]:
    """Whether a branch has attention, and whether to what does not come from its stream."""
    between = graph.past(branch) & ~graph.past(skip)
    calls = [
        index
        for index in range(start, branch + 1)
        if between >> index & 1 and graph.past(index) >> start & 1 and graph.attends(index)
    ]
    projected = [
        s for index in calls for s in graph.signals(index) if graph.past(s) & graph.weights
    ]
    return bool(calls), any(not graph.past(source) >> start & 1 for source in projected)


def _before(graph: Graph, one: int, other: int) -> bool:
    """Whether a call comes before another, which is no view of it."""
    while graph.ops[other].kind in MOVEMENTS and len(graph.ops[other].inputs) == 1:
        other = graph.ops[other].inputs[0]
    return one != other and bool(graph.past(other) >> one & 1)


def bare_scales(graph: Graph) -> set[int]:
    """Multiplications by a parameter at the end of a branch that only normalizes and pools.

    Its skip path is the stream as it is: what mixes two streams with learned weights scales both.
    """
    found = set()
    for op in graph.ops:
        if op.kind != "add" or len(op.inputs) != 2:
            continue
        for skip, branch in (op.inputs, op.inputs[::-1]):
            end = graph.ops[branch]
            if end.kind != "mul" or not end.weights or not graph.past(branch) >> skip & 1:
                continue
            between = graph.past(branch) & ~graph.past(skip)
            calls = [graph.ops[i].kind for i in range(skip, branch) if between >> i & 1]
            if NORMS & set(calls) and not between & graph.weights:
                found.add(branch)
    return found


def _recurs(graph: Graph, skip: int, own: int) -> bool:
    """Whether the projection on a skip path is also part of the branch: a step of a recurrence."""
    while not graph.ops[skip].is_weight_layer:
        skip = graph.signals(skip)[0]
    layers = (op for index, op in enumerate(graph.ops) if own >> index & 1)
    return any(set(graph.ops[skip].params) & set(op.params) for op in layers)


def _is_stretched(graph: Graph, skip: int, total: int) -> bool:
    """Whether one side of a sum is repeated along other dimensions than those of a batch."""
    one, two = graph.ops[skip].out, graph.ops[total].out
    if one is None or two is None:
        return False
    shape = list(one.shape)
    while shape and shape[0] == 1:
        shape.pop(0)
    return shape != list(two.shape)[len(two.shape) - len(shape) :]


def _source(
    graph: Graph, skips: dict[int, int], skip: int, past: int
) -> tuple[int, int, int] | None:
    """Where a skip path leaves the way of the branch.

    Returns:
        That call, the projections on the skip path, and the last residual sum on it (-1: none);
        None if it is no skip path.
    """
    index, layers, bent, beside = skip, 0, False, -1
    while True:
        op = graph.ops[index]
        if past >> index & 1:
            return index, layers, beside
        if index in skips:
            beside = index
            index = skips[index]
            continue
        inputs = graph.signals(index)
        if len(inputs) != 1:
            return None
        if op.is_weight_layer:
            if layers or bent:
                return None
            layers = 1
        elif op.kind in ACTIVATIONS:
            if layers:
                return None
            bent = True
        elif op.kind not in TRANSPARENT | ARITHMETIC:
            return None
        index = inputs[0]


def _ends(graph: Graph, skips: dict[int, int], branch: int, own: int) -> tuple[set[int], set[int]]:
    """The last weight layers of a branch, and the calls behind them."""
    ends, after, waiting = set(), set(), [branch]
    while waiting:
        index = waiting.pop()
        if index in ends or index in after or index in skips:
            continue
        op = graph.ops[index]
        if op.is_weight_layer:
            if own >> index & 1:
                ends.add(index)
            continue
        after.add(index)
        values = [s for s in graph.values(index) if graph.past(s) & own]
        if len(values) > 1 and op.kind in PRODUCTS:
            continue  # two signals meet: neither is the branch's result
        if len(values) > 1 and op.kind not in MERGES | TRANSPARENT | {"mul", "max", "min"}:
            continue
        waiting += values
    return ends, after
