"""What a trial may change in its process is put back after it: the next one starts as if alone.

Random states, torch's global settings, global hooks of modules and optimizers, warnings filters,
the environment, the working directory. What user code keeps in its own modules is not seen.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_utilities.core.inheritance import get_all_subclasses
from torch.nn.modules import module as modules
from torch.optim import optimizer as optimizers
from torch.utils.data import BatchSampler, DataLoader

from lightning_init.architecture.preserve import keep_rng

_FLAGS = (
    (torch.backends.cudnn, ("benchmark", "deterministic", "allow_tf32", "enabled")),
    (torch.backends.cuda.matmul, ("allow_tf32", "allow_fp16_reduced_precision_reduction")),
    (torch.backends.mkldnn, ("enabled",)),
)
_WRAPPED = ("__init__", "__setattr__", "__delattr__")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@contextmanager
def isolated() -> Iterator[None]:
    """Put back on leaving what is global in this process.

    Example:
        >>> with isolated():
        ...     torch.set_default_dtype(torch.float64)
        ...     os.environ["PL_GLOBAL_SEED"] = "3"
        >>> torch.get_default_dtype(), "PL_GLOBAL_SEED" in os.environ
        (torch.float32, False)
    """
    undo = [keep_rng(), *_settings(), *_tables(), keep_loaders()]
    try:
        with warnings.catch_warnings():
            yield
    finally:
        for put_back in undo:
            put_back()


def keep_loaders() -> Callable[[], None]:
    """Lightning wraps the methods of loaders while it asks for one, and forgets it on an error.

    Each such error adds a wrapper, and a loader that Lightning makes anew is then refused.

    Returns:
        A call that puts the methods back.
    """
    before = {kind: _methods(kind) for kind in _loaders()}

    def put_back() -> None:
        for kind in _loaders():
            now = _methods(kind)
            # Of a class that is new, what Lightning itself keeps.
            own = {name: now[f"__old{name}"] for name in _WRAPPED if f"__old{name}" in now}
            wanted = before.get(kind, {**{n: now[n] for n in _WRAPPED if n in now}, **own})
            for name in now.keys() - wanted.keys():
                delattr(kind, name)
            for name, method in wanted.items():
                if now.get(name) is not method:
                    setattr(kind, name, method)

    return put_back


def _loaders() -> set[type]:
    bases = (DataLoader, BatchSampler)
    return {kind for base in bases for kind in (base, *get_all_subclasses(base))}


def _methods(kind: type) -> dict[str, Any]:
    names = (*_WRAPPED, *(f"__old{name}" for name in _WRAPPED))
    return {name: vars(kind)[name] for name in names if name in vars(kind)}


def _settings() -> Iterator[Callable[[], object]]:
    """Torch's global settings and the process's own."""
    yield _keep(torch.get_default_dtype, torch.set_default_dtype)
    yield _keep(torch.get_default_device, _to_device)
    yield _keep(torch.get_num_threads, torch.set_num_threads)
    yield _keep(torch.is_grad_enabled, torch.set_grad_enabled)
    yield _keep(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision)
    yield _keep(torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly)
    yield _keep(_determinism, _be_deterministic)
    for kind in ("cpu", "cuda"):
        enabled, dtype = torch.is_autocast_enabled, torch.get_autocast_dtype
        yield _keep(partial(enabled, kind), partial(torch.set_autocast_enabled, kind))
        yield _keep(partial(dtype, kind), partial(torch.set_autocast_dtype, kind))
    yield _keep(torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled)
    for owner, names in _FLAGS:
        for name in names:
            yield _keep(partial(getattr, owner, name, None), partial(setattr, owner, name))
    yield _keep(sys.getrecursionlimit, sys.setrecursionlimit)
    numpy = sys.modules.get("numpy")
    if numpy:
        errors = numpy.geterr()
        yield lambda: numpy.seterr(**errors)
    yield _keep(_here, _go)


def _tables() -> Iterator[Callable[[], object]]:
    """Dictionaries and lists that code puts things into."""
    tables: list[Any] = [os.environ, sys.path]
    tables += [getattr(modules, f"_global{name}") for name in _HOOKS]
    tables += [getattr(optimizers, f"_global_optimizer_{name}_hooks") for name in ("pre", "post")]
    yield from map(_keep_table, tables)


def _keep_table(table: Any) -> Callable[[], None]:
    if isinstance(table, list):
        elements = list(table)

        def put_list() -> None:
            if table != elements:
                table[:] = elements

        return put_list
    items = dict(table)

    def put_back() -> None:
        _restore(table, items)

    return put_back


def _restore(table: MutableMapping[Any, Any], items: dict[Any, Any]) -> None:
    for key in [key for key in table if key not in items]:
        del table[key]
    for key, value in items.items():
        if table.get(key) is not value and table.get(key) != value:
            table[key] = value


def _keep(get: Callable[[], Any], put: Callable[[Any], object]) -> Callable[[], object]:
    """Put a value back if it is another by then: some cost time once they are set at all."""
    before = get()

    def put_back() -> None:
        if get() != before:
            put(before)

    return put_back


def _to_device(device: torch.device) -> None:
    torch.set_default_device(None if device.type == "cpu" else device)


def _determinism() -> tuple[bool, bool]:
    algorithms = torch.are_deterministic_algorithms_enabled()
    return algorithms, torch.is_deterministic_algorithms_warn_only_enabled()


def _be_deterministic(before: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _here() -> Path | None:
    with suppress(OSError):  # it may have been removed
        return Path.cwd()
    return None


def _go(folder: Path | None) -> None:
    if folder is not None:
        os.chdir(folder)
