"""Undo what running code does to plain Python state: containers, arrays, objects, generators.

Used for what a model or a data set holds besides parameters: counters, caches, queues, lists of
outputs, generators of its own. What cannot be put back is left as it is: iterators and open files.
"""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_init.architecture.sharded import is_flat, is_sharded, local

Undo = Callable[[], None]

_MANY = 4000  # values that are looked at; what is reachable beyond is data
_LONG = 256  # elements of one container that are looked into
_STEPPING = (torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler, torch.amp.GradScaler)
_FRAMEWORKS = {"torch", "lightning", "pytorch_lightning", "lightning_fabric", "torchmetrics"}


def keep_state(roots: Iterable[object], largest: int = 2**16) -> list[Undo]:
    """Note the state of everything that some values hold, nearest first.

    Args:
        roots: The values; modules and parameters among them and below are skipped.
        largest: Elements of the largest tensor or array that is copied; larger ones are data.

    Returns:
        Calls that put each value back.

    Example:
        >>> own, log = random.Random(0), {"seen": [1]}
        >>> undo = keep_state([own, log])
        >>> drawn, _ = own.random(), log["seen"].append(2)
        >>> for put_back in undo:
        ...     put_back()
        >>> own.random() == drawn, log
        (True, {'seen': [1]})
    """
    found: list[Undo] = []
    queue, seen = deque(roots), set[int]()
    while queue and len(seen) < _MANY:
        value = queue.popleft()
        if id(value) in seen or isinstance(value, (str, bytes, int, float, type(None))):
            continue
        seen.add(id(value))
        undo, inner = _keep(value, largest)
        found += [] if undo is None else [undo]
        queue.extend(islice(inner, _LONG))
    return found


def _keep(value: Any, largest: int) -> tuple[Undo | None, Iterable[object]]:
    """How to put one value back, and what it holds."""
    if isinstance(value, (nn.Module, nn.Parameter, type, FunctionType, MethodType, ModuleType)):
        return None, ()
    if isinstance(value, Tensor):
        return keep_tensor(value) if value.numel() <= largest else None, ()
    if isinstance(value, dict):
        items = dict(value)

        def restore_dict() -> None:
            value.clear()
            for key, item in items.items():
                value[key] = item

        return restore_dict, items.values()
    if isinstance(value, (list, deque)):
        elements = list(value)

        def restore_list() -> None:
            value.clear()
            value.extend(elements)

        return restore_list, elements
    if isinstance(value, set):
        members = set(value)

        def restore_set() -> None:
            value.clear()
            value.update(members)

        return restore_set, ()
    if isinstance(value, tuple):
        return None, value
    special = _keep_generator(value) or _keep_array(value, largest)
    if special is not None:
        return special, ()
    return _keep_object(value)


def keep_tensor(value: Tensor) -> Undo | None:
    """How to put a tensor's values back; None for one that takes part in a graph."""
    if is_lazy(value):
        return _keep_lazy(value)
    if value.is_meta or is_flat(value) or (value.requires_grad and not value.is_leaf):
        return None
    if is_sharded(value):
        return keep_tensor(local(value))
    copy = value.detach().clone()

    def restore() -> None:
        # Bumping the version counter of an unchanged tensor would look like a write.
        if value.shape != copy.shape:
            value.data = copy
        elif not _is_same(value, copy):
            value.copy_(copy)

    return restore


def _is_same(one: Tensor, two: Tensor) -> bool:
    if torch.equal(one, two):
        return True
    dense = one.layout is torch.strided and not hasattr(one, "device_mesh")
    if not (dense and one.is_floating_point() and bool(two.isnan().any())):
        return False
    bits = [each.detach().contiguous().flatten().view(torch.uint8) for each in (one, two)]
    return torch.equal(*bits)  # NaN is not equal to itself


def _keep_lazy(value: Tensor) -> Undo:
    kind, empty = type(value), value.data

    def restore() -> None:
        if type(value) is not kind:
            value.data = empty
            value.__class__ = kind

    return restore


def _keep_object(value: Any) -> tuple[Undo | None, Iterable[object]]:
    attributes = getattr(value, "__dict__", None)
    framework = type(value).__module__.partition(".")[0] in _FRAMEWORKS
    framework = framework and not isinstance(value, _STEPPING)
    if not isinstance(attributes, dict) or framework:
        inner = vars(value).values() if isinstance(value, torch.utils.data.Dataset) else ()
        return None, inner
    items = dict(attributes)

    def restore() -> None:
        attributes.clear()
        attributes.update(items)

    return restore, items.values()


def _keep_array(value: Any, largest: int) -> Undo | None:
    numpy = sys.modules.get("numpy")
    if not numpy or not isinstance(value, numpy.ndarray) or value.size > largest:
        return None
    copy = value.copy()

    def restore() -> None:
        value[...] = copy

    return restore


def _keep_generator(value: Any) -> Undo | None:
    numpy = sys.modules.get("numpy")
    if isinstance(value, torch.Generator):
        state = value.get_state()

        def restore() -> None:
            value.set_state(state)

        return restore
    if isinstance(value, random.Random):
        python = value.getstate()
        return lambda: value.setstate(python)
    if numpy and isinstance(value, numpy.random.Generator):
        bits = value.bit_generator.state
        return lambda: setattr(value.bit_generator, "state", bits)
    if numpy and isinstance(value, numpy.random.RandomState):
        arrays = value.get_state()
        return lambda: value.set_state(arrays)
    return None
