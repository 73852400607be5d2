"""Run a model and leave no trace: the one place that knows what a forward pass can change.

Whoever looks at a model by running it (analysis, audit, calibration) does so inside
`preserved(model)`: random states, buffers, gradients, training flags and plain Python state of
every module (counters, caches, metric states, lists of outputs) are afterwards as they were.
"""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

_DATA = 2**24  # elements; a plain tensor attribute above that is a data set, not state


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Restore everything but the parameters' values on leaving.

    Parameter *values* are not copied (that would double the memory): the code inside decides
    whether it writes them.

    Args:
        model: The model that will run inside the block.

    Example:
        >>> model = nn.BatchNorm1d(2)
        >>> with preserved(model):
        ...     _ = model(torch.randn(8, 2))
        >>> int(model.num_batches_tracked)
        0
    """
    modules = list(model.modules())
    undo = [_keep_rng(), *(_keep_module(module) for module in modules)]
    grads = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in grads:
        parameter.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            for restore in undo:
                restore()
        for parameter, grad in grads:
            parameter.grad = grad


def _keep_rng() -> Callable[[], None]:
    python, cpu = random.getstate(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    numpy = sys.modules.get("numpy")
    arrays = numpy.random.get_state() if numpy else None

    def restore() -> None:
        random.setstate(python)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        if numpy:
            numpy.random.set_state(arrays)

    return restore


def keep_generators(owner: object) -> list[Callable[[], None]]:
    """Note the state of every random generator that an object holds, a data set for example.

    Looks through attributes, lists and mappings, nearest first, at no more than 2000 values.

    Returns:
        Calls that put each generator back.

    Example:
        >>> own = random.Random(0)
        >>> (restore,) = keep_generators({"transforms": [own]})
        >>> drawn = own.random()
        >>> restore()
        >>> own.random() == drawn
        True
    """
    found: list[Callable[[], None]] = []
    queue, seen = deque([owner]), set[int]()
    while queue and len(seen) < 2000:
        value = queue.popleft()
        if id(value) in seen or isinstance(value, (Tensor, type)):
            continue
        seen.add(id(value))
        restore = _keep_generator(value)
        if restore is not None:
            found.append(restore)
            continue
        inner: Iterable[object] = getattr(value, "__dict__", {}).values()
        if isinstance(value, dict):
            inner = value.values()
        elif isinstance(value, (list, tuple)):
            inner = value
        queue.extend(islice(inner, 256))
    return found


def _keep_generator(value: Any) -> Callable[[], None] | None:
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


def _keep_module(module: nn.Module) -> Callable[[], None]:
    state = dict(module.__dict__)
    inner = [_keep_value(value) for name, value in state.items() if name != "_parameters"]
    # A pass may register or drop parameters, buffers and children (lazy layers do).
    tables: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (table, dict(table)) for table in (module._parameters, module._buffers)
    ]

    def restore() -> None:
        module.__dict__.clear()
        module.__dict__.update(state)
        for table, copy in tables:
            table.clear()
            table.update(copy)
        for put_back in inner:
            put_back()

    return restore


def _keep_value(value: Any, depth: int = 0) -> Callable[[], None]:
    """Undo in-place changes of a value; what is replaced is undone by its owner."""
    if (restore_generator := _keep_generator(value)) is not None:
        return restore_generator
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        if value.is_meta or value.requires_grad or (value.numel() > _DATA and depth < 1):
            return _nothing
        copy = value.detach().clone()

        def restore_tensor() -> None:
            # Bumping the version counter of an unchanged tensor would look like a write.
            if value.shape != copy.shape:
                value.data = copy
            elif not torch.equal(value, copy):
                value.copy_(copy)

        return restore_tensor
    if depth < 2 and type(value) in (list, dict, set):
        items = value.copy()
        contents = list(items.values()) if isinstance(items, dict) else list(items)
        # A long plain list is data, not state: keep its length and order, not its elements.
        inner = [_keep_value(item, depth + 1) for item in contents[:256]]

        def restore_container() -> None:
            value.clear()
            value.extend(items) if isinstance(value, list) else value.update(items)
            for put_back in inner:
                put_back()

        return restore_container
    return _nothing


def _nothing() -> None:
    return None
