"""Which elementwise function follows a layer: by name, or by its values where it is written out.

`x * sigmoid(x)` and the tanh formula of GELU are functions of one signal like any other: the
values that leave them, compared with the named functions, tell which they are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_init.architecture.follows import gain_after
from lightning_init.architecture.graph import Graph
from lightning_init.architecture.operations import (
    ACTIVATIONS,
    ADDITIONS,
    CONVERSIONS,
    ELEMENTWISE,
    MOVEMENTS,
    NORMS,
    SPLITS,
    TRANSPARENT,
)

_NAMED: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "elu": F.elu,
    "selu": F.selu,
    "mish": F.mish,
    "softplus": F.softplus,
    "sin": torch.sin,
}
_SAMPLE = 4096
_TOLERANCE = 0.05  # of the function's rms: GELU's formulas agree within 1 %, silu is 20 % away
_REDUCTIONS = frozenset({"mean", "var", "std", "var_mean", "std_mean", "sum", "norm", "square"})
_BENT = frozenset({"erf", "exp", "where", "masked_fill", "clamp", "sqrt", "abs"})


class Nonlinearities:
    """Looks up what follows each call of a graph.

    Args:
        graph: The calls.
        sums: Additions to a skip path: what follows them is no function of the layer.
    """

    def __init__(self, graph: Graph, sums: frozenset[int]) -> None:
        self._graph, self._sums = graph, sums
        self._found: dict[int, str] = {}
        self._gains: dict[int, float | None] = {}
        self.written: set[str] = set()  # functions that are written out,
        self.inside: set[int] = set()  # and the calls that they consist of

    def after(self, index: int) -> str:
        """The elementwise function that follows a call, `"linear"` if none does."""
        if index not in self._found:
            self._found[index] = "linear"  # should a signal ever come back to itself
            self._found[index] = self._look(index)
        return self._found[index]

    def gain(self, index: int) -> float | None:
        """The gain of the function that follows a weight layer, None if it is unknown."""
        if index not in self._gains:
            norm = self._own_norm(index)
            start = index if norm is None else norm
            recurrent = self._graph.ops[index].is_recurrent
            self._gains[index] = None if recurrent else gain_after(self._graph, start, self._sums)
        return self._gains[index]

    def feeds_norm(self, index: int) -> bool:
        """Whether norm layers alone take a result."""
        if self._own_norm(index) is not None:
            return True
        takers = list(self._graph.onward(index, MOVEMENTS | CONVERSIONS | {"dropout"}))
        return bool(takers) and all(self._graph.ops[call].kind in NORMS for call in takers)

    def _look(self, index: int) -> str:
        graph = self._graph
        if graph.ops[index].is_recurrent:
            return "relu" if "relu" in graph.ops[index].kind else "tanh"
        written = self._written_out(index)
        if written is not None:
            return written
        consumers = graph.ops[index].consumers
        for consumer in consumers:
            if name := ACTIVATIONS.get(graph.ops[consumer].kind):
                return name
        norm = self._own_norm(index)
        if norm is not None:
            return self.after(norm)
        # Beside the way of its own, a stream is also added to: that is no function of it.
        ways = [c for c in consumers if c not in self._sums]
        parts = all(graph.ops[c].kind in SPLITS for c in ways) or self._are_slices(index, ways)
        if not parts:
            ways = [c for c in ways if graph.ends[c]] or ways  # what only makes a gate is aside
        follow = {self._through(index, consumer) for consumer in ways}
        if ways and parts:
            follow = (follow - {"linear"}) or follow  # a gate in one half speaks for the layer
        return follow.pop() if len(follow) == 1 else "linear"

    def _are_slices(self, index: int, ways: list[int]) -> bool:
        """Whether calls take parts of a signal that together are the whole: `x[:, :n]`, `x[:, n:]`."""
        outs = [self._graph.ops[call].out for call in (index, *ways)]
        if len(ways) < 2 or any(self._graph.ops[call].kind != "getitem" for call in ways):
            return False
        whole, *parts = [tuple(out.shape) for out in outs if out is not None]
        if any(len(part) != len(whole) for part in parts):
            return False
        cut = {d for part in parts for d, size in enumerate(part) if size != whole[d]}
        return len(cut) == 1 and all(sum(part[d] for part in parts) == whole[d] for d in cut)

    def _through(self, index: int, consumer: int) -> str:
        op = self._graph.ops[consumer]
        alone = self._graph.values(consumer) == [index]  # gates aside
        if op.is_weight_layer or op.kind not in TRANSPARENT | {"mul", "div"} | ADDITIONS:
            return "linear"
        if op.kind in ("mul", "div") and not alone:
            return "linear"
        return self.after(consumer)

    def _written_out(self, index: int) -> str | None:
        """The name of a function that is composed of elementwise calls on one signal."""
        graph = self._graph
        x = graph.ops[index].out
        if x is None or x.is_meta or not x.is_floating_point():
            return None
        cone = self._cone(index)
        bent = [i for i in cone if graph.ops[i].kind in _BENT or graph.ops[i].kind in ACTIVATIONS]
        # One call of a named function needs no reading of values.
        if not bent or all(c not in cone for i in bent for c in graph.ops[i].consumers):
            return None
        outs = [graph.ops[call].out for call in bent]
        if any(out is not None and out.data_ptr() == x.data_ptr() for out in outs):
            return None  # overwritten
        found = [(1.0, 0, "")]
        behind = set(bent)
        for call in cone:  # in execution order
            op, y = graph.ops[call], graph.ops[call].out
            if call not in behind and not behind & set(op.inputs):
                continue
            behind.add(call)
            if op.kind not in ACTIVATIONS and y is not None and y.shape == x.shape:
                error, name = _closest(_sample(x), _sample(y))
                found.append((error, -call, name))
        error, _, name = min(found)
        if error > _TOLERANCE:
            return None
        self.written.add(name)
        self.inside.update(cone)
        return name

    def _own_norm(self, index: int) -> int | None:
        """The scaling at the end of a norm that is written out, if one follows."""
        cone = self._cone(index, (ELEMENTWISE - frozenset(ACTIVATIONS)) | _REDUCTIONS)
        for call in sorted({c for i in (index, *cone) for c in self._graph.ops[i].consumers}):
            op = self._graph.ops[call]
            if op.seen.get("normalized") and all(source in cone for source in op.inputs):
                return call
        return None

    def _cone(self, index: int, kinds: frozenset[str] = ELEMENTWISE) -> list[int]:
        """The calls of some kinds that depend on one signal alone."""
        graph, cone = self._graph, [index]
        inside = {index}
        waiting = sorted(graph.ops[index].consumers)
        while waiting and len(cone) < 32:
            call = waiting.pop(0)
            op = graph.ops[call]
            if call in inside or op.kind not in kinds or op.weights:
                continue
            if all(s in inside or graph.ops[s].kind == "input" for s in op.inputs):
                inside.add(call)
                cone.append(call)
                waiting = sorted({*waiting, *op.consumers})
        return cone[1:]


def _sample(x: Tensor) -> Tensor:
    """Some of the values of a tensor, enough to tell functions apart."""
    flat = x.detach().flatten()
    return flat[:: max(1, len(flat) // _SAMPLE)].float()


def _closest(x: Tensor, y: Tensor) -> tuple[float, str]:
    """The named function that is nearest to y(x), and its relative error."""
    errors = []
    for name, function in _NAMED.items():
        expected = function(x)
        scale = float(expected.square().mean().sqrt()) or 1.0
        errors.append((float((y - expected).square().mean().sqrt()) / scale, name))
    return min(errors)
