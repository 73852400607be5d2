"""What every step leaves behind: its loss, its learning rate, whether its batch is finite.

All of it stays on the device as single numbers until it is read, many steps at once: a step costs
no wait for the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_init.architecture.calls import readable

_DEEP = 4  # levels of a batch that are looked into
_MANY = 64  # parts of each that are looked at


class Tally:
    """The numbers of every step so far, by step.

    Attributes:
        loss: Training loss.
        lr: Largest learning rate of the optimizers.
        bad_batches: Steps whose batch held NaN or infinity.

    Example:
        >>> tally = Tally()
        >>> tally.begin(0, {"x": torch.tensor([1.0, torch.inf])}, [])
        >>> tally.end(0, torch.tensor(2.5))
        >>> tally.flush()
        >>> tally.loss, tally.bad_batches
        ({0: 2.5}, (0,))
    """

    def __init__(self) -> None:
        self.loss: dict[int, float] = {}
        self.lr: dict[int, float] = {}
        self.bad_batches: tuple[int, ...] = ()
        self._waiting: list[tuple[dict[int, float] | None, int, Tensor]] = []

    def begin(self, step: int, batch: Any, optimizers: Iterable[Optimizer]) -> None:
        """Before a step: look at its batch, and at what it will step with."""
        if (total := _total(batch)) is not None:
            self._waiting.append((None, step, total))
        groups = [group for each in optimizers for group in each.param_groups]
        rates = [group["lr"] for group in groups if "lr" in group]
        plain = [float(rate) for rate in rates if not isinstance(rate, Tensor)]
        held = [rate.detach().float().max() for rate in rates if isinstance(rate, Tensor)]
        if held:  # optimizers for CUDA graphs keep it on the device
            highest = torch.stack(held).max()
            self._waiting.append((self.lr, step, highest.clamp(min=max(plain, default=0.0))))
        elif plain:
            self.lr[step] = max(plain)

    def end(self, step: int, loss: Tensor | None) -> None:
        """After a step: its loss, None if it shows none."""
        if loss is not None:
            self._waiting.append((self.loss, step, loss.detach()))

    def flush(self) -> None:
        """Read what waits: one transfer per device."""
        waiting, self._waiting = self._waiting, []
        for (place, step, _), value in zip(waiting, _read([w[2] for w in waiting]), strict=True):
            if place is not None:
                place[step] = value
            elif not math.isfinite(value):
                self.bad_batches += (step,)


def _total(batch: Any) -> Tensor | None:
    """One number per batch that is finite if all of its entries are; None without any."""
    totals = []
    for tensor in _tensors(batch, _DEEP):
        if not tensor.is_floating_point() or not tensor.numel() or not readable(tensor):
            continue
        try:
            wide = None if tensor.dtype == torch.float64 else torch.float32
            totals.append(tensor.detach().sum(dtype=wide).float())
        except (RuntimeError, NotImplementedError):  # a kind of tensor that has no sum
            continue
    if len(totals) < 2:
        return totals[0] if totals else None
    return torch.stack([total.to(totals[0].device) for total in totals]).sum()


def _tensors(value: Any, depth: int) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
        return
    if not depth or isinstance(value, (str, bytes, int, float, type(None))):
        return
    inner: Iterable[Any] = ()
    if isinstance(value, Mapping):
        inner = value.values()
    elif isinstance(value, (list, tuple)):
        inner = value
    elif is_dataclass(value):
        inner = [getattr(value, field.name, None) for field in fields(value)]
    elif isinstance(getattr(value, "__dict__", None), dict):  # a batch of a class of its own
        inner = vars(value).values()
    for item in list(inner)[:_MANY]:
        yield from _tensors(item, depth - 1)


def _read(values: list[Tensor]) -> list[float]:
    by_device: dict[torch.device, list[int]] = {}
    for index, value in enumerate(values):
        by_device.setdefault(value.device, []).append(index)
    found = [math.nan] * len(values)
    for chosen in by_device.values():
        rows = torch.stack([values[index].float().reshape(()) for index in chosen]).tolist()
        for index, value in zip(chosen, rows, strict=True):
            found[index] = value
    return found
