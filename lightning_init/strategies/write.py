"""Draws into the memory of tensors, several at a time: each has a generator of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import Generator, Tensor

from lightning_init.architecture.sharded import fill_
from lightning_init.strategies.distributions import Distribution
from lightning_init.strategies.plan import PlanEntry
from lightning_init.strategies.seeds import generator_for

_MANY = 2**20  # elements below which threads do not pay


@runtime_checkable
class Fillable(Distribution, Protocol):
    """A distribution that can be drawn right into the memory of a tensor."""

    def fill_(self, tensor: Tensor, generator: Generator) -> Tensor:
        """Draw into a contiguous float32 tensor on the CPU, and return it."""


@contextmanager
def in_float32() -> Iterator[None]:
    """New tensors are float32 on the CPU, whatever the default is for the models made around it.

    Example:
        >>> with torch.device("meta"), in_float32():
        ...     torch.ones(2).sum().item()
        2.0
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(before)


def write_(work: Sequence[tuple[PlanEntry, Tensor]], seed: int) -> None:
    """Write each entry's draw into its tensor.

    What fits is drawn in place, on as many threads as PyTorch has; the rest is drawn in float32
    and copied, one tensor at a time. The values do not depend on which.

    Args:
        work: Planned entries and their tensors.
        seed: 0 to 2^63 - 1.
    """
    direct = [item for item in work if _fits(*item)]
    threads = torch.get_num_threads() if sum(t.numel() for _, t in direct) > _MANY else 1

    def fill(item: tuple[PlanEntry, Tensor]) -> None:
        entry, target = item
        assert isinstance(entry.distribution, Fillable)
        with torch.no_grad():  # which is a thread's own
            entry.distribution.fill_(target, generator_for(seed, entry.key))

    if threads == 1:
        for item in direct:
            fill(item)
    else:
        largest_first = sorted(direct, key=lambda item: -item[1].numel())
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(fill, largest_first))
    for entry, target in work:
        if not _fits(entry, target):
            fill_(target, entry.drawn(generator_for(seed, entry.key)))


def _fits(entry: PlanEntry, target: Tensor) -> bool:
    return (
        isinstance(entry.distribution, Fillable)
        and type(target) in (Tensor, torch.nn.Parameter)
        and target.device.type == "cpu"
        and target.dtype is torch.float32
        and target.is_contiguous()
        and entry.info.padding_idx is None
    )
