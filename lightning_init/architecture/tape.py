"""One forward pass, observed: every call, the parameters it used, and what followed.

A `TorchFunctionMode` sees every call of PyTorch together with the very `Parameter` objects, also
in functional code. Tensors computed from parameters alone (`W.t()`, `W * mask`, `1 + scale`) stand
for these parameters; all others are signals, and the calls on them form a graph (`Op.inputs`).
Numbers of output rows travel along with the signals, through views, splits and transpositions, so
it is known which rows of a fused matrix become the query.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from lightning_init.architecture.calls import Call, Op, Signal, Weight, plain, tensors
from lightning_init.architecture.follows import COMPARISONS, POINTWISE
from lightning_init.architecture.guard import Guard
from lightning_init.architecture.opened import OPENED
from lightning_init.architecture.operations import (
    CONVERSIONS,
    FRESH,
    MOVEMENTS,
    SPLITS,
    TAKES_INPUT,
    TEMPLATES,
    Function,
    in_place,
    kind,
)
from lightning_init.architecture.rows import rows_of
from lightning_init.architecture.values import derived, observe


class Tape(TorchFunctionMode):
    """Records the calls of one forward pass, by identity of the tensors that flow.

    Args:
        parameters: Of the model.
        constants: Tensors of the model that are no parameters.
        in_use: `id` of what is seen in place of a parameter -> that parameter.

    Attributes:
        ops: The calls in execution order.
        guard: What puts parameters back that the pass writes to.
        inside: Whether the model has been entered; what is made before belongs to the batch.
        failed: The last call that raised an error, and the error.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        constants: Iterable[Tensor] = (),
        in_use: Mapping[int, Tensor] | None = None,
    ) -> None:
        super().__init__()
        parameters = list(parameters)
        self.guard = Guard(parameters)
        self.ops: list[Op] = []
        self.inside = False
        self.failed: tuple[str, Exception] | None = None
        self._known: dict[int, Weight | Signal] = {}
        self._places: dict[tuple[int, torch.Size], Weight | Signal] = {}
        self._constants = {id(tensor) for tensor in constants}
        self._alive: list[Tensor] = []  # an id is only unique while its tensor lives
        self._rows = 0
        self._frees = bool(in_use)
        self._starts: list[int] = []
        for parameter in parameters:
            if is_lazy(parameter):
                continue
            shape = tuple(parameter.shape)
            self._known[id(parameter)] = Weight((id(parameter),), shape, raw=True)
        for key, parameter in (in_use or {}).items():
            self._known[key] = self._known[id(parameter)]

    def __torch_function__(
        self,
        func: Function,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run the call, remember it."""
        kwargs = kwargs or {}
        if func in OPENED:
            with self:
                return OPENED[func](*args, **kwargs)
        self.guard.before(func, args, kwargs)
        given = list(tensors((args, {key: kwargs[key] for key in kwargs if key != "out"})))
        before = [self._look_up(tensor) for tensor in given]
        try:
            out = func(*args, **kwargs)
        except Exception as error:
            self.failed = (kind(func), error)
            raise
        made = list(tensors(args[0] if kind(func) == "setitem" else out))
        if made:
            self._alive += made
            call = Call(func, args, kwargs, given, before, made)
            for result, known in zip(made, self._note(call), strict=True):
                self._remember(result, known)
                if in_place(func) and plain(result)._base is not None:
                    self._write_through(plain(result), known)
        return out

    def _note(self, call: Call) -> Iterable[Weight | Signal]:
        """What each result of a call is; the call goes on the tape if a signal flows out of it."""
        name, first = kind(call.function), call.results[0]
        flows = first.is_floating_point() or first.is_complex()
        if not flows or name in FRESH or not call.given:
            # Indices, masks and new tensors: nothing that a gradient could follow.
            seen = [known for known in call.before if isinstance(known, Signal)]
            given = (not call.given and not self.inside) or (
                name in MOVEMENTS | CONVERSIONS and bool(seen) and seen[0].given
            )
            sources = [self._source(given) for _ in call.results]
            if name in COMPARISONS:
                self.ops[sources[0].op].seen["call"] = call.lasting() if self._frees else call
            return sources
        if (weights := derived(name, call)) is not None:
            return weights
        if name in TAKES_INPUT:
            self._learned_inputs(name, call)
        if all(isinstance(known, Signal) and known.constant for known in call.before):
            return [self._source(given=False) for _ in call.results]
        signals = tuple(
            known
            for given, known in zip(call.given, call.before, strict=True)
            if isinstance(known, Signal) and (given.is_floating_point() or given.is_complex())
        )
        signals = signals[:1] if name in TEMPLATES else signals
        op = Op(
            name,
            tuple(dict.fromkeys(signal.op for signal in signals)),
            tuple((i, known) for i, known in enumerate(call.before) if isinstance(known, Weight)),
            signals,
            out=plain(first),
            base=self._rows,
        )
        observe(self.ops, op, call)
        if name in POINTWISE:
            op.seen["call"] = call.lasting() if self._frees else call
        rows = rows_of(op, call, self._starts)
        if "rows" in op.seen:
            self._starts.append(self._rows)
            self._rows += op.seen["rows"]
        if name not in SPLITS:
            at = self._append(op)
            return [Signal(at, labels) for labels in rows]
        # The pieces go their own ways: each is a call of its own.
        pieces = (replace(op, out=out, consumers=[]) for out in call.results)
        return [
            Signal(self._append(piece), labels) for piece, labels in zip(pieces, rows, strict=True)
        ]

    def _learned_inputs(self, name: str, call: Call) -> None:
        """A parameter that a layer takes as its input is a signal from there on: a learned query."""
        places = range(3) if name == "scaled_dot_product_attention" else range(1)
        for place in places:
            weight = call.before[place]
            if isinstance(weight, Weight):
                signal = Signal(self._append(Op("learned", weights=((0, weight),))))
                call.before[place] = signal
                for key, known in self._known.items():
                    if isinstance(known, Weight) and known.params == weight.params:
                        self._known[key] = signal

    def _append(self, op: Op) -> int:
        for source in op.inputs:
            self.ops[source].consumers.append(len(self.ops))
        self.ops.append(op)
        return len(self.ops) - 1

    def _remember(self, tensor: Tensor, known: Weight | Signal) -> None:
        self._known[id(tensor)] = known
        self._alive.append(tensor)
        inner = plain(tensor)
        if inner is not tensor:
            tensor, known = inner, Signal(known.op) if isinstance(known, Signal) else known
            self._known[id(inner)] = known
        if place := _place(tensor):
            self._places[place, tensor.shape] = known

    def _look_up(self, tensor: Tensor) -> Weight | Signal:
        known = self._known.get(id(tensor))
        if known is None:
            inner = plain(tensor)
            if inner is not tensor:  # one of the examples that `vmap` runs at once
                known = self._known.get(id(inner))
                if isinstance(known, Weight):
                    known = replace(known, raw=False, indices=None)
            elif place := _place(tensor):
                # A custom autograd function hands its results on as new objects.
                known = self._places.get((place, tensor.shape))
            known = known or self._source(given=id(tensor) not in self._constants)
            self._remember(tensor, known)
        return known

    def made_by(self, tensor: Tensor) -> int:
        """The call whose result a tensor is, -1 if none is known."""
        known = self._known.get(id(tensor))
        if known is None and (place := _place(tensor)):
            known = self._places.get((place, tensor.shape))
        return known.op if isinstance(known, Signal) else -1

    def _source(self, given: bool) -> Signal:
        self.ops.append(Op("input"))
        return Signal(len(self.ops) - 1, given=given, source=True)

    def _write_through(self, view: Tensor, known: Weight | Signal) -> None:
        """What was written into a view is part of the tensor behind it."""
        base = view._base
        if base is None or not isinstance(known, Signal):
            return
        before, rows = self._known.get(id(base)), None
        if known.rows is not None and base.layout is torch.strided:
            rows = torch.full_like(base, -1, dtype=torch.long, requires_grad=False)
            if isinstance(before, Signal) and before.rows is not None:
                rows.copy_(before.rows)
            offset = view.storage_offset() - base.storage_offset()
            if rows.stride() == base.stride():
                rows.as_strided(view.shape, view.stride(), offset).copy_(known.rows)
        self._remember(base, Signal(known.op, rows))


def _place(tensor: Tensor) -> int:
    """Where a tensor's values lie, 0 if nowhere."""
    if tensor.layout is not torch.strided or plain(tensor) is not tensor or not tensor.numel():
        return 0
    return tensor.data_ptr()
