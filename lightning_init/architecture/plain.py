"""A model without parametrizations, for a while: computed weights are ordinary parameters.

Whoever looks at a model or calibrates it does so inside `plain(model)` and need not know that a
weight is computed from others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.utils import parametrize

from lightning_init.architecture.parametrized import Derived, derived, without_grad
from lightning_init.architecture.preserve import keep_module


@contextmanager
def plain(model: nn.Module) -> Iterator[list[tuple[Derived, nn.Parameter]]]:
    """Inside, computed weights are ordinary parameters; afterwards they are computed again.

    Yields:
        Each computed weight with the parameter that stands in for it. What is written into that
        one is lost unless it is assigned after the block.

    Example:
        >>> layer = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
        >>> with plain(layer):
        ...     [name for name, _ in layer.named_parameters()]
        ['bias', 'weight']
    """
    weights = derived(model)
    stand_ins: dict[int, nn.Parameter] = {}
    for weight in weights:  # of tied weights there is one
        key = id(weight.primary)
        if key not in stand_ins:
            grad = any(original.requires_grad for original in weight.originals)
            stand_ins[key] = nn.Parameter(weight.value(), requires_grad=grad)
            stand_ins[key].__dict__.update(weight.primary.__dict__)  # marks of a loader
    hidden = [(weight, stand_ins[id(weight.primary)]) for weight in weights]
    undo = [keep_module(module) for module in {id(w.module): w.module for w in weights}.values()]
    try:
        for weight, stand_in in hidden:
            _hide(weight, stand_in)
        yield hidden
    finally:
        for restore in without_grad(undo):
            restore()


def _hide(weight: Derived, stand_in: nn.Parameter) -> None:
    module = weight.module
    if "_flat_weights" in module.__dict__:  # of an RNN, which writes into that list
        module.__dict__["_flat_weights"] = list(module.__dict__["_flat_weights"])
    # What is taken out of the tables stays in sight, for a forward pass that reads it.
    if isinstance(weight.rule, nn.Module):
        if "parametrizations" in module._modules:
            module.__class__ = parametrize.type_before_parametrizations(module)
            module.__dict__["parametrizations"] = module._modules.pop("parametrizations")
    else:
        hooks, originals = module._forward_pre_hooks, {id(o) for o in weight.originals}
        for key in [key for key, hook in hooks.items() if hook is weight.rule]:
            del hooks[key]
        for name in [name for name, p in module._parameters.items() if id(p) in originals]:
            module.__dict__[name] = module._parameters.pop(name)
    setattr(module, weight.name, stand_in)
