"""Tensors of which each process holds a part: DTensors, of FSDP2 and tensor parallelism; FSDP1.

What gathers a tensor is called by all processes, in the same order, and gives all of them the same
numbers: one tensor at a time is whole.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

Undo = Callable[[], None]


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor.

    Example:
        >>> is_sharded(torch.zeros(2))
        False
    """
    return hasattr(tensor, "device_mesh") and hasattr(tensor, "full_tensor")


def is_flat(tensor: Tensor) -> bool:
    """Whether FSDP1 has made a tensor a piece of a larger one; a process then sees its own part.

    Example:
        >>> is_flat(torch.zeros(1))
        False
    """
    return bool(getattr(tensor, "_fsdp_flattened", False))


def any_sharded(tensors: Iterable[Tensor]) -> bool:
    """Whether one of them is a DTensor."""
    return any(map(is_sharded, tensors))


def whole(tensor: Tensor) -> Tensor:
    """A tensor's values, detached; those of a DTensor are gathered from all processes.

    Example:
        >>> whole(torch.ones(2, requires_grad=True))
        tensor([1., 1.])
    """
    sharded: Any = tensor
    if not is_sharded(tensor) or tensor.is_meta:
        return tensor.detach()
    with _unseen():
        gathered: Tensor = sharded.full_tensor().detach()
    return gathered


def norm_of(tensor: Tensor) -> Tensor:
    """Euclidean norm of all of a DTensor, as float32; numbers are exchanged, not tensors."""
    with _unseen():
        dtype = None if tensor.dtype is torch.float64 else torch.float32
        size: Any = torch.linalg.vector_norm(tensor.detach(), dtype=dtype)
        found: Tensor = size.full_tensor().float()
    return found


def local(tensor: Tensor) -> Tensor:
    """The part that this process holds, which shares the tensor's memory."""
    if not is_sharded(tensor):
        return tensor.detach()
    with _unseen():
        sharded: Any = tensor.detach()
        part: Tensor = sharded.to_local()
    return part


def everywhere(holds: bool, tensor: Tensor) -> bool:
    """Whether something holds of the parts that all processes have of a tensor.

    Example:
        >>> everywhere(True, torch.zeros(2))
        True
    """
    if not is_sharded(tensor):
        return holds
    flag = torch.tensor([int(holds)], device=local(tensor).device)
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MIN)
    return bool(flag)


def fill_(tensor: Tensor, values: Tensor) -> None:
    """Write values into a tensor; of a DTensor, each process writes its own part.

    Args:
        tensor: The tensor.
        values: Of its whole shape, the same in all processes.

    Example:
        >>> fill_(target := torch.zeros(2), torch.ones(2))
        >>> target
        tensor([1., 1.])
    """
    with torch.no_grad():
        if not is_sharded(tensor):
            tensor.copy_(values)
            return
        from torch.distributed.tensor import distribute_tensor

        target: Any = tensor
        # All processes have drawn the same: nothing is sent.
        known = inspect.signature(distribute_tensor).parameters
        own: dict[str, Any] = {"src_data_rank": None} if "src_data_rank" in known else {}
        values = values.to(target.dtype)
        part = distribute_tensor(values, target.device_mesh, target.placements, **own)
        local(tensor).copy_(part.to_local())
        torch.autograd.graph.increment_version(tensor)


def kind_of(module: nn.Module) -> type[nn.Module]:
    """A module's class as the user wrote it: FSDP2 gives a module one of its own.

    Example:
        >>> kind_of(nn.Linear(1, 1)).__name__
        'Linear'
    """
    kind = type(module)
    if not _is_unit(module):
        return kind
    at = getattr(kind, "_orig_cls_mro_index", 2)
    found: type[nn.Module] = kind.__mro__[at]
    return found


def in_use(model: nn.Module) -> dict[int, nn.Parameter]:
    """`id` of each tensor that is seen in a forward pass in place of a sharded one -> that one.

    FSDP2 computes with gathered parameters, which are other objects. All processes call this.
    """
    found: dict[int, nn.Parameter] = {}
    for unit in _units(model):
        before = dict(unit.named_parameters(remove_duplicate=False))
        unit.unshard()
        for name, parameter in unit.named_parameters(remove_duplicate=False):
            if parameter is not before[name]:
                found[id(parameter)] = before[name]
        unit.reshard()
    return found


def rest(model: nn.Module) -> None:
    """After a forward pass without a backward pass: FSDP2 holds parts again, and forgets it."""
    units = _units(model)
    for unit in units:
        if hasattr(unit, "reset_iter_state"):  # since PyTorch 2.13
            with suppress(RuntimeError, AttributeError):  # not the outermost one; not yet run
                unit.reset_iter_state()
        unit.reshard()


def hush(model: nn.Module) -> Undo:
    """What FSDP2 does before and after a module runs is seen by no `TorchFunctionMode`.

    Returns:
        A call that ends it.
    """
    undo: list[Undo] = []
    for unit in _units(model):
        for table in (unit._forward_pre_hooks, unit._forward_hooks):
            for key, hook in table.items():
                if getattr(hook, "__module__", "").startswith("torch.distributed"):
                    table[key] = _hushed(hook)
                    undo.append(partial(table.__setitem__, key, hook))

    def end() -> None:
        for each in undo:
            each()

    return end


def _hushed(hook: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        with torch._C.DisableTorchFunction():
            return hook(*args, **kwargs)

    return call


@contextmanager
def _unseen() -> Iterator[None]:
    """DTensors work here, wherever this is called from, and no mode sees it."""
    tls, excluded = torch._C, torch._C._dispatch_tls_local_exclude_set()
    for key in (tls.DispatchKey.Python, tls.DispatchKey.PythonTLSSnapshot):
        excluded = excluded.remove(key)
    included = tls._dispatch_tls_local_include_set()
    with (
        torch.no_grad(),
        tls.DisableTorchFunction(),
        tls._ForceDispatchKeyGuard(included, excluded),
        _disable_current_modes(),
    ):
        yield


def _units(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if _is_unit(module)]


def _is_unit(module: nn.Module) -> bool:
    """Whether FSDP2 manages a module."""
    return hasattr(type(module), "unshard") and hasattr(type(module), "reshard")
