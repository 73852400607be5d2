"""Leave a process as it was: random states, environment, folder, flags, signals, loaders' state."""

from __future__ import annotations

import copy
import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader

from lightning_init.architecture.state import Undo, keep_state
from lightning_init.search.isolated import isolated

_LOGGERS = ("lightning", "lightning.pytorch", "lightning.fabric", "pytorch_lightning")


@contextmanager
def as_before() -> Iterator[None]:
    """Put back on leaving, however it is left, what trainings change around model and data."""
    main = threading.current_thread() is threading.main_thread()
    signals = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)} if main else {}
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    try:
        with isolated():
            yield
    finally:
        for number, handler in signals.items():
            signal.signal(number, handler)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def model_as_before(model: nn.Module) -> Iterator[None]:
    """Put back attributes of a model's parts on leaving, and what they hold but for weights.

    A copy of a model shares what its hooks have closed over, so trials of copies reach the model.
    """
    before = [(vars(part), dict(vars(part))) for part in model.modules()]
    names = {*vars(nn.Module()), "_trainer", "_fabric"}
    held = [value for _, values in before for name, value in values.items() if name not in names]
    undo = keep_state(held)
    try:
        yield
    finally:
        for own, values in before:
            for name in own.keys() - values.keys():
                del own[name]
            own.update(values)
        for put_back in undo:
            put_back()


def keep_data(data: pl.LightningDataModule | None, loaders: Any) -> list[Undo]:
    """How to put the state of data back: generators and samplers of loaders, plain attributes.

    Args:
        data: A data module.
        loaders: Loaders, in lists and mappings.
    """
    held = vars(data) if data is not None else {}
    every = [each for each in tree_leaves((loaders, held)) if isinstance(each, DataLoader)]
    roots: list[object] = [held]
    for loader in every:
        batches = loader.batch_sampler
        samplers = (loader.sampler, batches, getattr(batches, "sampler", None))
        roots += [loader.generator, loader.dataset]
        roots += [vars(sampler) for sampler in samplers if hasattr(sampler, "__dict__")]
    return keep_state([root for root in roots if root is not None])


def lone(loaders: Any) -> Any:
    """The same loaders without worker processes and iterators that they may hold."""

    def apart(loader: Any) -> Any:
        if not isinstance(loader, DataLoader):
            return loader
        other = copy.copy(loader)
        vars(other).update(_iterator=None)
        return other

    return tree_map(apart, loaders)
