"""The function that follows a layer, run again on other values: named or not, written out or not.

Between a layer and the next the tape has recorded elementwise calls with their arguments: a leaky
ReLU's slope, a PReLU's parameter, `x * tanh(softplus(x))`, a user's own formula. Run again on the
nodes of a quadrature they tell what they do to a standard normal, whatever they are called.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lightning_init.architecture.calls import Call, Signal, Weight
from lightning_init.architecture.graph import Graph
from lightning_init.architecture.operations import (
    CONVERSIONS,
    CONVOLUTIONS,
    ELEMENTWISE,
    LAYERS,
    MERGES,
    MOVEMENTS,
    NORMS,
    POOLS,
    PRODUCTS,
    RESIZES,
)
from lightning_init.architecture.priors import LOSSES
from lightning_init.architecture.quadrature import nodes

COMPARISONS = frozenset({"gt", "lt", "ge", "le", "eq", "ne", "greater", "less"})
POINTWISE = (ELEMENTWISE - CONVERSIONS - {"dropout", "rrelu"}) | frozenset(
    {
        *("softsign", "hardshrink", "softshrink", "tanhshrink", "logsigmoid", "_threshold", "sinc"),
        *(
            "log_sigmoid",
            "atan",
            "arctan",
            "asinh",
            "arcsinh",
            "sinh",
            "cosh",
            "tan",
            "erfc",
            "sgn",
        ),
        *("sign", "minimum", "maximum", "max", "min", "clip", "exp2", "log2", "log10", "softplus"),
        *(
            "hypot",
            "logaddexp",
            "xlogy",
            "heaviside",
            "i0",
            "special_expit",
            "relu",
            "_prelu_kernel",
        ),
    }
)
# The same elements, each still where it was in relation to the others.
_RESHAPED = (
    frozenset(
        {
            *("view", "reshape", "permute", "transpose", "t", "T", "mT", "movedim", "moveaxis"),
            *("unflatten", "flatten", "squeeze", "unsqueeze", "view_as", "reshape_as", "ravel"),
            *("_unsafe_view", "dropout"),
        }
    )
    | CONVERSIONS
)
_PASSES = NORMS | POOLS | RESIZES  # what a signal keeps its scale through, more or less
_READS = (  # takes a signal as it is, so that what came before it is the whole function
    PRODUCTS | CONVOLUTIONS | LAYERS | MERGES | POOLS | RESIZES | LOSSES
    | {"mul", "div", "addcmul", "lerp", "sum", "softmax", "log_softmax", "normalize", "bilinear"}
)  # fmt: skip
_CHOOSES = frozenset({"maximum", "minimum", "fmax", "fmin", "max", "min", "logaddexp", "hypot"})
_WIDEST = 65536


class _UnknownError(Exception):
    """A call that cannot be run again."""


class _Wider(Exception):
    """A parameter with a value per channel: so many functions instead of one."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.width = width


def gain_after(graph: Graph, index: int, sums: frozenset[int]) -> float | None:
    """1 / sqrt(E[phi(z)^2]) of the function phi that follows a call, None if it is unknown.

    Args:
        graph: The calls.
        index: A weight layer, or the norm that is written out behind it.
        sums: Additions to a skip path: what follows them is no function of the layer.
    """
    width = 1
    for _ in range(2):
        try:
            return _Run(graph, index, sums, width).gain()
        except _Wider as found:
            width = found.width
        except _UnknownError:
            return None
    return None


class _Run:
    """One function, run on the nodes; per channel if a parameter has a value for each."""

    def __init__(self, graph: Graph, index: int, sums: frozenset[int], width: int) -> None:
        self.graph, self.sums, self.width = graph, sums, width
        z, self.weights = nodes()
        self.start = z[:, None].expand(-1, width)
        self.values = {index: self.start}
        self.origin = {index: index}

    def gain(self) -> float | None:
        ops, exits, aside = self.graph.ops, set(), set()
        (first,) = self.values
        waiting = sorted(ops[first].consumers)
        exits |= set() if waiting else {first}
        seen: set[int] = set()
        while waiting:
            call = waiting.pop(0)
            if call in seen:
                continue
            seen.add(call)
            mine = [source for source in ops[call].inputs if source in self.values]
            if self._run(call, mine):
                waiting = sorted({*waiting, *ops[call].consumers})
                exits |= set() if ops[call].consumers else {call}
            elif call in self.sums:
                aside |= set(mine)
            elif ops[call].kind in _CHOOSES:  # of several signals: a function of both
                return None
            elif ops[call].kind in _READS | POINTWISE or ops[call].is_weight_layer:
                exits |= set(mine)
            else:
                return None
        moments = {self._moment(exit_) for exit_ in exits or aside}
        moment = moments.pop() if len(moments) == 1 else math.nan
        return 1 / math.sqrt(moment) if 0 < moment < math.inf else None

    def _moment(self, index: int) -> float:
        value = self.values[index]
        if value is self.start:
            return 1.0
        return round(float(self.weights @ value.square().mean(1)), 12)

    def _run(self, call: int, mine: list[int]) -> bool:
        """Whether the function goes on through a call."""
        op = self.graph.ops[call]
        if op.is_weight_layer or call in self.sums:
            return False
        origins = {self.origin[source] for source in mine}
        if op.kind in _RESHAPED or op.kind in MOVEMENTS or op.kind in _PASSES:
            if len(op.inputs) > 1 and op.kind in MOVEMENTS:  # cat, stack
                return False
            value = self.values[mine[0]]
            if op.kind in _PASSES and value is not self.start:
                return False
            self.values[call] = value
            same = op.kind in _RESHAPED
            self.origin[call] = origins.pop() if same else call  # other elements than before
            return True
        if op.kind not in POINTWISE or "call" not in op.seen or len(origins) != 1:
            return False
        known = {*mine, *(s.op for s in op.signals if s.source)}
        if any(source not in known for source in op.inputs):
            return False  # another signal joins
        self.values[call] = self._evaluate(op.seen["call"])
        self.origin[call] = origins.pop()
        return True

    def _evaluate(self, call: Call) -> Tensor:
        def swap(value: Any) -> Any:
            if isinstance(value, Tensor):
                return self._stand_in(value, call)
            if isinstance(value, (list, tuple)):
                return type(value)(swap(item) for item in value)
            return value

        if "out" in call.kwargs:
            raise _UnknownError
        try:
            with torch.no_grad():
                kwargs = {key: swap(value) for key, value in call.kwargs.items()}
                out = call.function(*swap(call.args), **kwargs)
        except (_UnknownError, _Wider):
            raise
        except Exception as error:
            raise _UnknownError from error
        if not isinstance(out, Tensor) or out.shape != self.start.shape:
            raise _UnknownError
        return out

    def _stand_in(self, tensor: Tensor, call: Call) -> Tensor:
        known = call.known(tensor)
        if isinstance(known, Signal):
            if known.op in self.values:
                return self.values[known.op].clone()
            compared = self.graph.ops[known.op].seen.get("call")
            if compared is not None and known.source:
                return self._evaluate(compared)
        value = tensor.detach()
        if value.is_meta or not value.numel():
            raise _UnknownError
        value = value.flatten().to("cpu", torch.float64 if value.is_floating_point() else None)
        if value.numel() > 1 and bool((value == value[0]).all()):
            value = value[:1]
        if value.numel() == 1:
            return value if isinstance(known, Weight) else value[0]
        if not isinstance(known, Weight) or value.numel() > _WIDEST:
            raise _UnknownError
        if self.width == 1:
            raise _Wider(value.numel())
        if self.width != value.numel():
            raise _UnknownError
        return value
