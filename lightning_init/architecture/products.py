"""What a multiplication by a parameter sums up: fans, blocks and output rows, from the call itself.

`fan_in` counts the products summed into one output element, `fan_out` those summed into one
element of the input's gradient; both are read off the shapes that meet in the call, so they are
right for any layout, `x @ W`, `W @ x`, einsum and stacked experts included.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_init.architecture.operations import CONVOLUTIONS, TRANSPOSED


@dataclass(frozen=True, slots=True)
class Product:
    """One multiplication by a matrix or kernel.

    Attributes:
        fan_in: Products summed into one output element.
        fan_out: Products summed into one element of the input's gradient.
        blocks: Matrices that the operand stacks (groups, experts).
        axis: The operand's dimension of output features, None if there is not exactly one.
        feature: The output's dimension of the same features.
        grid: Where features lie in several dimensions, as (head, width of a head): all pairs of
            the operand's dimension and the output's; `()` otherwise.
    """

    fan_in: float
    fan_out: float
    blocks: int = 1
    axis: int | None = None
    feature: int = -1
    grid: tuple[tuple[int, int], ...] = ()


def argument(args: tuple[Any, ...], kwargs: Mapping[str, Any], at: int, name: str) -> Any:
    """An argument of a call by position or name, None if it was not given."""
    return args[at] if len(args) > at else kwargs.get(name)


def operands(
    kind: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Any, Any, Any] | None:
    """The two factors of a product, left and right, and what is added; None for other calls."""
    match kind:
        case (
            "linear" | "mv" | "mm" | "bmm" | "matmul" | "inner" | "dot" | "tensordot" | "grouped_mm"
        ):
            names = ("weight", "other", "mat2", "mat_b", "vec", "tensor")
            right = next((kwargs[name] for name in names if name in kwargs), None)
            bias = argument(args, kwargs, 2, "bias") if kind == "linear" else None
            left = args[0] if args else kwargs.get("input")
            return left, args[1] if len(args) > 1 else right, bias
        case "rmatmul":
            return args[1], args[0], None
        case "addmm" | "baddbmm" | "addbmm":
            one, two = ("mat1", "mat2") if kind == "addmm" else ("batch1", "batch2")
            left = argument(args, kwargs, 1, one)
            return left, argument(args, kwargs, 2, two), argument(args, kwargs, 0, "input")
        case "einsum":
            listed = args[1] if len(args) == 2 and isinstance(args[1], (list, tuple)) else args[1:]
            return (listed[0], listed[1], None) if len(listed) == 2 else None
    at = 2 if kind == "bilinear" else 1
    if kind in CONVOLUTIONS or kind == "bilinear":
        weight, bias = argument(args, kwargs, at, "weight"), argument(args, kwargs, at + 1, "bias")
        return args[0], weight, bias
    return None


def product(
    kind: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], weight: Tensor, left: bool
) -> Product | None:
    """The facts of a product with a weight on its left or right side.

    Example:
        >>> import torch
        >>> x, w = torch.ones(2, 3), torch.ones(3, 5)
        >>> product("matmul", (x, w), {}, w, left=False)
        Product(fan_in=3, fan_out=5, blocks=1, axis=1, feature=-1, grid=())
    """
    shape = tuple(weight.shape)
    if kind in CONVOLUTIONS:
        return _convolution(kind, args, kwargs, shape)
    if kind == "bilinear":  # the gradient of the first input
        return Product(shape[1] * shape[2], shape[0] * shape[2], axis=0)
    if kind == "linear":
        rows = shape[0] if len(shape) == 2 else 1
        return Product(shape[-1], rows, axis=0 if len(shape) == 2 else None)
    if kind == "einsum":
        return _einsum(args[0], left, shape)
    if kind == "tensordot":
        dims = argument(args, kwargs, 2, "dims")
        if not isinstance(dims, int):
            own = (dims[0] if left else dims[1]) if isinstance(dims, (list, tuple)) else []
            summed = math.prod(shape[dim] for dim in ([own] if isinstance(own, int) else own))
        else:
            summed = math.prod(shape[-dims:] if left else shape[:dims])
        return Product(summed, weight.numel() // max(summed, 1))
    if len(shape) == 1:
        return Product(shape[0], 1)
    into, out = (-1, -2) if left else (-2, -1)
    if kind == "inner":
        into, out = -1, -2
    # W @ x puts the features second to last, or last where x is a vector.
    other = args[1] if left and len(args) > 1 else None
    vector = isinstance(other, Tensor) and other.ndim == 1
    feature = (-1 if vector else -2) if left else -1
    blocks = math.prod(shape[:-2])
    return Product(shape[into], shape[out], blocks, len(shape) + out, feature)


def _convolution(
    kind: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], shape: tuple[int, ...]
) -> Product:
    stride = argument(args, kwargs, 3, "stride") or 1
    groups = argument(args, kwargs, 6, "groups") or 1
    dims = len(shape) - 2
    steps = [stride] * dims if isinstance(stride, int) else list(stride)
    step = math.prod(steps * dims if len(steps) == 1 else steps)
    field = math.prod(shape[2:])
    into: float
    back: float
    if kind in TRANSPOSED:
        into, back = shape[0] // groups * field / step, shape[1] * field
        axis = 1 if groups == 1 else None
    else:
        into, back = shape[1] * field, shape[0] // groups * field / step
        axis = 0
    return Product(into, back, groups, axis, -dims - 1)


def _einsum(equation: object, left: bool, shape: tuple[int, ...]) -> Product | None:
    if not isinstance(equation, str):
        return None
    terms, _, out = equation.replace(" ", "").partition("->")
    one, two = terms.split(",")
    if not out and "->" not in equation:
        both = (one + two).replace(".", "")
        out = ("..." if "..." in terms else "") + "".join(
            sorted(letter for letter in set(both) if both.count(letter) == 1)
        )
    mine, other = (one, two) if left else (two, one)
    if "." in mine:
        return None
    sizes = dict(zip(mine, shape, strict=True))
    summed = [letter for letter in sizes if letter not in out]
    features = [letter for letter in sizes if letter in out and letter not in other]
    stacked = [letter for letter in sizes if letter in out and letter in other]
    if len(features) > 1 and summed:  # (expert, in, out): each expert is a matrix
        first = min(mine.index(letter) for letter in summed)
        stacked += [letter for letter in features if mine.index(letter) < first]
        features = [letter for letter in features if letter not in stacked]
    axis, feature = None, -1
    if len(features) == 1:
        axis = mine.index(features[0])
        feature = out.index(features[0]) - len(out)  # an ellipsis stands before or not at all
        if "." in out[out.index(features[0]) :]:
            axis = None
    own = [letter for letter in sizes if letter in out and letter not in other]
    grid = tuple((mine.index(letter), out.index(letter) - len(out)) for letter in own)
    return Product(
        math.prod(sizes[letter] for letter in summed),
        math.prod(sizes[letter] for letter in features),
        math.prod(sizes[letter] for letter in stacked),
        axis,
        feature,
        grid if len(own) > 1 and "." not in out[min(out.index(letter) for letter in own) :] else (),
    )


@dataclass(frozen=True, slots=True)
class Side:
    """A signal that meets another in a product.

    Attributes:
        summed: Its dimensions that the product sums over.
        matrix: Its dimensions that are not shared with the result and the other signal: those of
            one matrix of a batch.
    """

    summed: tuple[int, ...]
    matrix: tuple[int, ...]


def sides(kind: str, args: tuple[Any, ...]) -> tuple[Side, Side]:
    """How the two signals of a product meet.

    Example:
        >>> sides("einsum", ("bhid,bhjd->bhij",))[1]
        Side(summed=(3,), matrix=(2, 3))
    """
    both = (-2, -1)
    if kind != "einsum":
        return Side((-1,), both), Side((-1,) if kind in ("linear", "inner") else (-2,), both)
    terms, _, out = str(args[0]).replace(" ", "").partition("->")
    one, two = terms.replace("...", ".").split(",")

    def side(mine: str, other: str) -> Side:
        ends = mine.index(".") if "." in mine else len(mine)
        at = {letter: i if i < ends else i - len(mine) for i, letter in enumerate(mine)}
        at.pop(".", None)
        return Side(
            tuple(i for letter, i in at.items() if letter in other and letter not in out),
            tuple(i for letter, i in at.items() if not (letter in other and letter in out)),
        )

    return side(one, two), side(two, one)


def owner_of_last(kind: str, args: tuple[Any, ...]) -> int:
    """Which factor the last dimension of a product comes from: 0 left, 1 right."""
    if kind != "einsum":
        return 1
    terms, _, out = str(args[0]).replace(" ", "").partition("->")
    one, two = terms.split(",")
    return 0 if out and out[-1] in one and out[-1] not in two else 1
