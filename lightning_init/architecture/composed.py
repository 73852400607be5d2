"""Layers that are put together from smaller calls: kernels that are computed, sums of products."""

from __future__ import annotations

import math

from lightning_init.architecture.calls import Call, Op, Signal, Weight
from lightning_init.architecture.operations import ARITHMETIC, CONVERSIONS, MOVEMENTS, NORMS
from lightning_init.architecture.products import Product, argument

_SUMMING = (
    MOVEMENTS | CONVERSIONS | {"sum", "index_add", "scatter_add", "add", "clamp", "clamp_min"}
)
_ROOTS = frozenset({"rsqrt", "sqrt", "pow"})
_DEVIATION = _ROOTS | CONVERSIONS | {"add", "clamp", "clamp_min", "reciprocal", "rtruediv"}
_COMPUTING = (
    ARITHMETIC | CONVERSIONS | MOVEMENTS | NORMS | {"sum", "softmax", "normalize", "learned"}
)


def kernel(ops: list[Op], signal: Signal, size: int) -> Weight | None:
    """The parameter that a computed kernel mainly consists of: standardized, modulated, mixed.

    Args:
        ops: The calls so far; those that compute the kernel are marked.
        signal: The kernel.
        size: Its number of elements.
    """
    found: list[tuple[int, Weight]] = []
    waiting, seen = [signal.op], set()
    while waiting:
        index = waiting.pop()
        op = ops[index]
        if index in seen or op.product is not None or op.kind not in _COMPUTING:
            continue
        seen.add(index)
        found += [(math.prod(weight.shape), weight) for _, weight in op.weights]
        waiting += op.inputs
    matrices = [(n, weight) for n, weight in found if sum(d > 1 for d in weight.shape) > 1]
    if not matrices:
        return None
    numel, main = max(matrices, key=lambda pair: pair[0])
    if max(numel, size) % min(numel, size):
        return None
    for index in seen:
        ops[index].seen["computes"] = True
    params = (*main.params, *(p for _, weight in found for p in weight.params))
    return Weight(tuple(dict.fromkeys(params)), main.shape, indices=None)


def is_softmax(ops: list[Op], op: Op) -> bool:
    """Whether a division is the end of a softmax: exp(x) over its own sum."""
    above, below = op.inputs
    if ops[above].kind != "exp":
        return False
    waiting, seen = [below], set()
    while waiting:
        index = waiting.pop()
        if index == above:
            return True
        if index not in seen and ops[index].kind in _SUMMING:
            seen.add(index)
            waiting += ops[index].inputs
    return False


def is_written_norm(ops: list[Op], scale: Op) -> bool:
    """Whether what a vector scales was divided by its own deviation along that vector.

    The values tell as well, unless they are so small that the norm's epsilon outweighs them.
    """
    if not scale.inputs:
        return False
    index = scale.inputs[0]
    while ops[index].kind in CONVERSIONS and ops[index].inputs:
        index = ops[index].inputs[0]
    op = ops[index]
    if op.kind not in ("mul", "div") or len(op.inputs) != 2 or op.weights:
        return False
    vector, x = (tuple(shape) for shape in scale.seen["shapes"])
    along = [d for d in range(-len(vector), 0) if vector[d] > 1]
    for whole, deviation in (op.inputs, op.inputs[::-1]):
        y, bent = ops[deviation].out, False
        if y is None or y.ndim != len(x) or any(y.shape[d] > 1 for d in along) or not along:
            continue
        while ops[deviation].kind in _DEVIATION and ops[deviation].inputs:
            bent |= ops[deviation].kind in _ROOTS
            deviation = ops[deviation].inputs[0]
        bent |= ops[deviation].kind == "std"
        if bent and ops[deviation].kind in ("mean", "var", "std", "var_mean"):
            sources = {
                *ops[deviation].inputs,
                *(s for i in ops[deviation].inputs for s in ops[i].inputs),
            }
            return bool(sources & {whole, *ops[whole].inputs})
    return False


def product_by_sum(ops: list[Op], op: Op, call: Call) -> None:
    """Read `(x * w).sum(-1)` as the product that it is; the multiplication hands over its weight."""
    source = call.before[0]
    if not isinstance(source, Signal) or ops[source.op].kind != "mul":
        return
    mul, (x, ndim) = ops[source.op], (call.given[0], call.given[0].ndim)
    dims = argument(call.args, call.kwargs, 1, "dim")
    listed = [dims] if isinstance(dims, int) else list(dims) if dims is not None else []
    summed = {dim % ndim for dim in listed if isinstance(dim, int)}
    if ndim - 1 not in summed or len(mul.weights) != 1 or "shapes" not in mul.seen:
        return
    weight, other = ((1,) * (ndim - len(s)) + tuple(s) for s in mul.seen["shapes"])
    if any(weight[dim] == 1 for dim in summed) or tuple(x.shape)[-1] == 1:
        return
    rest = [dim for dim in range(ndim) if dim not in summed and weight[dim] > 1]
    stacked = math.prod(weight[dim] for dim in rest if other[dim] > 1)
    op.product = Product(
        math.prod(weight[dim] for dim in summed),
        math.prod(weight[dim] for dim in rest if other[dim] == 1),
        stacked if mul.weights[0][1].shape[0] == stacked else 1,
    )
    op.weights, op.matrix, mul.weights = mul.weights, mul.weights[0][0], ()
    op.seen["share"] = 1.0
