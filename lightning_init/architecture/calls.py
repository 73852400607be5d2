"""What a forward pass is recorded as: calls, the signals between them, the weights they use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_init.architecture.operations import RECURRENT, RECURRENT_CELLS, Function
from lightning_init.architecture.products import Product


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor that was computed from parameters alone.

    Attributes:
        params: Ids of the parameters, the one that it mainly consists of first.
        shape: Shape of that parameter.
        raw: Whether it is that parameter itself.
        indices: For each dimension of that parameter the index that an element comes from, as
            tensors of this one's shape; `()` if it is raw, None where that is unknown.
        plus: What was added to that parameter, 0 if nothing.
        joined: Whether the parameters lie side by side or are added: none is the main one.
    """

    params: tuple[int, ...]
    shape: tuple[int, ...]
    raw: bool = False
    indices: tuple[Tensor, ...] | None = ()
    plus: float = 0.0
    joined: bool = False


@dataclass(frozen=True, slots=True)
class Signal:
    """A tensor that flows: the call that made it, and the rows that its elements come from.

    Attributes:
        op: Index of the call.
        rows: Numbers of output rows, a tensor of the same shape; None where unknown.
        given: Whether it came from outside, at most seen from another side.
        source: Whether no call of interest made it.
    """

    op: int
    rows: Tensor | None = None
    given: bool = False
    source: bool = False

    @property
    def constant(self) -> bool:
        """Whether it is a buffer, or was made inside the model from nothing but constants."""
        return self.source and not self.given


class Call(NamedTuple):
    """A call while it is being recorded."""

    function: Function
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    given: list[Tensor]
    before: list[Weight | Signal]
    results: list[Tensor]

    def known(self, tensor: object) -> Weight | Signal | None:
        """What one of the call's tensor arguments is."""
        pairs = zip(self.given, self.before, strict=True)
        return next((known for given, known in pairs if given is tensor), None)

    def lasting(self) -> Call:
        """The same with copies of its weights: FSDP2 frees what it has gathered."""
        pairs = zip(self.given, self.before, strict=True)
        own = {id(t): t.detach().clone() for t, known in pairs if isinstance(known, Weight)}

        def swap(value: Any) -> Any:
            if isinstance(value, (list, tuple)):
                return type(value)(map(swap, value))
            return own.get(id(value), value)

        kwargs = {key: swap(value) for key, value in self.kwargs.items()}
        return self._replace(args=swap(self.args), kwargs=kwargs, given=swap(self.given))


@dataclass(slots=True)
class Op:
    """One call that the forward pass made.

    Attributes:
        kind: Canonical name of the function.
        inputs: The calls whose results it took, in the order of its arguments.
        weights: The parameters that it took, with their place among its tensor arguments.
        signals: The signals that it took, in the order of its arguments.
        product: Fans and layout where it multiplies by a parameter matrix.
        matrix: Place of that matrix among the tensor arguments.
        seen: What a later reading needs to know of the call (`values.observe`).
        out: Its first result.
        base: The number of its first output row; rows are numbered through all calls.
        consumers: The calls that took its result.
    """

    kind: str
    inputs: tuple[int, ...] = ()
    weights: tuple[tuple[int, Weight], ...] = ()
    signals: tuple[Signal, ...] = ()
    product: Product | None = None
    matrix: int = -1
    seen: dict[str, Any] = field(default_factory=dict)
    out: Tensor | None = None
    base: int = 0
    consumers: list[int] = field(default_factory=list)

    @property
    def params(self) -> tuple[int, ...]:
        """Ids of all parameters that the call used."""
        return tuple(dict.fromkeys(p for _, weight in self.weights for p in weight.params))

    @property
    def is_weight_layer(self) -> bool:
        """Whether the call multiplies its input by a parameter matrix."""
        return self.product is not None or self.is_recurrent

    @property
    def is_recurrent(self) -> bool:
        """Whether the call is one of PyTorch's recurrent kernels."""
        return bool(self.weights) and self.kind in RECURRENT | RECURRENT_CELLS


def plain(tensor: Tensor) -> Tensor:
    """A tensor without the wrappers of `torch.func`, whose values cannot be read."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def readable(tensor: Tensor) -> bool:
    """Whether the values of a tensor can be looked at."""
    return not tensor.is_meta and plain(tensor) is tensor


def tensors(value: object) -> Iterator[Tensor]:
    """All tensors in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item)
