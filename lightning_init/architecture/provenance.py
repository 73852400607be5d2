"""Where a tensor's values come from: fresh, custom or trained; and what must not be written.

Exact markers (loader flags, BatchNorm counters, our own record) are read by `exact_provenance`.
The rest is statistics on values and runs only when a plan is made: `examine` compares each
tensor with what its layer's constructor draws, and looks for the structure that training leaves
and independent random numbers lack.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_init.architecture.layers import Default, describe_model
from lightning_init.architecture.names import named_states, named_tensors
from lightning_init.architecture.params import ParamInfo, Provenance, Role
from lightning_init.architecture.plain import plain

_RECORD = "_lightning_init"  # a plain attribute of the root module: never in its state_dict
_PICKED = 4096
_FEW = 16  # elements below which a tensor's spread says nothing
_ITERATIONS = 30  # of the power method; a full decomposition takes a hundred times longer
_PART = 512  # rows and columns of a tensor that the structure test looks at


@dataclass
class Record:
    """What lightning_init did to a model, kept on the model itself.

    Attributes:
        written: Canonical name -> checksum of the values right after we wrote them.
        trained: Whether an optimizer step has been seen.
        empty: Tensors that were seen on the meta device: memory that they get is arbitrary.
    """

    written: dict[str, str] = field(default_factory=dict)
    trained: bool = False
    empty: set[str] = field(default_factory=set)

    def holds(self, name: str, tensor: Tensor) -> bool:
        """Whether a tensor still has the values that we wrote."""
        return name in self.written and self.written[name] == checksum(tensor)


def checksum(tensor: Tensor) -> str:
    """Of up to 4096 values, evenly spaced: any update of the whole tensor changes it.

    Example:
        >>> w = torch.ones(3)
        >>> checksum(w) == checksum(w.clone()), checksum(w) == checksum(w * 1.0001)
        (True, False)
    """
    flat = tensor.detach().flatten()
    picked = flat[:: max(1, flat.numel() // _PICKED)].cpu()
    plain = torch.view_as_real(picked) if picked.is_complex() else picked
    return hashlib.sha1(plain.double().contiguous().numpy().tobytes()).hexdigest()


def record_of(model: nn.Module) -> Record:
    """The model's record; an empty one is attached if there is none.

    Example:
        >>> record_of(nn.Linear(1, 1)).trained
        False
    """
    record = model.__dict__.get(_RECORD)
    if not isinstance(record, Record):
        record = model.__dict__[_RECORD] = Record()
    return record


def note_empty(model: nn.Module) -> None:
    """Remember which tensors are on the meta device, for when they are not any more."""
    on_meta = {names[0] for names, tensor in named_tensors(model) if tensor.is_meta}
    record_of(model).empty |= on_meta


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
        "sharded": hasattr(parameter, "device_mesh"),
        "complex": parameter.is_complex(),
        "quantized": not dense or not (plain or hasattr(parameter, "device_mesh")),
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
    if record_of(model).trained:
        return {id(parameter) for parameter in parameters}
    found = {id(p) for p in parameters if getattr(p, "_is_hf_initialized", False) is True}
    for module in model.modules():
        counter = getattr(module, "num_batches_tracked", None)
        if isinstance(counter, Tensor) and not counter.is_meta and int(counter) > 0:
            found |= {id(parameter) for parameter in module.parameters()}
    return found


def examine(model: nn.Module, infos: tuple[ParamInfo, ...]) -> tuple[ParamInfo, ...]:
    """Set each tensor's provenance from its values.

    A tensor is *fresh* if we wrote it last or if it looks like its layer's default. Otherwise it
    is *custom*, unless the model looks trained: then it is *pretrained*. A model looks trained if
    BatchNorm has counted batches, if an optimizer has stepped on these very tensors, or if a
    large weight has structure that independent draws cannot have.

    Args:
        model: The model that `infos` describe, unwrapped.
        infos: From `analyze`.

    Returns:
        The same entries with `provenance` decided.
    """
    tensors, states = dict(named_tensors(model)), dict(named_states(model))
    with plain(model) as computed:
        described = describe_model(model)
        seen = {names[0]: tensor for names, tensor in named_tensors(model)}
    # Where the weight is not simply made of its one original (spectral_norm), that one is as built.
    alone = {id(weight.primary) for weight, _ in computed if len(weight.originals) == 1}
    record = record_of(model)
    unlike: dict[tuple[str, ...], Tensor] = {}
    for info in infos:
        tensor = tensors[info.names]
        value = seen.get(info.name, tensor)
        # Memory that to_empty has given, and that nobody has written since, holds anything.
        empty = info.name in record.empty and not tensor.is_meta and tensor._version == 0
        skipped = "companion" in info.flags or is_lazy(tensor) or empty
        if (
            info.provenance == "pretrained"
            or skipped
            or record.holds(info.name, states[info.names])
        ):
            continue
        fact = described[id(value)][0] if id(value) in described else None
        defaults = {fact.default, fact.tied_default} if fact else {None}
        values = (value, tensor) if id(tensor) in alone else (value,)
        as_built = any(
            looks_default(either, default, info.padding_idx)
            for default in defaults
            for either in values
        )
        # A few small steps leave a tensor within what its constructor draws.
        if not as_built or _stepped([tensor]):
            unlike[info.names] = value
    structured = {names for names, tensor in unlike.items() if has_structure(tensor)}
    matrices = {i.names for i in infos if i.role in (Role.WEIGHT, Role.RECURRENT)}
    trained = (
        any(info.provenance == "pretrained" for info in infos)
        or bool(structured & matrices)
        or _stepped([tensors[names] for names in unlike if names in matrices])
    )

    def decide(info: ParamInfo) -> Provenance:
        if info.provenance == "pretrained" or info.names in structured:
            return "pretrained"
        if info.names not in unlike:
            return "fresh"
        return "pretrained" if trained else "custom"

    decided = [replace(info, provenance=decide(info)) for info in infos]
    # A bias that training moved little looks fresh, but its weight beside it does not.
    owners = {_owner(info) for info in decided if info.provenance == "pretrained"}
    return tuple(
        replace(info, provenance="pretrained")
        if _owner(info) in owners and not record.holds(info.name, states[info.names])
        else info
        for info in decided
    )


def _owner(info: ParamInfo) -> str:
    return info.name.rpartition(".")[0]


def looks_default(tensor: Tensor, default: Default | None, padding_idx: int | None = None) -> bool:
    """Whether a tensor could be what its layer's constructor drew.

    A uniform default has exact bounds, which training crosses at once; its spread must agree
    within 6 standard errors. An unknown default counts as "no".

    Example:
        >>> fresh = nn.Linear(100, 100).weight
        >>> looks_default(fresh, Default("uniform", 0.1))
        True
        >>> looks_default(fresh * 1.01, Default("uniform", 0.1))
        False
    """
    if default is None or is_lazy(tensor) or tensor.is_meta or not tensor.is_floating_point():
        return default is not None
    values = tensor.detach()[:_PART] if tensor.ndim else tensor.detach()
    values = values.flatten(1)[:, :_PART] if values.ndim > 1 else values
    if default.kind == "constant":
        return bool((values == default.value).all())
    if padding_idx is not None and tensor.ndim == 2 and tensor.shape[0] > 1:
        rows = torch.arange(values.shape[0], device=values.device)
        values = values[rows != padding_idx % tensor.shape[0]]
    values, n = values.float(), values.numel()
    if default.kind == "uniform":
        slack = 1 + 2 ** (-7 if tensor.dtype in (torch.bfloat16, torch.float16) else -20)
        if n and float(values.abs().max()) > default.value * slack:
            return False
    expected = default.value / (math.sqrt(3) if default.kind == "uniform" else 1)
    rms = float(torch.linalg.vector_norm(values)) / math.sqrt(max(n, 1))
    if n < _FEW:  # no statistics on a handful of numbers: within 6 sigma is all one can ask
        return not n or float(values.abs().max()) <= 6 * expected
    spread = 0.9 if default.kind == "uniform" else 2.0  # variance of (w / std)^2
    if abs(rms**2 / expected**2 - 1) > 6 * math.sqrt(spread / max(n, 1)):
        return False
    return abs(float(values.mean())) <= 6 * expected / math.sqrt(max(n, 1))


def has_structure(tensor: Tensor) -> bool:
    """Whether a tensor of two or more dimensions differs from independent equal draws.

    Looks at a part of at most 512 x 512: excess kurtosis above 0.3, row or column means or
    variances that spread 8 standard errors too widely, or a singular value 6 Tracy-Widom units
    beyond the Marchenko-Pastur edge.

    Returns:
        False for independent entries of equal variance and for orthogonal and constant tensors.

    References:
        Marchenko & Pastur (1967); Johnstone (2001), Annals of Statistics 29(2), eq. 1.3-1.4.

    Example:
        >>> noise = torch.randn(128, 128, generator=torch.Generator().manual_seed(0))
        >>> has_structure(noise), has_structure(noise + noise[:, :1])
        (False, True)
    """
    if tensor.ndim < 2 or tensor.is_meta or is_lazy(tensor) or not tensor.is_floating_point():
        return False
    matrix = tensor.detach()[:_PART].flatten(1)[:, :_PART].float().cpu()
    rows, columns = matrix.shape
    if min(rows, columns) < 8:
        return False
    std = float(matrix.std())
    if not math.isfinite(std) or std <= 1e-6 * float(matrix.abs().max()):  # constant, or rounding
        return False
    matrix = (matrix - matrix.mean()) / std
    n = rows * columns
    if float((matrix**4).mean()) - 3 > max(0.3, 8 * math.sqrt(24 / n)):
        return True
    for axis, count, size in ((1, rows, columns), (0, columns, rows)):
        means, variances = matrix.mean(axis), matrix.var(axis)
        kurtosis = max(float((matrix**4).mean()), 1.0)
        for values, variance in ((means, 1 / size), (variances, (kurtosis - 1) / size)):
            spread = float(values.var()) / max(variance, 1e-12)
            if (spread - 1) / math.sqrt(2 / count) > 8:
                return True
    top = _top_singular_value(matrix) ** 2
    edge = (math.sqrt(rows - 1) + math.sqrt(columns)) ** 2
    unit = math.sqrt(edge) * (1 / math.sqrt(rows - 1) + 1 / math.sqrt(columns)) ** (1 / 3)
    return bool((top - edge) / unit > 6)


def _top_singular_value(matrix: Tensor) -> float:
    """By power iteration: never above the true value, and a spike beyond the bulk shows at once."""
    vector = torch.ones(matrix.shape[1]) + torch.arange(matrix.shape[1]) % 7
    for _ in range(_ITERATIONS):
        vector = matrix.T @ (matrix @ vector)
        vector /= torch.linalg.vector_norm(vector)
    return float(torch.linalg.vector_norm(matrix @ vector))


def _stepped(weights: list[Tensor]) -> bool:
    """Whether most of these tensors were written many times, as an optimizer does."""
    stepped = sum(tensor._version > 4 for tensor in weights)
    return stepped * 2 > len(weights)
