"""Which tensors belong to adapters (LoRA and its relatives), and what they do there.

Adapters are found by what a module says of itself, never by shapes: a frozen layer beside an
autoencoder has the shapes of LoRA, too. In this order: the names that a tuner declares
(`adapter_layer_names` of peft, `adapter_params()` of torchtune), then two tensors of one module
that are called `lora_A` and `lora_B`, `lora_down` and `lora_up`, or alike (loralib, litgpt, kohya,
diffusers, parametrizations, hand-written layers). Nothing is imported: only attributes are read.

A role is a place in the product `up(down(x))`, whatever the values are: peft starts the down
tensor of an embedding at zero and draws the up tensor, the reverse of what it does elsewhere.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_init.architecture.params import ParamInfo, Role
from lightning_init.architecture.sharded import kind_of

# `lora` must be a word of its own: `flora_a` and `explora_b` are other people's layers.
_NAMED = re.compile(
    r"(?P<before>|.*_)lora_?(?P<table>embedding_)?(?P<side>a|b|down|up|left|right)(?P<after>|_.*)",
    re.IGNORECASE,
)
_CLASS = re.compile(r"L[oO][rR][aA]")  # LoRALinearLayer, LoraInjected: plain names suffice inside
_SIDES = {
    **dict.fromkeys(("a", "down", "left"), Role.LORA_DOWN),
    **dict.fromkeys(("b", "up", "right"), Role.LORA_UP),
}
_COPIES = "modules_to_save"  # whole layers that train beside an adapter: heads, not adapters


@dataclass(frozen=True, slots=True)
class _Half:
    """One of the two tensors of a low-rank product."""

    tensor: nn.Parameter
    role: Role
    table: bool  # of an embedding: looked up, not multiplied


def adapter_tensors(model: nn.Module) -> dict[int, Role | None]:
    """`id(parameter)` -> LORA_DOWN, LORA_UP, or None for an adapter of another family.

    Args:
        model: Any module; only attributes are read.

    Returns:
        One entry per tensor of an adapter; whole layers in `modules_to_save` are none.

    Example:
        >>> layer = nn.Linear(8, 8)
        >>> layer.lora_down, layer.lora_up = nn.Linear(8, 2, bias=False), nn.Linear(2, 8)
        >>> found = adapter_tensors(layer)
        >>> str(found[id(layer.lora_down.weight)]), str(found[id(layer.lora_up.weight)])
        ('lora_down', 'lora_up')
        >>> found[id(layer.lora_up.bias)], id(layer.weight) in found
        (None, False)
    """
    found: dict[int, Role | None] = {}
    for module in model.modules():
        for parameter in _declared(module):
            found.setdefault(id(parameter), None)
        for down, up in _pairs(module):
            for half in (down, up):
                found[id(half.tensor)] = half.role
        for child in _children_of_pairs(module):
            found.setdefault(id(child), None)
    return found


def mark_adapters(model: nn.Module, infos: Mapping[int, ParamInfo]) -> dict[int, ParamInfo]:
    """The descriptions of a model's tensors with what is known of its adapters.

    Args:
        model: The model that `infos` describe, unwrapped.
        infos: `id(parameter)` -> what the module types say.

    Returns:
        The same entries; tensors of adapters have the flag `adapter`, and those of a low-rank
        product their role and fans: `fan_in` is the inputs of the layer for the down tensor (1
        for a lookup), the rank for the up tensor.
    """
    marked = dict(infos)
    for key in adapter_tensors(model):
        if key in marked:
            marked[key] = replace(marked[key], flags=marked[key].flags | {"adapter"})
    for module in model.modules():
        for pair in _pairs(module):
            for half in pair:
                info = marked.get(id(half.tensor))
                if info is not None:
                    fan_in, fan_out = _fans(info, half, pair)
                    marked[id(half.tensor)] = replace(
                        info, role=half.role, fan_in=fan_in, fan_out=fan_out
                    )
    return marked


def is_original(name: str) -> bool:
    """Whether a name is that of the frozen layer of which `modules_to_save` trains a copy.

    Example:
        >>> is_original("model.head.original_module.weight"), is_original("model.head.weight")
        (True, False)
    """
    return "original_module" in name.split(".")


def _declared(module: nn.Module) -> Iterator[nn.Parameter]:
    """What a module, or the tuner around it, says of its own tensors."""
    names: list[str] = []
    for attribute in ("adapter_layer_names", "other_param_names"):
        listed = getattr(module, attribute, None)
        names += [n for n in listed if isinstance(n, str)] if isinstance(listed, tuple) else []
    names = [name for name in names if name != _COPIES] if _has(module) else []
    names += _protocol(module)
    for name in names:
        yield from _parameters(_attribute(module, name))
    if isinstance(getattr(module, "peft_config", None), dict):  # prompts are no layers
        yield from _parameters(getattr(module, "prompt_encoder", None))
    if kind_of(module).__module__.startswith(
        "peft.tuners"
    ):  # what its own classes hold (LLaMA-Adapter)
        yield from module.parameters(recurse=False)


def _has(module: nn.Module) -> bool:
    return isinstance(getattr(module, "adapter_layer_names", None), tuple)


def _protocol(module: nn.Module) -> list[str]:
    """The names that torchtune's `adapter_params()` returns; other methods of that name are not."""
    method = getattr(module, "adapter_params", None)
    if not callable(method) or isinstance(method, nn.Module):
        return []
    try:
        listed = method()
    except Exception:  # another library's method of the same name: no evidence
        return []
    return [n for n in listed if isinstance(n, str)] if isinstance(listed, (list, tuple)) else []


def _attribute(module: nn.Module, path: str) -> object:
    found: object = module
    for part in path.split("."):
        found = getattr(found, part, None)
    return found


def _parameters(found: object) -> list[nn.Parameter]:
    if isinstance(found, nn.Parameter):
        return [found]
    return list(found.parameters()) if isinstance(found, nn.Module) else []


def _pairs(module: nn.Module) -> Iterator[tuple[_Half, _Half]]:
    """Down and up tensors of one module, by their names."""
    sides: dict[tuple[object, ...], dict[Role, _Half]] = {}
    for key, role, table, held in _halves(module):
        for adapter, tensor in _tensors(held):
            sides.setdefault((*key, adapter), {})[role] = _Half(tensor, role, table)
    for halves in sides.values():
        if len(halves) == 2:
            yield halves[Role.LORA_DOWN], halves[Role.LORA_UP]


def _halves(module: nn.Module) -> Iterator[tuple[tuple[object, ...], Role, bool, object]]:
    plain = _CLASS.search(kind_of(module).__name__) is not None
    for name, held in (*module._parameters.items(), *module._modules.items()):
        if held is None:
            continue
        if match := _NAMED.fullmatch(name):
            key = (match["before"], match["table"], match["after"])
            yield key, _SIDES[match["side"].lower()], match["table"] is not None, held
        elif plain and name.lower() in _SIDES:
            yield ("plain",), _SIDES[name.lower()], False, held


def _tensors(held: object) -> Iterator[tuple[str, nn.Parameter]]:
    """The tensors by adapter name: of a parameter, of a layer, or of a dictionary of either."""
    if isinstance(held, nn.Parameter):
        yield "", held
    elif isinstance(held, (nn.ModuleDict, nn.ParameterDict)):
        for name, inner in held.items():
            for _, tensor in _tensors(inner):
                yield name, tensor
    elif isinstance(weight := getattr(held, "weight", None), nn.Parameter):
        yield "", weight


def _children_of_pairs(module: nn.Module) -> Iterator[nn.Parameter]:
    """What else hangs below the two halves of a pair, as a bias."""
    paired = {id(half.tensor) for pair in _pairs(module) for half in pair}
    for _, _, _, held in _halves(module):
        inner = _parameters(held)
        if any(id(parameter) in paired for parameter in inner):
            yield from inner


def _fans(info: ParamInfo, half: _Half, pair: tuple[_Half, _Half]) -> tuple[float, float]:
    if not math.isnan(info.fan_in):  # a layer of its own, which the module types describe
        return info.fan_in, info.fan_out
    down, up = (other.tensor for other in pair)
    if _flat(down) is None or _flat(up) is None:
        return math.nan, math.nan
    rows, columns = half.tensor.shape
    # `x @ A @ B` stores (in, r) and (r, out); all libraries store (r, in) and (out, r).
    if down.shape[0] != up.shape[1] and down.shape[1] == up.shape[0]:
        rows, columns = columns, rows
    looked_up = half.table and half.role is Role.LORA_DOWN
    return (1.0 if looked_up else float(columns)), float(rows)


def _flat(tensor: Tensor) -> Tensor | None:
    return None if is_lazy(tensor) or tensor.ndim != 2 else tensor
