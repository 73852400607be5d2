"""Memory that was taken for parameters and not written: seen as it happens.

`to_empty` and `skip_init` leave whatever the memory held before, which may be the weights of a
model that was trained here earlier. Values cannot tell; who watches can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from lightning_init.architecture.names import named_tensors
from lightning_init.architecture.provenance import record_of
from lightning_init.architecture.sharded import is_sharded


class Unwritten(TorchFunctionMode):
    """While it is active, what is materialized from the meta device is noted until it is written.

    Example:
        >>> from lightning_init.architecture.provenance import known_record
        >>> with Unwritten() as seen:
        ...     layer = nn.utils.skip_init(nn.Linear, 2, 2)
        >>> seen.note(layer)
        >>> sorted(known_record(layer).empty)
        ['bias', 'weight']
    """

    def __init__(self) -> None:
        super().__init__()
        self._taken: set[Any] = set()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Do what was asked for; note it if it takes memory, or writes to it."""
        out = func(*args, **(kwargs or {}))
        name, first = getattr(func, "__name__", ""), (*args, None)[0]
        if not _holds_memory(first):
            is_meta = isinstance(first, Tensor) and first.is_meta
            if name == "empty_like" and is_meta and _holds_memory(out):
                self._taken.add(_memory(out))
        elif name == "__setitem__" or (name.endswith("_") and not name.endswith("__")):
            self._taken.discard(_memory(first))
        return out

    def note(self, model: nn.Module) -> None:
        """Put the parameters that nobody has written into the model's record."""
        for names, tensor in named_tensors(model) if self._taken else ():
            if not _holds_memory(tensor) or tensor._version:
                continue
            if _memory(tensor) in self._taken:
                record_of(model).empty.add(names[0])


def _holds_memory(value: Any) -> bool:
    plain = isinstance(value, Tensor) and not is_lazy(value)
    return plain and not value.is_meta and not is_sharded(value)


def _memory(tensor: Tensor) -> Any:
    """What tensors that share their memory have in common, and no later memory gets again."""
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
