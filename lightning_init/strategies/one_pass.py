"""Calibrating every layer in one forward pass, by parameter.

The output of a layer is linear in its weight. Scaled together inside the pass, weight and output
agree, and layers that run later see what they will see from then on: no layer is run twice. A mode
sees the call and the very parameter, also in functional code and inside `nn.MultiheadAttention`;
a weight that is transposed, split, masked or cast on its way is followed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lightning_init.architecture.calls import Call, readable, tensors
from lightning_init.architecture.opened import OPENED
from lightning_init.architecture.operations import (
    CONVERSIONS,
    CONVOLUTIONS,
    MATRIX,
    MOVEMENTS,
    PRODUCTS,
    Function,
    kind,
)
from lightning_init.architecture.params import Part
from lightning_init.architecture.products import operands, product
from lightning_init.architecture.rows import replay
from lightning_init.strategies.dropout import without_dropout

_FOLLOWED = MOVEMENTS | CONVERSIONS | {"mul", "div", "neg", "masked_fill"}  # linear in a weight
_MULTIPLIES = MATRIX | PRODUCTS


@dataclass(frozen=True, eq=False, slots=True)
class Target:
    """A weight to be calibrated.

    Attributes:
        name: Its name.
        tensor: The parameter.
        axis: The dimension along which its parts are stacked.
        parts: The matrices that share it, each calibrated by itself.
        goal: The std that its output shall have.
    """

    name: str
    tensor: Tensor
    axis: int = 0
    parts: tuple[Part, ...] = ()
    goal: float = 1.0


class Known(NamedTuple):
    """A tensor that stands for a weight."""

    tensor: Tensor  # kept alive: an id is only unique while its tensor lives
    target: Target
    # For each dimension of the weight the index that an element comes from; None if the tensor is
    # the weight itself, () if unknown.
    labels: tuple[Tensor, ...] | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Layer:
    """A call that multiplies by a weight, while it runs.

    Attributes:
        target: The weight.
        operand: The weight as it was multiplied by: a view, a copy, or the parameter itself.
        axis: The operand's dimension of output features, None if there is not exactly one.
        product: The result without what is added to it.
        feature: The product's dimension of output features.
        dim: The parameter's dimension of the same features.
        rows: For each output feature its index along `dim`, None if that is unknown.
        bias: What was passed to be added, None if nothing was.
        added: The same as it is added to the product, None if it is 0.
    """

    target: Target
    operand: Tensor
    axis: int | None
    product: Tensor
    feature: int
    dim: int
    rows: Tensor | None
    bias: Tensor | None
    added: Tensor | None = None

    def blocks(self) -> Iterator[tuple[object, Tensor | None]]:
        """What is calibrated by itself: a key, and its output features, None for all of them."""
        own, rows = self.target, self.rows
        if own.parts and rows is not None and self.dim == own.axis:
            for number, part in enumerate(own.parts):
                inside = torch.zeros_like(rows, dtype=torch.bool)
                for start, stop in part.rows:
                    inside |= (rows >= start) & (rows < stop)
                if bool(inside.any()):
                    yield (id(own.tensor), number), inside.nonzero().flatten()
            return
        piece = self.operand.numel() < own.tensor.numel() and lies_in(self.operand, own.tensor)
        at = (self.operand.storage_offset(), tuple(self.operand.shape)) if piece else ()
        yield (id(own.tensor), at), None

    def of(self, features: Tensor | None) -> Tensor:
        """The product's entries of some output features."""
        return self._of(self.product, features)

    def whole(self, features: Tensor | None) -> Tensor:
        """The same of the result, with what is added."""
        return self._of(self.product if self.added is None else self.product + self.added, features)

    def _of(self, values: Tensor, features: Tensor | None) -> Tensor:
        if features is None or len(features) == values.shape[self.feature]:
            return values
        first, count = int(features[0]), len(features)
        if int(features[-1]) - first + 1 == count:
            return values.narrow(self.feature, first, count)
        return values.index_select(self.feature, features.to(values.device))


class Change(NamedTuple):
    """What becomes of a layer.

    Attributes:
        factor: Of weight and product: a number, or one per output feature.
        bias: The new bias, one number per output feature; None leaves it.
    """

    factor: Tensor
    bias: Tensor | None = None


Visit = Callable[[Layer], Change | None]


class OnePass(TorchFunctionMode):
    """Shows each multiplication by a listed weight, and changes it as told; dropout is off.

    Args:
        targets: The weights.
        visit: Called with each such layer while it runs. What it returns is done at once, to the
            weight, the bias and the result.
        writes: Whether anything is changed; otherwise the layers are only shown.

    Example:
        >>> layer, x = nn.Linear(2, 3, bias=False), torch.ones(4, 2)
        >>> double = lambda seen: Change(torch.tensor(2.0))
        >>> with OnePass([Target("weight", layer.weight)], double), torch.no_grad():
        ...     out = layer(x)
        >>> torch.equal(out, layer(x))
        True
    """

    def __init__(self, targets: Iterable[Target], visit: Visit, *, writes: bool = True) -> None:
        super().__init__()
        self.visit, self.writes = visit, writes
        self._known = {id(target.tensor): Known(target.tensor, target) for target in targets}

    def __torch_function__(
        self,
        func: Function,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run the call, calibrate the layer."""
        kwargs, name = kwargs or {}, kind(func)
        if func in OPENED:
            with self:
                return OPENED[func](*args, **kwargs)
        if name == "dropout":
            return args[0] if args else kwargs["input"]
        if name in _MULTIPLIES:
            return self._multiply(func, name, args, kwargs)
        args, kwargs = without_dropout(func, name, args, kwargs)
        out = func(*args, **kwargs)
        if name in _FOLLOWED:
            at = 1 if name == "mul" and len(args) > 1 and id(args[1]) in self._known else 0
            if len(args) > at and id(args[at]) in self._known:
                self._follow(Call(func, args, kwargs, [], [], list(tensors(out))), args[at])
        return out

    def _multiply(
        self, func: Function, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        factors = operands(name, args, kwargs)
        sides = () if factors is None else ((factors[1], False), (factors[0], True))
        side = next((each for each in sides if id(each[0]) in self._known), None)
        if side is None or factors is None:
            return func(*args, **kwargs)
        grad = torch.is_grad_enabled()
        with torch.set_grad_enabled(grad and not self.writes):
            out = func(*args, **kwargs)
        if isinstance(out, Tensor) and readable(out):
            with torch.no_grad():
                facts = product(name, args, kwargs, *side)
                axis, feature = (None, -1) if facts is None else (facts.axis, facts.feature)
                bias = factors[2] if isinstance(factors[2], Tensor) else None
                added = bias
                if bias is not None and name in CONVOLUTIONS:
                    added = bias.reshape(-1, *[1] * (side[0].ndim - 2))
                layer = self._layer(side[0], axis, feature, out.detach(), bias, added)
                change = self.visit(layer)
                if change is not None and self.writes:
                    out = _done(layer, change, added)
        # A step that differentiates needs the product with the weight as it is now.
        return func(*args, **kwargs) if grad and self.writes else out

    def _layer(
        self,
        operand: Tensor,
        axis: int | None,
        feature: int,
        out: Tensor,
        bias: Tensor | None,
        added: Tensor | None,
    ) -> Layer:
        _, target, labels = self._known[id(operand)]
        added = added if added is not None and bool(added.any()) else None
        alone = out if added is None else out - added
        dim, rows = target.axis, None
        if axis is not None and out.shape[feature] != operand.shape[axis]:
            axis = None  # grouped: features are not along one dimension
        if axis is not None and labels is None:
            dim, rows = axis, torch.arange(operand.shape[axis])
        elif axis is not None and labels:
            dim, rows = _along(labels, axis, target.axis)
        return Layer(target, operand, axis, alone, feature, dim, rows, bias, added)

    def _follow(self, call: Call, operand: Tensor) -> None:
        """Know a weight again that was transposed, split, masked or cast."""
        tensor, target, labels = self._known[id(operand)]
        if sum(id(each) in self._known for each in tensors((call.args, call.kwargs))) > 1:
            return  # of two weights
        if labels is None:
            labels = tuple(
                torch.arange(size).view(-1, *[1] * (tensor.ndim - at - 1)).expand(tensor.shape)
                for at, size in enumerate(tensor.shape)
            )
        moved: list[tuple[Tensor, ...]] = [()] * len(call.results)
        if kind(call.function) in MOVEMENTS:
            found = [replay(kind(call.function), call, {id(tensor): each}) for each in labels]
            if found and all(each is not None for each in found):
                moved = list(zip(*(each for each in found if each is not None), strict=True))
        elif all(result.shape == tensor.shape for result in call.results):
            moved = [labels for _ in call.results]
        for result, own in zip(call.results, moved, strict=True):
            self._known[id(result)] = Known(result, target, own)


def lies_in(view: Tensor, tensor: Tensor) -> bool:
    """Whether a tensor lies in the memory of another one.

    Example:
        >>> whole = torch.zeros(6)
        >>> lies_in(whole[2:], whole), lies_in(whole.clone(), whole)
        (True, False)
    """
    offset = view.data_ptr() - tensor.data_ptr()
    return 0 <= offset < max(1, tensor.numel() * tensor.element_size())


def _along(labels: tuple[Tensor, ...], axis: int, preferred: int) -> tuple[int, Tensor | None]:
    """The dimension of a parameter that lies along one of a view of it, and its indices there."""
    for dim in sorted(range(len(labels)), key=lambda dim: dim != preferred):
        across = labels[dim].movedim(axis, -1)
        rows = across.reshape(-1, across.shape[-1])[0].contiguous()
        if bool((across == rows).all()) and len(set(rows.tolist())) == len(rows):
            return dim, rows
    return preferred, None


def _done(layer: Layer, change: Change, added: Tensor | None) -> Tensor:
    """Change weight, bias and product; the layer's result then."""
    weight, operand, factor = layer.target.tensor, layer.operand, change.factor
    copied = operand is not weight and not lies_in(operand, weight)
    if factor.ndim and layer.axis is not None and layer.rows is not None:
        full = torch.ones(weight.shape[layer.dim], device=weight.device, dtype=factor.dtype)
        full[layer.rows.to(weight.device)] = factor.to(weight.device)
        weight.mul_(full.reshape(-1, *[1] * (weight.ndim - layer.dim - 1)))
        if copied:
            operand.mul_(factor.reshape(-1, *[1] * (operand.ndim - layer.axis % operand.ndim - 1)))
        factor = factor.reshape(-1, *[1] * (-layer.feature - 1))
    else:
        operand.mul_(factor)
        if copied:
            weight.mul_(factor)
    out = layer.product.mul_(factor)
    if change.bias is not None and layer.bias is not None:
        layer.bias.copy_(change.bias)
    return out if added is None else out.add_(added)
