"""What a parameter is called, whatever wraps the model.

Names key everything that lasts: the draw of a tensor, a plan's entries, reports, records.
"""

from __future__ import annotations

from torch import Tensor, nn

from lightning_init.architecture.parametrized import Derived, derived

_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}


def canonical(name: str) -> str:
    """A parameter's name without the parts that wrappers insert.

    Example:
        >>> canonical("net._orig_mod.0.weight")
        'net.0.weight'
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def unwrap(model: nn.Module) -> nn.Module:
    """The user's model inside data-parallel and compile wrappers.

    Example:
        >>> net = nn.Linear(1, 1)
        >>> unwrap(nn.DataParallel(net)) is net
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, but got {model!r}")
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def named_tensors(model: nn.Module) -> list[tuple[tuple[str, ...], nn.Parameter]]:
    """Each parameter once, with all its canonical names, in registration order.

    A weight that is computed from parameters gives its name to the primary of them, before the
    name that this one has itself.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> net[1].weight = net[0].weight
        >>> [names for names, _ in named_tensors(net)]
        [('0.weight', '1.weight'), ('0.bias',), ('1.bias',)]
        >>> layer = nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2, bias=False))
        >>> [names for names, _ in named_tensors(layer)]
        [('weight', 'parametrizations.weight.original')]
    """
    model = unwrap(model)
    computed = _computed(model)
    names: dict[int, dict[str, None]] = {}
    raw: dict[int, list[str]] = {}
    owners: dict[int, nn.Parameter] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        key, own = id(parameter), canonical(name)
        owners[key] = parameter
        names.setdefault(key, {})[computed.get(own, own)] = None
        if own in computed:
            raw.setdefault(key, []).append(own)
    return [((*names[key], *raw.get(key, ())), owners[key]) for key in names]


def named_weights(model: nn.Module) -> dict[tuple[str, ...], list[Derived]]:
    """The computed weights by the names of their primary parameters.

    Example:
        >>> list(named_weights(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))))
        [('weight', 'parametrizations.weight.original1')]
    """
    found: dict[int, list[Derived]] = {}
    for weight in derived(unwrap(model)):
        found.setdefault(id(weight.primary), []).append(weight)
    if not found:
        return {}
    return {names: found[id(p)] for names, p in named_tensors(model) if id(p) in found}


def named_states(model: nn.Module) -> list[tuple[tuple[str, ...], Tensor]]:
    """As `named_tensors`, but a computed weight with all the numbers behind it, in one row.

    Example:
        >>> layer = nn.utils.parametrizations.orthogonal(nn.Linear(3, 2, bias=False))
        >>> [tensor.shape for _, tensor in named_states(layer)]  # 6 numbers and a 3 x 3 basis
        [torch.Size([15])]
    """
    weights = named_weights(model)
    return [
        (names, weights[names][0].stored() if names in weights else tensor)
        for names, tensor in named_tensors(model)
    ]


def _computed(model: nn.Module) -> dict[str, str]:
    """Name of the primary parameter behind a computed weight -> name of the weight."""
    owned: dict[int, list[Derived]] = {}
    for weight in derived(model):
        owned.setdefault(id(weight.module), []).append(weight)
    found = {}
    for prefix, module in model.named_modules(remove_duplicate=False) if owned else ():
        for weight in owned.get(id(module), ()):
            for name, parameter in module.named_parameters(prefix, remove_duplicate=False):
                if parameter is weight.primary:
                    found[canonical(name)] = canonical(f"{prefix}.{weight.name}".lstrip("."))
    return found


def drawing_name(names: tuple[str, ...]) -> str:
    """The name that keys a tensor's draw: the first in the alphabet, as if nothing computed it.

    Example:
        >>> drawing_name(("weight", "parametrizations.weight.original1"))
        'weight'
    """
    plain = [name for name in names if "parametrizations" not in name.split(".")]
    return min(plain or names)


def check_forward(forward: object) -> None:
    """Make sure that `forward` can be called.

    Raises:
        TypeError: If it cannot.
    """
    if not callable(forward):
        raise TypeError(
            "forward must be a call without arguments that runs the model once, e.g. "
            f"lambda: model(batch), but got {type(forward).__name__}"
        )
