"""While a forward pass is recorded: what a call's results are, and what it shows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_init.architecture.calls import Call, Op, Signal, Weight, readable
from lightning_init.architecture.composed import is_softmax, kernel, product_by_sum
from lightning_init.architecture.operations import (
    CONVERSIONS,
    ELEMENTWISE,
    LAYERS,
    LOOKUPS,
    MERGES,
    MOVEMENTS,
    TAKES_INPUT,
)
from lightning_init.architecture.priors import ANSWERED, observed
from lightning_init.architecture.products import (
    Side,
    argument,
    operands,
    owner_of_last,
    product,
    sides,
)
from lightning_init.architecture.rows import output_rows, replay


def derived(name: str, call: Call) -> list[Weight] | None:
    """The results of a call as weights, None if a signal flows out of it.

    Weights come from parameters and constants alone, by other means than layers: a linear layer
    on a learned query makes a signal.
    """
    weights = [known for known in call.before if isinstance(known, Weight)]
    data = [known for known in call.before if isinstance(known, Signal) and not known.constant]
    if not weights or data or name in LAYERS | LOOKUPS or _is_lookup(name, call):
        return None
    shape = call.results[0].shape
    sized = [(g.numel(), known) for g, known in zip(call.given, call.before, strict=True)]
    main = max(
        ((size, -i) for i, (size, known) in enumerate(sized) if isinstance(known, Weight)),
    )
    at = -main[1]
    first, tensor = call.before[at], call.given[at]
    assert isinstance(first, Weight)
    params = tuple(dict.fromkeys((*first.params, *(p for w in weights for p in w.params))))
    plus = first.plus if name in MOVEMENTS | CONVERSIONS else 0.0
    if name == "add" and len(call.given) == 1:
        plus = first.plus + next((float(a) for a in call.args if isinstance(a, (int, float))), 0.0)
    results: list[tuple[Tensor, ...] | None] = [None] * len(call.results)
    if name in CONVERSIONS | ELEMENTWISE and tensor.shape == shape:
        results = [_indices(first, tensor)]
    elif name in MOVEMENTS and len(call.given) == 1:
        indices = _indices(first, tensor)
        moved = [replay(name, call, {id(tensor): index}) for index in indices or ()]
        if moved and all(m is not None for m in moved):
            results = list(zip(*(m for m in moved if m is not None), strict=True))
        elif indices == ():
            results = [() for _ in call.results]
    joined = first.joined or (len(weights) > 1 and name in MERGES)
    return [Weight(params, first.shape, indices=i, plus=plus, joined=joined) for i in results]


def _is_lookup(name: str, call: Call) -> bool:
    """Whether integers choose rows of a parameter: `table[index]`."""
    if name not in ("getitem", "index_select", "gather", "take_along_dim", "index"):
        return False
    if call.given[0].ndim > 2:  # matrices of experts are chosen, not rows
        return False
    return isinstance(call.before[0], Weight) and any(
        not tensor.is_floating_point() and tensor.dtype != torch.bool and tensor.ndim
        for tensor in call.given[1:]
    )


def _indices(weight: Weight, tensor: Tensor) -> tuple[Tensor, ...] | None:
    if not weight.raw:
        return weight.indices
    shape = tuple(tensor.shape)
    return tuple(
        torch.arange(size).view(-1, *[1] * (len(shape) - dim - 1)).expand(shape)
        for dim, size in enumerate(shape)
    )


def observe(ops: list[Op], op: Op, call: Call) -> None:
    """Add to a new entry of the tape what only the call's arguments can tell."""
    name, seen = op.kind, op.seen
    factors = operands(name, call.args, call.kwargs)
    if factors is not None:
        left, right = (call.known(factor) for factor in factors[:2])
        on_left = isinstance(left, Weight) and not isinstance(right, Weight)
        weight, tensor = (left, factors[0]) if on_left else (right, factors[1])
        if isinstance(weight, Signal) and name in TAKES_INPUT:
            weight = kernel(ops, weight, tensor.numel())
            if weight is not None:
                at = next(i for i, given in enumerate(call.given) if given is tensor)
                op.weights = ((at, weight), *op.weights)
        if isinstance(weight, Weight):
            op.product = product(name, call.args, call.kwargs, tensor, on_left)
            op.matrix = next(i for i, given in enumerate(call.given) if given is tensor)
            seen["share"] = tensor.numel() / max(math.prod(weight.shape), 1)
            if op.product is not None:
                output_rows(op, weight, tensor, call.results[0])
        elif isinstance(left, Signal) and isinstance(right, Signal):
            last = owner_of_last(name, call.args)
            pair = tuple(zip((left, right), sides(name, call.args), strict=True))
            seen["meet"] = (pair[1 - last], pair[last])  # the second owns the last dimension
    elif name == "scaled_dot_product_attention":
        parts = [
            argument(call.args, call.kwargs, i, n) for i, n in enumerate(("query", "key", "value"))
        ]
        summed = (Side((-1,), (-2, -1)), Side((-1,), (-2, -1)), Side((-2,), (-2, -1)))
        seen["parts"] = [(call.known(p), side) for p, side in zip(parts, summed, strict=True)]
    elif name in ANSWERED:
        seen.update(observed(name, call.args, call.kwargs))
    elif name in LOOKUPS or _is_lookup(name, call):
        seen["lookup"] = _positions(call)
    elif name in RECURRENT_LAYERS:
        seen["layers"] = next(
            (a for a in call.args[3:] if isinstance(a, int) and a is not True and a is not False), 1
        )
    elif name == "mul" and op.weights and len(call.given) == 2:
        seen["normalized"] = _is_normalized(op, call)
        place = op.weights[0][0]
        seen["shapes"] = (call.given[place].shape, call.given[1 - place].shape)
    elif name == "sum":
        product_by_sum(ops, op, call)
    elif name == "div" and len(op.inputs) == 2 and is_softmax(ops, op):
        op.kind = "softmax"


RECURRENT_LAYERS = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})


def _positions(call: Call) -> dict[str, bool]:
    """Of a lookup: where its indices come from, and whether they count 0, 1, 2, ... or distances."""
    index = next(
        (
            i
            for i, t in enumerate(call.given)
            if not t.is_floating_point() and t.dtype != torch.bool
        ),
        None,
    )
    if index is None:
        return {"given": True, "counting": False}
    known, values = call.before[index], call.given[index]
    given = isinstance(known, Signal) and known.given
    counting = False
    if not given and readable(values) and values.ndim and values.shape[-1] > 1:
        rows = values.flatten(0, -2) if values.ndim > 1 else values[None]
        # Padding at the end of a batch interrupts the counting.
        counting = bool((rows.diff() == 1).float().mean() >= 0.5) or _are_distances(values)
    return {"given": given, "counting": counting}


def _are_distances(values: Tensor) -> bool:
    """Whether a square of numbers tells how far row and column are apart."""
    if values.ndim < 2 or values.shape[-2] < 2 or values.shape[-1] < 2:
        return False
    shifted = bool((values[..., 1:, 1:] == values[..., :-1, :-1]).all())
    return shifted and bool((values != values.flatten()[0]).any())


def _is_normalized(op: Op, call: Call) -> bool:
    """Whether a vector of parameters multiplies a signal of mean square 1 at every position.

    It is (n - 1) / n after a division by the unbiased std, and less where the norm's epsilon
    outweighs the signal, as in padding: at most at half of the positions.
    """
    place = op.weights[0][0]
    vector, x = call.given[place], call.given[1 - place]
    if vector.numel() < 2 or not readable(x) or x.ndim < vector.ndim or not op.signals:
        return False
    shape = (1,) * (x.ndim - vector.ndim) + tuple(vector.shape)
    dims = [dim for dim, size in enumerate(shape) if size > 1]
    squares = x.detach().float().square().mean(dims)
    least = 0.95 * (1 - 1 / vector.numel())
    return bool(squares.numel() and squares.max() < 1.05 and squares.median() > least)
