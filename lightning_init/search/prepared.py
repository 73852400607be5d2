"""Data is prepared once for many trials, where nobody can tell.

The first trial runs the data module's `prepare_data` and `setup("fit")` as they are. What they made
is remembered under what they were given: the seed and the whole state of the freshly constructed
data module. A later trial that comes with the same gets a copy, whose large tensors and arrays are
shared, and skips both. Not so, and so as in any other fit, where they drew random numbers, asked
the Trainer more than how many processes there are, or made what cannot be copied; where there is a
`teardown`, which may close or delete what they made; and from the trial on that wrote into shared
data.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import io
import pickle
import random
import zlib
from collections.abc import Callable, Iterable, Iterator
from types import FunctionType, MethodType
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

_KEPT = 4  # preparations that are remembered: seeds come one after the other
_SHARED = 2**20  # bytes of a tensor or array from which on it is shared
_MANY = 200_000  # values that are looked at
_ALONE = {
    *("world_size", "num_devices", "num_nodes", "global_rank", "local_rank", "node_rank"),
    *("is_global_zero", "device_ids"),
}  # what a Trainer of one process answers alike in every trial


class Prepared:
    """What `prepare_data` and `setup` made, for later trials in the same process.

    Args:
        ready: Keys of data modules whose `prepare_data` has been run elsewhere on this machine.

    Attributes:
        ready: More of them, found here: nothing but files came of it.
    """

    def __init__(self, ready: Iterable[str] = ()) -> None:
        self.ready: set[str] = set(ready)
        self._made: dict[tuple[int, str], _Made | None] = {}  # None: each trial makes its own
        self._used: tuple[int, str] | None = None  # by the trial that runs

    def take(self, data: pl.LightningDataModule | None, seed: int) -> None:
        """Let a fresh data module, before its fit, use or become what is remembered.

        Args:
            data: As constructed; its hooks are replaced until they are called.
            seed: That of the trial.
        """
        hooks = ("prepare_data", "setup")
        if data is None or not any(is_overridden(hook, data) for hook in hooks):
            return
        if is_overridden("teardown", data):
            return
        key = _key(data)
        if key is None:
            return
        place = (seed, key)
        if place not in self._made:
            _once(data, "prepare_data", functools.partial(self._prepare, data, place))
            _once(data, "setup", functools.partial(self._set_up, data, place))
            return
        self._made[place] = made = self._made.pop(place)  # the most recent is the last
        if made is not None:
            self._used = place
            _once(data, "prepare_data", lambda *_: None)
            _once(data, "setup", lambda *_, **__: vars(data).update(made.copy()))

    def settle(self) -> None:
        """After a trial: what wrote into shared data is not to be shared any more."""
        made = None if self._used is None else self._made.get(self._used)
        if self._used is not None and made is not None and made.is_written:
            self._made[self._used] = None
        self._used = None

    def _prepare(
        self, data: pl.LightningDataModule, place: tuple[int, str], original: Callable[[], None]
    ) -> None:
        if place[1] in self.ready:
            return
        before = _random_states()
        original()
        if before != _random_states():
            self._remember(place, None)
        elif _key(data) == place[1]:
            self.ready.add(place[1])

    def _set_up(
        self,
        data: pl.LightningDataModule,
        place: tuple[int, str],
        original: Callable[[str], None],
        stage: str,
    ) -> None:
        if place in self._made or stage != "fit":
            return original(stage)
        trainer, asked = data.trainer, set[str]()
        before = _random_states()
        data.trainer = listener = _listening(trainer, asked)
        try:
            original(stage)
        finally:
            if data.trainer is listener:
                data.trainer = trainer
        plain = before == _random_states() and asked <= _ALONE
        try:
            self._remember(place, _Made(data) if plain else None)
        except Exception:  # an open file, a lock, a running iterator: nothing to copy
            self._remember(place, None)
        return None

    def _remember(self, place: tuple[int, str], made: _Made | None) -> None:
        self._made[place], self._used = made, place
        while len(self._made) > _KEPT:
            del self._made[next(iter(self._made))]


class _Made:
    """The state of a data module after `setup`."""

    def __init__(self, data: pl.LightningDataModule) -> None:
        state = _state(data)
        self._shared = {id(value): value for value in _large(state)}
        self._state = copy.deepcopy(state, dict(self._shared))
        self._sums = {place: _checksum(value) for place, value in self._shared.items()}

    def copy(self) -> dict[str, Any]:
        """A copy of its own for each trial, but for what is large."""
        return copy.deepcopy(self._state, dict(self._shared))

    @property
    def is_written(self) -> bool:
        """Whether shared data is not what it was."""
        return any(_checksum(v) != self._sums[place] for place, v in self._shared.items())


def _key(data: pl.LightningDataModule) -> str | None:
    """What a data module is before it is prepared; None if that cannot be told."""
    found = io.BytesIO()
    try:
        _Pickler(found).dump((type(data), _state(data)))
    except Exception:  # it holds a function of the moment, a file, ...
        return None
    return hashlib.sha256(found.getbuffer()).hexdigest()


class _Pickler(pickle.Pickler):
    """Of tensors and large arrays it writes what tells them apart, and no copy."""

    def persistent_id(self, value: object) -> object:
        if type(value) is Tensor and value.layout is torch.strided and value.device.type == "cpu":
            # As torch pickles it, a tensor is told apart by where it lies in memory as well.
            more: tuple[object, ...] = (value.stride(), value.requires_grad)
            content = _bytes(value.contiguous().reshape(-1))
        elif isinstance(value, np.ndarray) and _is_large(value):
            more, content = (), _bytes(value)
        else:
            return None
        digest = hashlib.sha256(content).hexdigest()
        return type(value), str(value.dtype), tuple(value.shape), *more, digest


def _state(data: pl.LightningDataModule) -> dict[str, Any]:
    ours = ("trainer", "prepare_data", "setup")  # the latter two as hooks that wait
    return {name: value for name, value in vars(data).items() if name not in ours}


def _once(data: pl.LightningDataModule, name: str, call: Callable[..., None]) -> None:
    """Replace a hook for its next call, which is given the original."""
    if not is_overridden(name, data):
        return
    original = getattr(data, name)

    @functools.wraps(original)
    def hook(*args: Any, **kwargs: Any) -> None:
        vars(data).pop(name, None)
        return call(original, *args, **kwargs)

    vars(data)[name] = hook


def _listening(trainer: pl.Trainer | None, asked: set[str]) -> Any:
    """A stand-in for a Trainer that notes what it is asked; it refuses to be copied."""

    class Trainer(pl.Trainer):
        def __init__(self) -> None:
            pass

        def __getattribute__(self, name: str) -> Any:
            if name in ("__class__", "__deepcopy__"):
                return object.__getattribute__(self, name)
            asked.add(name)
            return getattr(trainer, name)

        def __setattr__(self, name: str, value: Any) -> None:
            asked.add(name)
            setattr(trainer, name, value)

        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("a Trainer is not data")

    return None if trainer is None else Trainer()


def _random_states() -> tuple[Any, ...]:
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 (users draw from it)
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    numpy = (kind, np.asarray(keys).tobytes(), *rest)
    tensors = [state.numpy().tobytes() for state in (torch.get_rng_state(), *cuda)]
    return (*tensors, numpy, random.getstate())


def _large(root: object) -> Iterator[Tensor | np.ndarray[Any, Any]]:
    """The large tensors and arrays in something, in containers and objects' attributes."""
    waiting, seen = [root], set[int]()
    while waiting and len(seen) < _MANY:
        value = waiting.pop()
        if id(value) in seen or isinstance(value, (str, bytes, int, float, type)):
            continue
        seen.add(id(value))
        if isinstance(value, (pl.Trainer, pl.LightningModule, pl.LightningDataModule)):
            raise TypeError(f"a {type(value).__name__} is not data")
        if isinstance(value, FunctionType) and value.__closure__:
            raise TypeError("a copy of a function shares what it refers to")
        if isinstance(value, (Tensor, np.ndarray)):
            if _is_large(value):
                yield value
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, (list, tuple, set, frozenset)):
            waiting += value
        elif isinstance(value, MethodType):
            waiting.append(value.__self__)
        else:
            waiting += vars(value).values() if hasattr(value, "__dict__") else ()


def _is_large(value: Tensor | np.ndarray[Any, Any]) -> bool:
    """Whether it is worth sharing, and plain enough."""
    if value.nbytes < _SHARED:
        return False
    if isinstance(value, Tensor):
        plain = type(value) is Tensor and not value.requires_grad and value.is_contiguous()
        return plain and value.device.type == "cpu"
    return value.flags.c_contiguous and not value.dtype.hasobject


def _checksum(value: Tensor | np.ndarray[Any, Any]) -> int:
    return zlib.adler32(_bytes(value))


def _bytes(value: Tensor | np.ndarray[Any, Any]) -> memoryview:
    if isinstance(value, Tensor):
        value = value.detach().view(torch.uint8).numpy()
    return value.view(np.uint8).reshape(-1).data
