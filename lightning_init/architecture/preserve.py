"""Run a model and leave no trace: the one place that knows what a forward pass can change.

Whoever looks at a model by running it (analysis, audit, calibration) does so inside
`preserved(model)`: parameters, buffers, gradients, random states, training flags and plain Python
state of every module (counters, caches, metric states, lists of outputs) are afterwards as they
were, and lazy layers are lazy again.
"""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from lightning_init.architecture.sharded import rest
from lightning_init.architecture.state import Undo, keep_state, keep_tensor

_DATA = 2**24  # elements; a plain tensor attribute above that is a data set, not state


@contextmanager
def preserved(model: nn.Module, writes: Collection[Tensor] = ()) -> Iterator[None]:
    """Restore a model on leaving, parameters included: some steps clip or average weights.

    Args:
        model: The model that will run inside the block.
        writes: Parameters that the block means to write.

    Example:
        >>> model = nn.BatchNorm1d(2)
        >>> with preserved(model):
        ...     _ = model(torch.randn(8, 2))
        >>> int(model.num_batches_tracked)
        0
    """
    meant = {id(tensor) for tensor in writes}
    parameters = list(model.parameters())
    kept = [p for p in parameters if id(p) not in meant]
    undo = [keep_rng(), *(keep_module(module) for module in model.modules())]
    undo += [restore for restore in map(keep_tensor, kept) if restore is not None]
    undo += keep_state((_attributes(module) for module in model.modules()), _DATA)
    grads = [(parameter, parameter.grad) for parameter in parameters]
    for parameter, _ in grads:
        parameter.grad = None
    for module in model.modules():
        _lend_iterators(module)
    try:
        yield
    finally:
        rest(model)
        with torch.no_grad():
            for restore in undo:
                restore()
        for parameter, grad in grads:
            parameter.grad = grad


def keep_rng() -> Undo:
    """How to put every global random state back."""
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


def keep_module(module: nn.Module) -> Undo:
    """How to put a module itself back: class, attributes, hooks, buffers with their values.

    Example:
        >>> layer = nn.LazyLinear(2)
        >>> restore = keep_module(layer)
        >>> _ = layer(torch.ones(1, 3))
        >>> restore()
        >>> type(layer).__name__
        'LazyLinear'
    """
    kind, state = type(module), dict(module.__dict__)
    buffers = [keep_tensor(b) for b in module._buffers.values() if b is not None]
    # A pass may register or drop parameters, buffers, children and hooks (lazy layers do).
    tables: list[tuple[dict[Any, Any], dict[Any, Any]]] = [
        (table, dict(table))
        for name, table in state.items()
        if name in _TABLES and isinstance(table, dict)
    ]

    def restore() -> None:
        if type(module) is not kind:
            module.__class__ = kind
        module.__dict__.clear()
        module.__dict__.update(state)
        for table, before in tables:
            table.clear()
            table.update(before)
        for put_back in buffers:
            if put_back is not None:
                put_back()

    return restore


def _lend_iterators(module: nn.Module) -> None:
    """Put a copy in the place of each itertools iterator: one that has advanced cannot go back."""
    for name, value in list(module.__dict__.items()):
        if type(value).__module__ == "itertools":
            with suppress(Exception):  # over something that cannot be copied
                module.__dict__[name] = copy.deepcopy(value)


def _attributes(module: nn.Module) -> list[object]:
    """What a module holds besides the tables of its class."""
    return [value for name, value in module.__dict__.items() if name not in _TABLES]


_TABLES = set(nn.Module().__dict__) | {"_trainer", "_fabric", "_compiler_ctx"}


def fix_rng() -> None:
    """Put the global generators to a fixed state: dropout in a calibration is then reproducible."""
    random.seed(0)
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(0)
