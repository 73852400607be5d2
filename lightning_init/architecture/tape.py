"""One forward pass, observed: which operation uses which parameter, and what follows it.

A `TorchFunctionMode` sees every `linear`, `conv`, `embedding`, norm, activation and addition
together with the very `Parameter` objects, also in functional code. The calls form a graph
(`Op.inputs`), and depth, nonlinearity, residual branches and output layers are read off it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_init.architecture.operations import (
    ACTIVATIONS,
    ADDITIONS,
    CONVOLUTIONS,
    NORMS,
    RECURRENT,
    TRANSPARENT,
    WEIGHTED,
    Function,
)
from lightning_init.architecture.params import Usage
from lightning_init.architecture.preserve import preserved


@dataclass(slots=True)
class Op:
    """One call that the forward pass made."""

    function: Function
    inputs: tuple[int, ...]
    params: tuple[int, ...]
    consumers: list[int] = field(default_factory=list)
    last: tuple[int, ...] = ()  # of a fused call's parameters, those that make its output
    stride: int = 1
    groups: int = 1

    @property
    def is_weight_layer(self) -> bool:
        """Whether the call multiplies its input by a parameter matrix."""
        return bool(self.params) and self.function in WEIGHTED


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


class Tape(TorchFunctionMode):
    """Records the calls of one forward pass, by identity of the tensors that flow."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__()
        self.ops: list[Op] = []
        self._params = {id(parameter) for parameter in parameters}
        self._producer: dict[int, int] = {}
        self._alive: list[Tensor] = []  # an id is only unique while its tensor lives

    def __torch_function__(
        self,
        func: Function,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run the call, remember it."""
        kwargs = kwargs or {}
        inputs = [t for t in tensors((args, kwargs)) if id(t) not in self._params]
        params = tuple(id(t) for t in tensors((args, kwargs)) if id(t) in self._params)
        sources = {self._source(t) for t in inputs}
        out = func(*args, **kwargs)
        results = list(tensors(out))
        if results and (sources or params):
            op = Op(func, tuple(sorted(sources)), params)
            if func is F.multi_head_attention_forward:  # out_proj_weight and out_proj_bias
                op.last = tuple(id(t) for t in tensors(args[11:13]) if id(t) in self._params)
            elif func in CONVOLUTIONS:
                op.stride, op.groups = _stride_and_groups(args, kwargs)
            for source in op.inputs:
                self.ops[source].consumers.append(len(self.ops))
            for result in results:
                self._producer[id(result)] = len(self.ops)
            self._alive += results
            self.ops.append(op)
        return out

    def _source(self, tensor: Tensor) -> int:
        if id(tensor) not in self._producer:
            self._producer[id(tensor)] = len(self.ops)
            self._alive.append(tensor)
            self.ops.append(Op(_input, (), ()))
        return self._producer[id(tensor)]


def _input() -> None:
    """Stands for a tensor that the model was given."""


def _stride_and_groups(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, int]:
    """Of a convolution's call; the stride over all dimensions together."""
    weight = args[1] if len(args) > 1 else kwargs["weight"]
    stride = args[3] if len(args) > 3 else kwargs.get("stride", 1)
    groups = args[6] if len(args) > 6 else kwargs.get("groups", 1)
    steps = [stride] if isinstance(stride, int) else list(stride)
    dims = weight.ndim - 2
    return math.prod(steps * dims if len(steps) == 1 else steps), int(groups)


def trace(model: nn.Module, forward: Callable[[], object]) -> list[Op]:
    """Run `forward` once and return its calls; the model is afterwards as before.

    Args:
        model: The model whose parameters are of interest.
        forward: A call without arguments that runs the model once.

    Returns:
        The calls in execution order. Inputs of the model appear as calls without inputs.

    Raises:
        ValueError: If the forward pass used no parameter of the model.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Tanh())
        >>> ops = trace(model, lambda: model(torch.ones(1, 2)))
        >>> [op.is_weight_layer for op in ops]
        [False, True, False]
    """
    tape = Tape(model.parameters())
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the fused encoder layer hides its parts
    try:
        with preserved(model), tape:
            forward()
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
    if not any(op.params for op in tape.ops):
        raise ValueError(
            "the forward pass used none of the model's parameters: pass a `forward` that runs "
            "this very model once, e.g. forward=lambda: model(batch)"
        )
    return tape.ops


def usages(ops: list[Op]) -> tuple[dict[int, Usage], int]:
    """Read each parameter's use off the calls of one forward pass.

    Args:
        ops: What `trace` returned.

    Returns:
        `id(parameter)` -> `Usage`, and the number of residual branches.
    """
    graph = _Graph(ops)
    ends, sizes = _branches(ops, graph)
    found: dict[int, Usage] = {}
    for index, op in enumerate(ops):
        for parameter in op.params:
            if parameter in found:
                found[parameter] = replace(found[parameter], calls=found[parameter].calls + 1)
                continue
            branch = ends.get(parameter, -1)
            found[parameter] = Usage(
                depth=graph.depth[index],
                nonlinearity=_nonlinearity(ops, index),
                ends_branch=branch >= 0,
                branch=branch,
                branch_layers=sizes[branch] if branch >= 0 else 0,
                num_branches=len(sizes),
                is_output=op.is_weight_layer and not graph.layers_after[index],
            )
    return found, len(sizes)


def op_traits(ops: list[Op]) -> frozenset[str]:
    """Facts of a whole model that its calls tell."""
    seen = {op.function for op in ops}
    found = {name for function, name in ACTIVATIONS.items() if function in seen}
    found |= {"norm"} if seen & NORMS else set()
    found |= {"convolution"} if seen & CONVOLUTIONS else set()
    found |= {"recurrence"} if seen & RECURRENT else set()
    attends = {F.scaled_dot_product_attention, F.multi_head_attention_forward}
    found |= {"attention"} if seen & attends else set()
    return frozenset(found)


class _Graph:
    """Ancestors as bit sets (bit i: call i), depths, and whether weight layers follow."""

    def __init__(self, ops: list[Op]) -> None:
        self.before: list[int] = []
        self.depth: list[int] = []
        self.weights = 0
        for index, op in enumerate(ops):
            mask, depth = 0, 0
            for source in op.inputs:
                mask |= self.before[source] | 1 << source
                depth = max(depth, self.depth[source])
            self.before.append(mask)
            self.depth.append(depth + op.is_weight_layer)
            self.weights |= int(op.is_weight_layer) << index
        self.layers_after = [False] * len(ops)
        for index in range(len(ops) - 1, -1, -1):
            self.layers_after[index] = any(
                ops[consumer].is_weight_layer or self.layers_after[consumer]
                for consumer in ops[index].consumers
            )

    def past(self, index: int) -> int:
        """The call itself and everything before it."""
        return self.before[index] | 1 << index


def _branches(ops: list[Op], graph: _Graph) -> tuple[dict[int, int], list[int]]:
    """The parameters that end each residual branch, and the branches' weight layers.

    An addition is residual if both sides come from a common tensor and one of them has weight
    layers that the other lacks; the side with more of its own is the branch.
    """
    ends: dict[int, int] = {}
    sizes: list[int] = []
    for op in ops:
        if op.function not in ADDITIONS or len(op.inputs) != 2:
            continue
        one, two = op.inputs
        past_one, past_two = graph.past(one), graph.past(two)
        own_one = (past_one & ~past_two & graph.weights).bit_count()
        own_two = (past_two & ~past_one & graph.weights).bit_count()
        if not past_one & past_two or own_one == own_two:
            continue
        branch, size = (one, own_one) if own_one > own_two else (two, own_two)
        for parameter in _branch_end(ops, branch):
            ends.setdefault(parameter, len(sizes))
        sizes.append(size)
    return ends, sizes


def _branch_end(ops: list[Op], index: int) -> Iterable[int]:
    """The parameters from a branch's sum back to and including its last weight layer."""
    found: list[int] = []
    while True:
        op = ops[index]
        if op.function is F.multi_head_attention_forward:
            return (*found, *op.last)
        found += op.params
        # Buffers (running statistics, masks) are inputs too, but nothing was computed for them.
        sources = [source for source in op.inputs if ops[source].function is not _input]
        if op.is_weight_layer or len(sources) != 1:
            return found
        index = sources[0]


def _nonlinearity(ops: list[Op], index: int) -> str:
    if ops[index].function in RECURRENT:
        return "tanh"
    while True:
        consumers = ops[index].consumers
        for consumer in consumers:
            if name := ACTIVATIONS.get(ops[consumer].function):
                return name
        if len(consumers) != 1 or ops[consumers[0]].function not in TRANSPARENT:
            return "linear"
        index = consumers[0]
