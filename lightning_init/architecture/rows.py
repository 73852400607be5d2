"""Numbers of output rows: which rows of a layer the elements of a signal come from."""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import Any

import torch
from torch import Tensor

from lightning_init.architecture.calls import Call, Op, Signal, Weight
from lightning_init.architecture.operations import (
    ADDITIONS,
    MOVEMENTS,
    SAME_SHAPE,
    SPLITS,
    kind,
)
from lightning_init.architecture.products import argument


def rows_of(op: Op, call: Call, starts: list[int]) -> list[Tensor | None]:
    """The row numbers that each result of a call carries on; `starts` has each layer's first."""
    unknown: list[Tensor | None] = [None] * len(call.results)
    if op.product is not None:
        if "numbers" not in op.seen:
            return unknown
        return [(op.seen["numbers"] + op.base).expand(call.results[0].shape)]
    carried = [
        (given, known.rows)
        for given, known in zip(call.given, call.before, strict=True)
        if isinstance(known, Signal) and known.rows is not None
    ]
    if not carried:
        return unknown
    if op.kind == "glu":
        dim = argument(call.args, call.kwargs, 1, "dim")
        op.seen["pieces"] = list(carried[0][1].chunk(2, -1 if dim is None else dim))
    if op.kind in MOVEMENTS:
        found = replay(op.kind, call, {id(given): rows for given, rows in carried})
        if found is None:
            return unknown
        if op.kind in SPLITS:
            op.seen["pieces"] = found
        return list(found)
    if op.kind in ("setitem", "copy"):
        return [_written(call, carried)]
    if op.kind in ("view_as_complex", "view_as_real"):  # a pair of neighbours is one number
        one = carried[0][1]
        return [one[..., 0] if op.kind == "view_as_complex" else torch.stack((one, one + 1), -1)]
    shape = call.results[0].shape
    if op.kind in SAME_SHAPE and len(call.results) == 1:
        rows = [rows for given, rows in carried if given.shape == shape]
        flowing = [s for s in op.signals if not s.source]
        if rows and (op.kind not in ADDITIONS or _same_layer(rows, len(flowing), starts)):
            if op.kind in ADDITIONS and len(rows) > 1:
                op.seen["twins"] = once(*rows[:2])
            return [rows[0]]
    return unknown


def once(*rows: Tensor) -> tuple[Tensor, ...]:
    """The same numbers, without the dimensions along which none of the tensors changes."""
    for dim in range(rows[0].ndim):
        if rows[0].shape[dim] > 1:
            first = tuple(one.narrow(dim, 0, 1) for one in rows)
            pairs = zip(rows, first, strict=True)
            if all(one.stride(dim) == 0 or bool((one == start).all()) for one, start in pairs):
                rows = first
    return rows


def _written(call: Call, carried: list[tuple[Tensor, Tensor]]) -> Tensor | None:
    """The rows of a tensor into which another was written."""
    rows = {id(given): numbers for given, numbers in carried}
    target, value = call.args[0], call.args[-1]
    unknown = torch.full(target.shape, -1)
    written = rows.get(id(target), unknown).clone()
    source = rows.get(id(value), torch.tensor(-1))
    try:
        written[... if kind(call.function) == "copy" else call.args[1]] = source
    except Exception:
        return None
    return written


def _same_layer(rows: list[Tensor], signals: int, starts: list[int]) -> bool:
    """Whether an addition joins signals of one layer (rotary embedding), not of two."""
    if signals == 1:
        return True
    ends = [int(end) for one in rows for end in once(one)[0].aminmax()]
    return len(rows) == signals and len({bisect_right(starts, end) for end in ends}) == 1


def replay(name: str, call: Call, stand_ins: dict[int, Tensor]) -> list[Tensor] | None:
    """The same rearrangement of other tensors of the same shapes, one per result."""

    def swap(value: Any) -> Any:
        if isinstance(value, Tensor):
            if id(value) in stand_ins:
                return stand_ins[id(value)]
            floating = value.is_floating_point() or value.is_complex()
            return torch.full((), -1).expand(value.shape) if floating else value.cpu()
        if isinstance(value, (list, tuple)):
            return type(value)(swap(item) for item in value)
        return value

    function = call.function
    if name in ("view", "_unsafe_view"):  # numbers are expanded, and a view of them may not exist
        function = torch.Tensor.reshape
    try:
        if name == "getitem":
            out: Any = swap(call.args[0])[swap(call.args[1])]
        else:
            out = function(*swap(call.args), **{key: swap(v) for key, v in call.kwargs.items()})
    except Exception:
        return None  # rows that cannot be followed are unknown, nothing else
    found = [out] if isinstance(out, Tensor) else list(out)
    fits = len(found) == len(call.results) and all(
        one.shape == two.shape for one, two in zip(found, call.results, strict=True)
    )
    return found if fits else None


def output_rows(op: Op, weight: Weight, tensor: Tensor, out: Tensor) -> None:
    """Which rows of the parameter make which features of the result."""
    assert op.product is not None
    axis, feature, grid = op.product.axis, op.product.feature, op.product.grid
    if grid and weight.raw:
        shape = [1] * -min(at for _, at in grid)
        for own, at in grid:
            shape[at] = tensor.shape[own]
        count = math.prod(shape)
        op.seen.update(numbers=torch.arange(count).view(shape), rows=count, grid=True)
        return
    if axis is None or out.ndim < -feature or out.shape[feature] != tensor.shape[axis]:
        return
    count = tensor.shape[axis]
    after = [1] * (-feature - 1)
    if weight.raw:
        op.seen.update(axis=axis, numbers=torch.arange(count).view(-1, *after))
        op.seen["rows"] = weight.shape[axis]
        return
    if not weight.indices or not tensor.numel():
        return
    lines = [
        index.movedim(axis, 0).flatten(1)[:, 0] if index.ndim > 1 else index
        for index in weight.indices
    ]
    varying = [dim for dim, line in enumerate(lines) if count > 1 and int(line[0]) != int(line[-1])]
    if len(varying) == 1:
        dim = varying[0]
        op.seen.update(axis=dim, numbers=lines[dim].view(-1, *after), rows=weight.shape[dim])
