"""What a parameter is for, from one call that uses it."""

from __future__ import annotations

import math

from lightning_init.architecture.attention import origins
from lightning_init.architecture.calls import Op, Signal, Weight
from lightning_init.architecture.graph import SAME, Graph
from lightning_init.architecture.operations import (
    CONVERSIONS,
    MOVEMENTS,
    NORMS,
    SPLITS,
    TRANSPARENT,
)
from lightning_init.architecture.params import Role

LEARNED = "a learned input"
_KEEPS_FEATURES = MOVEMENTS | CONVERSIONS | {"mul", "div", "add", "sub", "dropout", "setitem"}
_KEEPS_FEATURES |= {"index_add", "scatter_add", "sum", "mean", "interpolate"}


def role_of(
    graph: Graph, index: int, place: int, weight: Weight, *, main: bool, scales: bool
) -> tuple[Role, str]:
    """The role of a parameter in one call, and why in words.

    Args:
        graph: The calls.
        index: The call.
        place: The parameter's place among the call's tensor arguments.
        weight: The parameter as it was used there.
        main: Whether the weight mainly consists of this parameter.
        scales: Whether the call lies between a branch's last weight layer and its sum.

    Returns:
        The role, and what was seen; `""` where the role says it all.
    """
    op = graph.ops[index]
    if op.kind == "learned":
        return Role.OTHER, LEARNED
    if not main:
        return Role.OTHER, "computes a weight together with others"
    if op.product is not None:
        if place == op.matrix:
            return Role.WEIGHT, ""
        first = place < op.matrix and op.kind not in ("addmm", "baddbmm", "addbmm")
        return (Role.OTHER, LEARNED) if first else (Role.BIAS, "")
    if op.is_recurrent:
        return Role.WEIGHT if len(weight.shape) > 1 else Role.BIAS, ""
    if op.kind in NORMS:
        scale = place == min(at for at, _ in op.weights)
        return (Role.NORM_SCALE if scale else Role.NORM_SHIFT), ""
    if "lookup" in op.seen and place == op.weights[0][0]:
        return _looked_up(graph, index)
    if op.kind == "mul":
        if op.seen.get("normalized") and not _has_scale(graph, index):
            return Role.NORM_SCALE, "scales a normalized signal"
        if scales:
            return Role.BRANCH_SCALE, "scales a residual branch"
        return Role.OTHER, "multiplies a signal"
    if op.kind in ("add", "sub"):
        return _added(graph, index, weight)
    if op.kind in ("cat", "stack", "setitem", "where"):
        return Role.OTHER, "joins the sequence as a token"
    if op.kind == "prelu":
        return Role.OTHER, "slope of PReLU"
    if op.kind in ("div", "rtruediv", "pow"):
        return Role.OTHER, "scales a signal"
    return Role.OTHER, f"used by {op.kind}"


def _has_scale(graph: Graph, index: int) -> bool:
    """Whether a norm with a scale of its own comes before: then this one is another's."""
    while graph.ops[index].inputs:
        index = graph.signals(index)[0]
        op = graph.ops[index]
        if op.kind in NORMS:
            return bool(op.weights)
        if op.seen.get("normalized"):
            return True
        if op.kind not in TRANSPARENT | {"setitem"}:
            return False
    return False


def _looked_up(graph: Graph, index: int) -> tuple[Role, str]:
    if _joins_scores(graph, index):
        return Role.OTHER, "bias of attention scores"
    op = graph.ops[index]
    if not op.seen["lookup"]["given"]:
        if op.seen["lookup"]["counting"]:
            return Role.POSITION, "looked up by position"
        if any(_shifts_layer(graph, index, total) for total in op.consumers):
            return Role.BIAS, "added to the result of a layer"
    return Role.EMBEDDING, ""


def _added(graph: Graph, index: int, weight: Weight) -> tuple[Role, str]:
    if _joins_scores(graph, index):
        return Role.OTHER, "bias of attention scores"
    op = graph.ops[index]
    piece = _unmoved(graph, op.inputs[0], SPLITS) if op.inputs else index
    source = _unmoved(graph, piece)
    before, layer = graph.ops[source], _layer_of(graph, source)
    if before.seen.get("normalized") or (before.kind in NORMS and len(before.weights) < 2):
        return Role.NORM_SHIFT, "shifts a normalized signal"
    size = math.prod(weight.shape)
    seen = (origins(graph, signal.rows) for signal in op.signals if signal.rows is not None)
    parts = [len(rows) for found in seen for _, rows in found]
    if layer is not None and (size in _widths(graph.ops[layer]) or parts == [size]):
        follow = graph.onward(piece, MOVEMENTS | CONVERSIONS)
        if all(graph.ops[c].kind in ("add", "sub") and graph.ops[c].weights for c in follow):
            return Role.BIAS, "added to the result of a layer"
        return Role.OTHER, "added to a signal"  # which is also used without it
    if sum(size > 1 for size in weight.shape) > 1:
        return Role.POSITION, "added at every position"
    return Role.OTHER, "added to a signal"


def _shifts_layer(graph: Graph, row: int, total: int) -> bool:
    """Whether a chosen row is added to the result of a layer, as the bias of an expert is."""
    others = [source for source in graph.ops[total].inputs if source != row]
    if graph.ops[total].kind != "add" or len(others) != 1:
        return False
    layer, out = _layer_of(graph, others[0]), graph.ops[row].out
    return layer is not None and out is not None and out.shape[-1] in _widths(graph.ops[layer])


def _unmoved(graph: Graph, index: int, stop: frozenset[str] = frozenset()) -> int:
    """The call that made what a signal shows, at most from another side."""
    moves = (MOVEMENTS | CONVERSIONS) - stop
    while graph.ops[index].kind in moves and graph.ops[index].inputs:
        index = graph.ops[index].inputs[0]
    return index


def _layer_of(graph: Graph, index: int) -> int | None:
    """The layer whose features a result has: at most weighed, shifted, summed over positions."""
    for _ in range(64):
        op = graph.ops[index]
        if op.product is not None:
            return index
        ways = graph.values(index) if op.inputs else []
        if op.kind not in _KEEPS_FEATURES or op.seen.get("normalized") or len(ways) != 1:
            return None
        index = ways[0]
    return None


def _widths(op: Op) -> tuple[int, ...]:
    """Sizes that a bias of a layer can have."""
    assert op.product is not None
    assert op.out is not None
    features = int(op.out.shape[op.product.feature])
    rows = op.seen["numbers"].numel() if "numbers" in op.seen else features
    blocks = op.product.blocks
    return features, features * blocks, features // blocks, rows, round(features / op.seen["share"])


def _joins_scores(graph: Graph, index: int) -> bool:
    """Whether a result is added to products of query and key before their softmax."""
    waiting, seen, joined = [index], set(), False
    while waiting:
        call = waiting.pop()
        if call in seen:
            continue
        seen.add(call)
        op = graph.ops[call]
        joined |= op.kind == "add" and any(graph.meets(source) for source in op.inputs)
        if op.kind == "scaled_dot_product_attention":
            attending = {part.op for part, _ in op.seen["parts"] if isinstance(part, Signal)}
            if seen & set(op.inputs) - attending:  # a mask
                return True
        if joined and op.kind == "softmax":
            return True
        if call == index or (op.kind in SAME and op.product is None):
            waiting += op.consumers
    return False
