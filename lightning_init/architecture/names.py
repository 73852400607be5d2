"""What a parameter is called, whatever wraps the model.

Names key everything that lasts: the draw of a tensor, a plan's entries, reports, records.
"""

from __future__ import annotations

from torch import nn

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

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> net[1].weight = net[0].weight
        >>> [names for names, _ in named_tensors(net)]
        [('0.weight', '1.weight'), ('0.bias',), ('1.bias',)]
    """
    names: dict[int, list[str]] = {}
    owners: dict[int, nn.Parameter] = {}
    for name, parameter in unwrap(model).named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(canonical(name))
        owners[id(parameter)] = parameter
    return [(tuple(names[key]), owners[key]) for key in names]


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
