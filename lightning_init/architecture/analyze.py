"""Model -> Architecture: module types first, then what one forward pass shows.

Module types give roles, fans and blocks; the tape adds depth, nonlinearity, residual branches
and output layers, and gives bare parameters the role of the operation that uses them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import nn
from torch.nn.parameter import is_lazy

from lightning_init.architecture.adapters import mark_adapters
from lightning_init.architecture.evidence import evidence
from lightning_init.architecture.layers import (
    Described,
    activation_name,
    describe,
    describe_model,
    module_traits,
)
from lightning_init.architecture.lazy import has_lazy, materialize_
from lightning_init.architecture.names import check_forward, named_tensors, unwrap
from lightning_init.architecture.parametrized import derived
from lightning_init.architecture.params import Architecture, ParamInfo, Part, Role
from lightning_init.architecture.plain import plain
from lightning_init.architecture.preserve import preserved
from lightning_init.architecture.provenance import exact_provenance, flags_of
from lightning_init.architecture.reading import Fact, read
from lightning_init.architecture.roles import LEARNED
from lightning_init.architecture.trace import trace


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
    if forward is None or not has_lazy(model):
        return _analyze(model, forward)
    check_forward(forward)
    lazy = {names for names, parameter in named_tensors(model) if is_lazy(parameter)}
    with preserved(model):
        materialize_(model, forward)
        found = _analyze(model, forward)
    params = tuple(
        replace(info, flags=info.flags | {"lazy"}) if info.names in lazy else info for info in found
    )
    return replace(found, params=params)


def _analyze(model: nn.Module, forward: Callable[[], object] | None) -> Architecture:
    with plain(model):
        found = _of_plain(model, forward)
    return replace(found, params=_with_originals(model, found))


def _with_originals(model: nn.Module, found: Architecture) -> tuple[ParamInfo, ...]:
    """The description of a computed weight goes to its primary parameter, under all names."""
    weights = {id(weight.primary): weight for weight in derived(model)}
    known = {name: info for info in found for name in info.names}
    of = {
        id(o): names[0]
        for names, p in named_tensors(model)
        if id(p) in weights
        for o in weights[id(p)].originals
    }
    params = []
    for names, parameter in named_tensors(model):
        if id(parameter) in weights:
            flags = known[names[0]].flags | {"parametrized"}
            params.append(replace(known[names[0]], names=names, flags=flags))
        elif id(parameter) in of:
            params.append(
                ParamInfo(
                    names,
                    tuple(parameter.shape),
                    Role.OTHER,
                    flags=flags_of(names, parameter) | {"parametrized", "companion"},
                    usage=known[of[id(parameter)]].usage,
                    evidence=f"set together with {of[id(parameter)]}",
                )
            )
        elif names[0] in known:
            params.append(known[names[0]])
        else:  # a rule's own parameters, as those of a low-rank adapter
            flags = flags_of(names, parameter) | {"parametrized"}
            why = "part of the rule that computes a weight"
            params.append(
                ParamInfo(names, tuple(parameter.shape), Role.OTHER, flags=flags, evidence=why)
            )
    tensors = dict(named_tensors(model))
    marked = mark_adapters(model, {id(tensors[info.names]): info for info in params})
    return tuple(marked.values())


def _of_plain(model: nn.Module, forward: Callable[[], object] | None) -> Architecture:
    infos = _from_modules(model)
    traits = module_traits(model)
    if any(info.role is Role.EMBEDDING and "tied" in info.flags for info in infos.values()):
        traits |= {"tied table"}
    if forward is None:
        return Architecture(tuple(replace(info, traits=traits) for info in infos.values()))
    check_forward(forward)
    reading = read(trace(model, forward))
    traits = (traits - {"attention"}) | reading.traits  # seen, not guessed from names of classes
    params = tuple(
        replace(_merged(info, reading.facts.get(key)), traits=traits) for key, info in infos.items()
    )
    return Architecture(params, len(reading.branches), traced=True, branches=reading.branches)


def _merged(info: ParamInfo, fact: Fact | None) -> ParamInfo:
    """What the module types and the forward pass say together."""
    if fact is None:
        return replace(info, evidence="not used in the forward pass")
    why = fact.why
    if info.role is Role.OTHER or _is_other_table(info, fact):
        info = replace(
            info,
            role=fact.role,
            fan_in=fact.fan_in,
            fan_out=fact.fan_out,
            blocks=fact.blocks,
            axis=fact.axis,
        )
    elif info.role is Role.WEIGHT and fact.role is Role.EMBEDDING:
        info = replace(info, role=Role.EMBEDDING, fan_in=1.0, fan_out=float(info.shape[-1]))
    else:
        why = ""
    if fact.parts and info.role is Role.WEIGHT:
        info = replace(info, blocks=fact.blocks, fan_out=fact.fan_out, axis=fact.axis)
    elif info.role is Role.WEIGHT and fact.role is Role.WEIGHT and "Conv1D" in info.layer:
        info = replace(info, axis=fact.axis)
    usage = fact.usage
    if info.layer == "LSTM" and "weight_hr_" in info.name:  # projects what has passed the tanh
        usage = replace(usage, nonlinearity="linear")
    info = replace(info, usage=usage, parts=fact.parts or info.parts, identity=fact.identity)
    info = replace(info, prior=fact.prior, answer=fact.answer)
    return replace(info, evidence=evidence(info, why))


def _is_other_table(info: ParamInfo, fact: Fact) -> bool:
    """A table of positions, or one that is used otherwise than by lookup or as a whole."""
    other = fact.role is Role.POSITION or (fact.role is Role.OTHER and fact.why != LEARNED)
    return info.role is Role.EMBEDDING and other


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
            parts=_stacked(fact.gates, parameter),
        )
    return infos


def _stacked(names: tuple[str, ...], parameter: nn.Parameter) -> tuple[Part, ...]:
    """Equal parts, one after the other, by name."""
    if not names or is_lazy(parameter):
        return ()
    size = parameter.shape[0] // len(names)
    return tuple(Part(name, ((i * size, (i + 1) * size),)) for i, name in enumerate(names))


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
