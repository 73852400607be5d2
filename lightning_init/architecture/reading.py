"""From the calls of one forward pass to what each parameter is: its use, role, fans and parts."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, replace

from lightning_init.architecture.attention import Attention, attention, origins, ranges
from lightning_init.architecture.calls import Op, Weight
from lightning_init.architecture.channels import channels
from lightning_init.architecture.graph import Graph
from lightning_init.architecture.nonlinearity import Nonlinearities
from lightning_init.architecture.operations import ACTIVATIONS, CONVOLUTIONS, NORMS
from lightning_init.architecture.params import BranchInfo, Part, Role, Usage
from lightning_init.architecture.priors import answers, priors
from lightning_init.architecture.residual import Branch, bare_scales, residual_branches
from lightning_init.architecture.roles import role_of

_MOST_PIECES = 8  # a split into more is a split into heads or positions, not into matrices


@dataclass(frozen=True, slots=True)
class Fact:
    """What the calls say of one parameter (see `ParamInfo` for the fields).

    Attributes:
        why: The role in words, `""` where it is obvious.
    """

    role: Role
    usage: Usage
    fan_in: float = math.nan
    fan_out: float = math.nan
    blocks: int = 1
    axis: int = 0
    parts: tuple[Part, ...] = ()
    identity: float = 1.0
    prior: tuple[float, ...] = ()
    answer: tuple[float, ...] = ()
    why: str = ""


@dataclass(frozen=True, slots=True)
class Reading:
    """What one forward pass showed of a model."""

    facts: dict[int, Fact]
    branches: tuple[BranchInfo, ...]
    traits: frozenset[str]
    channels: dict[int, tuple[int, ...]]


def read(ops: list[Op]) -> Reading:
    """Read roles, fans and uses off the calls of one forward pass.

    Args:
        ops: From `trace.trace`.

    Returns:
        Facts by `id(parameter)`, for the parameters that were used.
    """
    graph = Graph(ops)
    branches = residual_branches(graph)
    parts_in_attention = attention(graph)
    functions = Nonlinearities(graph, frozenset(call for b in branches for call in b.sums))
    uses: dict[int, list[tuple[int, int, Weight]]] = defaultdict(list)
    for index, op in enumerate(ops):
        for place, weight in () if "computes" in op.seen else op.weights:
            for parameter in weight.params:
                uses[parameter].append((index, place, weight))
    scales = bare_scales(graph) | {call for branch in branches for call in branch.after}
    pieces = _pieces(graph)
    facts = {}
    for parameter, used in uses.items():
        role, used = _role(graph, scales, parameter, used)
        usage = _usage(graph, branches, functions, parameter, used)
        facts[parameter] = _fact(graph, role, usage, parts_in_attention, pieces, parameter, used[0])
    for bias, values in priors(graph).items():
        facts[bias] = replace(facts[bias], prior=values)
    for bias, values in answers(graph).items():
        facts[bias] = replace(facts[bias], answer=values)
    traits = _traits(graph, functions, bool(parts_in_attention))
    described = tuple(BranchInfo(b.layers, b.stream, b.attends, b.crosses) for b in branches)
    return Reading(facts, described, traits, channels(graph))


def _role(
    graph: Graph, scales: set[int], parameter: int, used: list[tuple[int, int, Weight]]
) -> tuple[tuple[Role, str], list[tuple[int, int, Weight]]]:
    """The most telling of a parameter's roles and why, and its uses, that one first."""
    roles = [
        role_of(graph, *use, main=_is_main(graph, use, parameter), scales=use[0] in scales)
        for use in used
    ]
    at = min(range(len(roles)), key=lambda i: _RANK.index(roles[i][0]))
    return roles[at], [used[at], *used[:at], *used[at + 1 :]]


def _fact(
    graph: Graph,
    seen: tuple[Role, str],
    usage: Usage,
    in_attention: dict[int, Attention],
    pieces: dict[int, tuple[Part, ...]],
    parameter: int,
    used: tuple[int, int, Weight],
) -> Fact:
    role, why = seen
    index, place, weight = used
    op = graph.ops[index]
    attends = _attends(in_attention, op, parameter)
    if role not in (Role.WEIGHT, Role.BIAS):
        attends = None
    if attends is not None:
        usage = replace(usage, attention=attends.part, num_heads=attends.heads)
    fact = Fact(role, usage, why=why)
    if role is Role.NORM_SCALE:
        fact = replace(fact, identity=1.0 - weight.plus)
    if op.product is not None and place == op.matrix and weight.params[0] == parameter:
        found = op.product
        share = op.seen["share"]  # of the parameter in the operand: less of stacked experts
        whole = share < 1 and (len(weight.shape) == 2 or op.kind in CONVOLUTIONS)
        blocks = max(1, found.blocks if whole else round(found.blocks / share))
        fan_out = found.fan_out
        if attends is not None and op.kind not in CONVOLUTIONS:  # (heads, width, head): one matrix
            blocks, fan_out = 1, fan_out * blocks
        axis = op.seen.get("axis", found.axis or 0)
        fact = replace(fact, fan_in=found.fan_in, fan_out=fan_out, blocks=blocks, axis=axis)
    parts = attends.rows if attends is not None and "grid" not in op.seen else ()
    matrix = _matrix(op)
    if not parts and not usage.is_output and not usage.attention:
        parts = pieces.get(parameter, pieces.get(matrix, ()) if place != op.matrix else ())
    if parts:
        size = sum(part.size for part in parts) / len(parts)
        row = fact.fan_out / op.seen["numbers"].numel() if "numbers" in op.seen else 1.0
        fact = replace(fact, parts=parts, blocks=len(parts), fan_out=size * row)
    if role in (Role.EMBEDDING, Role.POSITION):
        fact = replace(
            fact, fan_in=1.0, fan_out=float(weight.shape[-1]), blocks=1, axis=0, parts=()
        )
    return fact if role in _SHAPED else replace(fact, fan_out=math.nan)


def _is_main(graph: Graph, use: tuple[int, int, Weight], parameter: int) -> bool:
    index, _, weight = use
    return weight.params[0] == parameter or (weight.joined and not graph.ops[index].is_weight_layer)


_SHAPED = (Role.WEIGHT, Role.RECURRENT, Role.EMBEDDING, Role.POSITION)
_RANK = (
    *(Role.EMBEDDING, Role.WEIGHT, Role.RECURRENT, Role.NORM_SCALE, Role.NORM_SHIFT),
    *(Role.BRANCH_SCALE, Role.BIAS, Role.POSITION, Role.OTHER),
)


def _matrix(op: Op) -> int:
    return next((weight.params[0] for at, weight in op.weights if at == op.matrix), -1)


def _attends(found: dict[int, Attention], op: Op, parameter: int) -> Attention | None:
    """A matrix's part in attention; a bias has that of its matrix."""
    if parameter in found:
        return found[parameter]
    return found.get(_matrix(op)) if op.product is not None else None


def _usage(
    graph: Graph,
    branches: list[Branch],
    functions: Nonlinearities,
    parameter: int,
    used: list[tuple[int, int, Weight]],
) -> Usage:
    index, _, _ = used[0]
    op, calls = graph.ops[index], {index for index, _, _ in used}
    depth, last_layer = graph.depth[index], True
    if op.is_recurrent and op.seen.get("layers", 1) > 1:
        layers = op.seen["layers"]
        mine = op.params.index(parameter) * layers // len(op.params)
        depth, last_layer = depth - layers + mine + 1, mine == layers - 1
    branch = next(
        (
            number
            for number, found in enumerate(branches)
            if calls & {*found.ends, *found.after} and last_layer
        ),
        -1,
    )
    layers = calls if op.is_weight_layer else _feeding(graph, index)
    within = next((n for n, found in enumerate(branches) if layers & found.inside), -1)
    share = sum(graph.ops[index].seen.get("share", 1.0) for index in calls)
    return Usage(
        depth=depth,
        nonlinearity=functions.after(index),
        ends_branch=branch >= 0,
        branch=branch,
        branch_layers=branches[branch].layers if branch >= 0 else 0,
        num_branches=len(branches),
        is_output=any(graph.is_output(index) for index in calls) and last_layer,
        normalized=op.is_weight_layer and all(functions.feeds_norm(call) for call in calls),
        calls=max(1, round(share)),
        within=max(within, branch),
        gain=functions.gain(index) if op.is_weight_layer else None,
        recurs=op.is_weight_layer and any(graph.past(c) >> min(calls) & 1 for c in calls - {index}),
    )


def _feeding(graph: Graph, index: int) -> set[int]:
    """The weight layer whose result a norm, bias or scale takes, as a call."""
    while not graph.ops[index].is_weight_layer:
        inputs = graph.signals(index)
        if len(inputs) != 1:
            return set()
        index = inputs[0]
    return {index}


def _pieces(graph: Graph) -> dict[int, tuple[Part, ...]]:
    """Matrices whose result is split at once into parts with rows of their own: gates, x|z."""
    found: dict[int, tuple[Part, ...]] = {}
    for op in graph.ops:
        listed = [origins(graph, piece) for piece in op.seen.get("pieces", ())]
        if not 2 <= len(listed) <= _MOST_PIECES or any(len(layers) != 1 for layers in listed):
            continue
        layer = listed[0][0][0]
        if any(other is not layer or len(rows) < 2 for ((other, rows),) in listed):
            continue
        numbers, total = [rows for ((_, rows),) in listed], layer.seen["rows"]
        if "grid" in layer.seen:  # the same parts in each of several matrices
            total = layer.seen["numbers"].shape[-1]
            numbers = [sorted({row % total for row in rows}) for rows in numbers]
        if sorted(row for rows in numbers for row in rows) != list(range(total)):
            continue
        parts = tuple(Part(str(i), ranges(rows)) for i, rows in enumerate(numbers))
        found.setdefault(_matrix(layer), parts)
    return found


def _traits(graph: Graph, functions: Nonlinearities, attends: bool) -> frozenset[str]:
    """Facts of the whole model."""
    found = set(functions.written)
    for index, op in enumerate(graph.ops):
        if op.kind in ACTIVATIONS and index not in functions.inside:
            found |= {ACTIVATIONS[op.kind]} if graph.is_learned(index) else set()
        found |= {"norm"} if op.kind in NORMS or op.seen.get("normalized") else set()
        found |= {"convolution"} if op.kind in CONVOLUTIONS and op.weights else set()
        found |= {"recurrence"} if op.is_recurrent else set()
    return frozenset(found | ({"attention"} if attends else set()))
