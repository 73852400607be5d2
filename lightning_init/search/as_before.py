"""Leave a process as it was: random states, environment, folder, flags, signals, loaders' state."""

from __future__ import annotations

import copy
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader

from lightning_init.architecture.preserve import keep_rng
from lightning_init.architecture.state import Undo, keep_state

_LOGGERS = ("lightning", "lightning.pytorch", "lightning.fabric", "pytorch_lightning")


@contextmanager
def as_before() -> Iterator[None]:
    """Put back on leaving, however it is left, what a training changes around the model."""
    rng, environment, folder = keep_rng(), dict(os.environ), os.getcwd()
    main = threading.current_thread() is threading.main_thread()
    signals = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)} if main else {}
    flags = _flags()
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    path = list(sys.path)
    try:
        with warnings.catch_warnings():
            yield
    finally:
        rng()
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        os.chdir(folder)
        sys.path[:] = path
        for number, handler in signals.items():
            signal.signal(number, handler)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        _set_flags(flags)


def _flags() -> tuple[Any, ...]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_anomaly_enabled(),
    )


def _set_flags(flags: tuple[Any, ...]) -> None:
    deterministic, warn_only, benchmark, grad, dtype, threads, anomaly = flags
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
    torch.backends.cudnn.benchmark = benchmark
    torch.set_grad_enabled(grad)
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)
    torch.autograd.set_detect_anomaly(anomaly)


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
