"""Which modules of a model are worth reading, and which follow each other through its depth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from lightning_init.architecture.layers import describe, is_norm, module_traits
from lightning_init.architecture.names import canonical
from lightning_init.architecture.params import Role
from lightning_init.architecture.sharded import kind_of


def watched(model: nn.Module) -> list[tuple[str, nn.Module, str]]:
    """The modules worth reading: (name, module, group), in registration order.

    Weight layers, and the repeated blocks of the model. Blocks form one group; without blocks,
    the weight layers of the most frequent class do, unless the model attends.

    Example:
        >>> net = nn.Sequential(*[nn.Linear(2, 2) for _ in range(3)])
        >>> [(name, group) for name, _, group in watched(net)]
        [('0', 'Linear'), ('1', 'Linear'), ('2', '')]
    """
    modules = [(canonical(name), module) for name, module in model.named_modules()]
    inside = {
        id(child)
        for _, module in modules
        if isinstance(module, (nn.MultiheadAttention, ParametrizationList))
        for child in (
            module.children() if isinstance(module, nn.MultiheadAttention) else module.modules()
        )
    }
    layers = [
        (name, module)
        for name, module in modules
        if owns_weights(module) and id(module) not in inside
    ]
    blocks = repeated_blocks(model)
    if not blocks and "attention" in module_traits(model):
        chosen, label = set(), ""  # query, key and value do not follow each other
    elif blocks:
        chosen = {id(module) for module in blocks}
        label = kind_of(blocks[0]).__name__
    else:
        counts = Counter(kind_of(module).__name__ for _, module in layers)
        label = counts.most_common(1)[0][0] if counts else ""
        # The last layer is the output, which has a scale of its own.
        chain = [module for _, module in layers[:-1] if kind_of(module).__name__ == label]
        chosen = {id(module) for module in chain}
    wanted = {id(module) for _, module in layers} | {id(module) for module in blocks}
    return [
        (name, module, label if id(module) in chosen else "")
        for name, module in modules
        if id(module) in wanted
    ]


def owns_weights(module: nn.Module) -> bool:
    """Whether a module has matrices of its own; a lookup table has not."""
    facts = describe(module).values()
    if any(fact.role in (Role.WEIGHT, Role.RECURRENT) for fact in facts):
        return True
    if any(fact.role is Role.EMBEDDING for fact in facts):
        return False
    return any(
        not is_lazy(p) and p.ndim >= 2 and not p.is_meta for p in module.parameters(recurse=False)
    )


def norm_layers(model: nn.Module, patterns: Iterable[str] = ()) -> dict[str, nn.Module]:
    """The outermost norms by name: a block that holds matrices is none, whatever it is called.

    A pattern on names that finds no norm may mean one of the user's own, whose class is called
    otherwise: any module that is not PyTorch's, and has neither matrices nor parts.

    Example:
        >>> list(norm_layers(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))))
        ['1']
    """
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if is_norm(module) and not inside and not any(map(owns_weights, module.modules())):
            found[name] = module
    for key in [key for key in patterns if not any(fnmatchcase(name, key) for name in found)]:
        found |= {
            name: module
            for name, module in model.named_modules()
            if fnmatchcase(name, key)
            and not kind_of(module).__module__.startswith("torch.nn.")
            and not any(True for _ in module.children())
            and not owns_weights(module)
        }
    return found


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The outermost composite modules of one class of which a container holds three or more."""
    candidates: dict[type[nn.Module], list[nn.Module]] = {}
    for container in model.modules():
        if not isinstance(container, (nn.ModuleList, nn.Sequential)):
            continue
        kinds = Counter(kind_of(child) for child in container)
        for child in container:
            composite = any(owns_weights(m) for m in child.modules() if m is not child)
            if kinds[kind_of(child)] >= 2 and composite and not owns_weights(child):
                candidates.setdefault(kind_of(child), []).append(child)
    sized = {
        kind: sum(p.numel() for block in blocks for p in block.parameters())
        for kind, blocks in candidates.items()
        if len(blocks) >= 3
    }
    return candidates[max(sized, key=sized.__getitem__)] if sized else []
