"""Model -> Architecture: module types first, then what one forward pass shows.

Module types give roles, fans and blocks; the tape adds depth, nonlinearity, residual branches
and output layers, and gives bare parameters the role of the operation that uses them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch.nn.functional as F
from torch import nn
from torch.nn.parameter import is_lazy

from lightning_init.architecture.adapters import mark_adapters
from lightning_init.architecture.layers import (
    Described,
    activation_name,
    describe,
    describe_model,
    module_traits,
)
from lightning_init.architecture.names import check_forward, named_tensors, unwrap
from lightning_init.architecture.operations import CONVOLUTIONS, NORMS, TRANSPOSED
from lightning_init.architecture.params import Architecture, ParamInfo, Role
from lightning_init.architecture.provenance import exact_provenance, flags_of
from lightning_init.architecture.tape import Op, op_traits, trace, usages


def analyze(model: nn.Module, forward: Callable[[], object] | None = None) -> Architecture:
    """Describe every parameter of a model by what it is used for; the model is left as it was.

    Args:
        model: Any module, wrapped or not.
        forward: A call without arguments that runs the model once, e.g. `lambda: model(batch)`.
            Without it, module types alone decide, and residual branches are not seen.

    Returns:
        One `ParamInfo` per tensor; prints as a table.

    Raises:
        ValueError: If `forward` does not use the model's parameters.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> seen = analyze(model, lambda: model(torch.ones(1, 4)))
        >>> seen["0.weight"].usage.nonlinearity, seen["2.weight"].usage.is_output
        ('relu', True)
    """
    model = unwrap(model)
    infos = mark_adapters(model, _from_modules(model))
    traits = module_traits(model)
    lazy = any("lazy" in info.flags for info in infos.values())  # a pass would give them shapes
    if forward is None or lazy:
        return Architecture(tuple(replace(info, traits=traits) for info in infos.values()))
    check_forward(forward)
    ops = trace(model, forward)
    used, num_branches = usages(ops)
    for op in ops:
        for position, key in enumerate(op.params):
            if key in infos and infos[key].role is Role.OTHER:
                infos[key] = _from_use(infos[key], op, position)
    traits |= op_traits(ops)
    params = tuple(replace(info, usage=used.get(key), traits=traits) for key, info in infos.items())
    return Architecture(params, num_branches, traced=True)


def _from_modules(model: nn.Module) -> dict[int, ParamInfo]:
    described = describe_model(model)
    suggested = _suggested_nonlinearities(model)
    trained = exact_provenance(model)
    infos = {}
    for names, parameter in named_tensors(model):
        fact, layer = described.get(id(parameter), (Described(Role.OTHER), ""))
        infos[id(parameter)] = ParamInfo(
            names=names,
            shape=() if is_lazy(parameter) else tuple(parameter.shape),
            role=fact.role,
            fan_in=float(fact.fan_in),
            fan_out=float(fact.fan_out),
            blocks=fact.blocks,
            provenance="pretrained" if id(parameter) in trained else "fresh",
            flags=flags_of(names, parameter),
            layer=layer,
            nonlinearity=suggested.get(id(parameter), "linear"),
            padding_idx=fact.padding_idx,
        )
    return infos


def _suggested_nonlinearities(model: nn.Module) -> dict[int, str]:
    """The activation module that follows each weight layer in registration order.

    Registration order is execution order in `nn.Sequential` and in most hand-written modules.
    """
    suggested: dict[int, str] = {}
    waiting: list[nn.Parameter] = []
    for module in model.modules():
        if (name := activation_name(module)) is not None:
            suggested.update({id(parameter): name for parameter in waiting})
            waiting = []
        elif isinstance(module, nn.RNNBase):
            suggested.update({id(p): "tanh" for p in module.parameters(recurse=False)})
        elif any(fact.role is Role.WEIGHT for fact in describe(module).values()):
            waiting = list(module.parameters(recurse=False))
    return suggested


def _from_use(info: ParamInfo, op: Op, position: int) -> ParamInfo:
    """The role of a bare parameter, from the operation that uses it."""
    shape = info.shape
    if op.function is F.linear and len(shape) == 2:
        return replace(info, role=Role.WEIGHT, fan_in=float(shape[1]), fan_out=float(shape[0]))
    if op.function in CONVOLUTIONS and len(shape) > 2:
        field = math.prod(shape[2:])
        one, two = shape[1] * field, shape[0] // op.groups * field
        into, back = (two, one) if op.function in TRANSPOSED else (one, two)
        into_step, back_step = (op.stride, 1) if op.function in TRANSPOSED else (1, op.stride)
        return replace(
            info,
            role=Role.WEIGHT,
            fan_in=into / into_step,
            fan_out=back / back_step,
            blocks=op.groups,
        )
    if (op.function is F.linear or op.function in CONVOLUTIONS) and len(shape) == 1:
        return replace(info, role=Role.BIAS)
    if op.function in NORMS and len(shape) <= 1:
        return replace(info, role=Role.NORM_SHIFT if position else Role.NORM_SCALE)
    if op.function is F.embedding and len(shape) == 2:
        return replace(info, role=Role.EMBEDDING, fan_in=1.0, fan_out=float(shape[1]))
    return info
