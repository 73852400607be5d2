"""Every tensor of a model as a whole, one after the other, whoever holds its parts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_init.architecture.names import named_states
from lightning_init.architecture.sharded import whole


def gathered(model: nn.Module) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """Names and values of each tensor by name; all processes call this, one is whole at a time.

    Args:
        model: The model; where FSDP1 wraps it, what FSDP1 has made of it.

    Example:
        >>> [names for names, _ in gathered(nn.Linear(1, 1))]
        [('bias',), ('weight',)]
    """
    pieces = _pieces(model)
    for names, tensor in sorted(named_states(model), key=lambda item: item[0]):
        if is_lazy(tensor):
            continue
        yield names, _joined(tensor, *pieces[id(tensor)]) if id(tensor) in pieces else whole(tensor)


def _pieces(model: nn.Module) -> dict[int, tuple[torch.Size, Any]]:
    """`id` of each tensor that FSDP1 has cut up -> its shape and the processes that share it."""
    found = {}
    for module in model.modules():
        handle: Any = getattr(module, "_handle", None)
        flat: Any = getattr(handle, "flat_param", None)
        if getattr(flat, "_params", None) and handle.uses_sharded_strategy:
            for tensor, shape in zip(flat._params, flat._shapes, strict=True):
                found[id(tensor)] = (shape, handle.process_group)
    return found


def _joined(tensor: Tensor, shape: torch.Size, group: Any) -> Tensor:
    mine, count = tensor.detach().flatten(), torch.distributed.get_world_size(group)
    sizes = [mine.new_zeros(1, dtype=torch.long) for _ in range(count)]
    torch.distributed.all_gather(sizes, mine.new_full((1,), mine.numel(), dtype=torch.long), group)
    longest = max(map(int, sizes))
    parts = [mine.new_zeros(longest) for _ in range(count)]
    padded = torch.cat([mine, mine.new_zeros(longest - mine.numel())])
    torch.distributed.all_gather(parts, padded, group)
    return torch.cat([part[: int(n)] for part, n in zip(parts, sizes, strict=True)]).view(shape)
