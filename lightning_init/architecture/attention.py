"""Attention: which rows of which layer make query, key and value, and which layer takes the result.

Seen are `scaled_dot_product_attention` and softmax attention written by hand: a product of two
signals, a softmax, a product with a third signal.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_init.architecture.calls import Op, Signal, Weight
from lightning_init.architecture.graph import SAME, Graph
from lightning_init.architecture.operations import (
    NORMS,
    PRODUCTS,
)
from lightning_init.architecture.params import Part
from lightning_init.architecture.products import Side
from lightning_init.architecture.rows import once

_ORDER = ("query", "key", "value")
_ORDER_OF = {"query": 0, "key": 1, "key|value": 1, "value": 2}
_BEFORE_OUT = (SAME - {"add", "sub", "cat", "stack", "where"}) | NORMS | {"normalize", "silu"}


@dataclass(frozen=True, slots=True)
class Attention:
    """A layer's part in attention.

    Attributes:
        part: `query`, `key`, `value`, `out`, or several joined by `|` where rows are fused.
        heads: Heads of that part; of the query if fused.
        rows: The rows of each part, `()` for a layer of one part.
    """

    part: str
    heads: int
    rows: tuple[Part, ...] = ()


def attention(graph: Graph) -> dict[int, Attention]:
    """The part in attention of each matrix that has one, by the id of its parameter."""
    rows: dict[int, list[int]] = {}  # by row of a matrix: the parts that it makes, as bits
    heads_of: dict[tuple[int, str], int] = {}
    outs: dict[int, int] = {}
    for context, parts in _contexts(graph):
        most = 0
        for name, (signal, side) in zip(_ORDER, parts, strict=True):
            for op, numbers in _rows(graph, signal):
                matrix, bit = _matrix(op), 1 << _ORDER_OF[name]
                line = rows.setdefault(matrix, [0] * op.seen["rows"])
                for row in numbers:
                    line[row] |= bit
                heads = max(1, len(numbers) // _features_of_a_head(graph, signal, side, op))
                heads_of[matrix, name] = heads
                most = max(most, heads)
        for layer in graph.onward(context, _BEFORE_OUT):
            if most and graph.ops[layer].product is not None:
                outs.setdefault(_matrix(graph.ops[layer]), most)
    found = {
        matrix: _describe(line, heads_of, matrix)
        for matrix, line in rows.items()
        # Signals may attend to themselves without projections.
        if not any(bits & 1 and bits > 1 for bits in set(line))
    }
    return {matrix: Attention("out", heads) for matrix, heads in outs.items()} | found


def _matrix(op: Op) -> int:
    """The parameter that a weight layer multiplies with."""
    return next(weight.params[0] for at, weight in op.weights if at == op.matrix)


def _contexts(graph: Graph) -> Iterator[tuple[int, list[tuple[Signal | Weight | None, Side]]]]:
    for index, op in enumerate(graph.ops):
        if op.kind == "scaled_dot_product_attention":
            yield index, op.seen["parts"]
        elif "meet" in op.seen:
            for (probabilities, _), value in (op.seen["meet"], op.seen["meet"][::-1]):
                scores = _scores(graph, probabilities.op)
                if scores is not None:
                    yield index, [*scores.seen["meet"], value]
                    break


def _features_of_a_head(graph: Graph, signal: Signal | Weight | None, side: Side, layer: Op) -> int:
    """How many of a layer's rows meet each other: those that are summed, or those of one matrix."""
    assert isinstance(signal, Signal)
    assert signal.rows is not None
    rows, most = signal.rows, 1
    for dims in (side.summed, side.matrix):
        kept = {dim % rows.ndim for dim in dims}
        for at in (0, -1):
            one = rows[tuple(slice(None) if d in kept else at for d in range(rows.ndim))]
            mine = [n for n in _distinct(graph, one) if 0 <= n - layer.base < layer.seen["rows"]]
            most = max(most, len(mine))
        if most > 1:
            break
    return most


def _scores(graph: Graph, index: int) -> Op | None:
    """The product of two signals behind a softmax, which ends at a call; None if there is none."""
    softmax = None
    for _ in range(64):
        op = graph.ops[index]
        if op.kind == "softmax" and softmax is None:
            softmax = op
        elif op.kind in PRODUCTS:
            return op if softmax is not None and "meet" in op.seen else None
        elif op.kind not in SAME | {"tanh"}:  # scores are capped by a tanh
            return None
        inputs = graph.signals(index)
        if len(inputs) > 1:  # a bias that was computed: follow the scores
            inputs = [s for s in inputs if graph.meets(s)]
        if not inputs:
            return None
        index = inputs[0]
    return None


def _rows(graph: Graph, signal: Signal | Weight | None) -> list[tuple[Op, list[int]]]:
    if not isinstance(signal, Signal) or signal.rows is None:
        return []
    return origins(graph, signal.rows)


def origins(graph: Graph, numbers: Tensor) -> list[tuple[Op, list[int]]]:
    """The weight layers that a tensor of row numbers speaks of, and their rows, ascending."""
    layers, starts = graph.numbered
    found: dict[int, list[int]] = defaultdict(list)
    for number in _distinct(graph, numbers):
        if number >= 0:
            at = bisect_right(starts, number) - 1
            found[at].append(number - starts[at])
    return [(layers[at], rows) for at, rows in found.items()]


def _distinct(graph: Graph, rows: Tensor) -> list[int]:
    """The different numbers, and those that were mixed with them."""
    numbers: list[int] = torch.unique(once(rows)[0]).tolist()
    if not graph.twins:
        return numbers
    return sorted({*numbers, *(twin for n in numbers for twin in graph.twins.get(n, ()))})


def _describe(bits: list[int], heads_of: dict[tuple[int, str], int], matrix: int) -> Attention:
    names = {
        found: "|".join(n for at, n in enumerate(_ORDER) if found >> at & 1) or "rest"
        for found in set(bits)
    }
    line = [names[found] for found in bits]
    parts = tuple(
        Part(name, ranges([row for row, other in enumerate(line) if other == name]))
        for name in dict.fromkeys(line)
    )
    named = [part for part in parts if part.name != "rest"]
    first = next((part for part in named if part.name == "query"), named[0])
    heads = heads_of[matrix, first.name.split("|")[0]]
    joined = "|".join(sorted((part.name for part in named), key=_ORDER_OF.__getitem__))
    return Attention(joined, heads, parts if len(parts) > 1 else ())


def ranges(rows: list[int]) -> tuple[tuple[int, int], ...]:
    """Ascending numbers as half-open ranges."""
    found: list[tuple[int, int]] = []
    for row in rows:
        if found and found[-1][1] == row:
            found[-1] = (found[-1][0], row + 1)
        else:
            found.append((row, row + 1))
    return tuple(found)
