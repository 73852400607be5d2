"""Exact markers of where a tensor's values come from, and of what must not be written.

What is exact is here: loader flags, BatchNorm counters, our own record. `analyze` knows no more.
Evidence from values is in `judge.py`, and is asked for only when a plan is made.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_init.architecture.names import named_tensors
from lightning_init.architecture.sharded import is_sharded, whole

_RECORD = "_lightning_init"  # a plain attribute of the root module: never in its state_dict
_PICKED = 4096
_CASTS = (torch.float32, torch.bfloat16, torch.float16)  # more precision changes no value


@dataclass
class Record:
    """What lightning_init did to a model, kept on the model itself.

    Attributes:
        written: Canonical name -> `checksums` of the values right after we wrote them.
        trained: Whether an optimizer step has been seen.
        empty: Tensors that were seen without values: the memory that they have is arbitrary.
    """

    written: dict[str, frozenset[str]] = field(default_factory=dict)
    trained: bool = False
    empty: set[str] = field(default_factory=set)

    def holds(self, name: str, tensor: Tensor) -> bool:
        """Whether a tensor still has the values that we wrote, be it in another precision."""
        return name in self.written and checksum(tensor) in self.written[name]


def checksum(tensor: Tensor) -> str:
    """Of up to 4096 values, evenly spaced: any update of the whole tensor changes it.

    Example:
        >>> w = torch.ones(3)
        >>> checksum(w) == checksum(w.clone()), checksum(w) == checksum(w * 1.0001)
        (True, False)
    """
    return _sum(_picked(tensor))


def checksums(tensor: Tensor) -> frozenset[str]:
    """The checksum of a tensor, and those that it will have once it is cast to less precision.

    Example:
        >>> w = torch.tensor([1.0, 2.1])
        >>> checksum(w.bfloat16()) in checksums(w), checksum(w.bfloat16() * 2) in checksums(w)
        (True, False)
    """
    picked = _picked(tensor)
    return frozenset({_sum(picked), *(_sum(picked.to(dtype)) for dtype in _CASTS)})


def _picked(tensor: Tensor) -> Tensor:
    flat = whole(tensor).flatten()
    picked = flat[:: max(1, flat.numel() // _PICKED)].cpu()
    return torch.view_as_real(picked) if picked.is_complex() else picked


def _sum(values: Tensor) -> str:
    return hashlib.sha1(values.double().contiguous().numpy().tobytes()).hexdigest()


def record_of(model: nn.Module) -> Record:
    """The model's record; an empty one is attached if there is none.

    Example:
        >>> record_of(nn.Linear(1, 1)).trained
        False
    """
    record = model.__dict__[_RECORD] = known_record(model)
    return record


def known_record(model: nn.Module) -> Record:
    """The model's record to read: an empty one, which is not attached, if there is none."""
    record = model.__dict__.get(_RECORD)
    return record if isinstance(record, Record) else Record()


def note_empty(model: nn.Module) -> None:
    """Remember which tensors have no values: on the meta device, or made with `empty_init=True`.

    Without an init, tensors have been written zero times, and of PyTorch's own matrices most hold
    what weights never do: NaN, infinity, numbers above 1e4, or nothing but zeros. Copied and loaded
    tensors may have been written zero times as well, but hold weights.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> layer.weight, layer.bias = nn.Parameter(torch.full((2, 2), 1e20)), nn.Parameter(torch.ones(2))
        >>> note_empty(layer)
        >>> sorted(record_of(layer).empty)
        ['bias', 'weight']
    """
    named = dict(named_tensors(model))
    found = {names[0] for names, tensor in named.items() if tensor.is_meta}
    own = {
        id(parameter)
        for module in model.modules()
        if type(module).__module__.startswith("torch.nn.modules.")
        for parameter in module.parameters(recurse=False)
    }
    unwritten = {
        names[0]: tensor
        for names, tensor in named.items()
        if not (is_lazy(tensor) or tensor.is_meta or hasattr(tensor, "device_mesh"))
        and not tensor._version
        and tensor.is_floating_point()
        and tensor.numel()
    }
    matrices = [t for t in unwritten.values() if id(t) in own and t.ndim > 1]
    if 2 * sum(map(_is_no_weight, matrices)) > len(matrices):
        found |= {name for name, t in unwritten.items() if id(t) in own or _is_no_weight(t)}
    if found:
        record_of(model).empty |= found


def _is_no_weight(tensor: Tensor) -> bool:
    low, high = (float(value) for value in torch.aminmax(_picked(tensor).float()))
    if tensor.ndim < 2 and low == high == 0:  # as biases are
        return False
    return not 1e-30 < max(-low, high) < 1e4


def flags_of(names: tuple[str, ...], parameter: nn.Parameter) -> frozenset[str]:
    """What forbids or complicates writing a tensor."""
    parts = {part for name in names for part in name.split(".")}
    # Legacy weight_norm, spectral_norm and pruning recompute the weight from these.
    derived = any(part.endswith(("_orig", "weight_g", "weight_v")) for part in parts)
    plain = type(parameter.data) in (Tensor, nn.Parameter)
    dense = parameter.is_floating_point() or parameter.is_complex()
    found = {
        "tied": len(names) > 1,
        "frozen": not parameter.requires_grad,
        "adapter": any(part.lower().startswith("lora_") for part in parts),
        "lazy": is_lazy(parameter),
        "meta": parameter.is_meta and not is_lazy(parameter),
        "sharded": is_sharded(parameter),
        "complex": parameter.is_complex(),
        "quantized": not dense or not (plain or is_sharded(parameter)),
        "parametrized": "parametrizations" in parts or derived,
    }
    if found["lazy"]:
        found["quantized"] = False
    return frozenset(flag for flag, present in found.items() if present)


def exact_provenance(model: nn.Module) -> set[int]:
    """Ids of the parameters that an exact marker says are trained or loaded.

    Markers: our own record of a training run; the flag that transformers' loader sets on each
    tensor it loads; BatchNorm counters, which count training batches.
    """
    parameters = list(model.parameters())
    if known_record(model).trained:
        return {id(parameter) for parameter in parameters}
    found = {id(p) for p in parameters if _marked(p)}
    for module in model.modules():
        counter = getattr(module, "num_batches_tracked", None)
        if isinstance(counter, Tensor) and not counter.is_meta and int(counter) > 0:
            found |= {id(parameter) for parameter in module.parameters()}
    return found


def missing_from_checkpoint(model: nn.Module) -> set[int]:
    """Ids of the tensors that transformers' loader did not find in a model's checkpoint.

    It marks those that it loads. Where most are marked, and nothing has been written to them
    since, the others are new.
    """
    found: set[int] = set()
    for module in model.modules():
        if not hasattr(type(module), "from_pretrained"):
            continue
        mine = list(module.parameters())
        marked = [p for p in mine if _marked(p)]
        if len(marked) * 2 > len(mine) and not any(p._version for p in marked):
            found |= {id(p) for p in mine if not _marked(p)}
    return found


def _marked(parameter: nn.Parameter) -> bool:
    return getattr(parameter, "_is_hf_initialized", False) is True
