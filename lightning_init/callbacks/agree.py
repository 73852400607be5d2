"""Findings that all processes of a run agree on.

Each process reads its own part of the batch. What one of them finds all of them must know: they
warn, stop, raise or re-initialize together or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import lightning.pytorch as pl
import torch

from lightning_init.health.findings import Finding
from lightning_init.health.registry import entries
from lightning_init.health.roots import roots

_RANK = {"error": 0, "warning": 1, "info": 2}


class Agreement:
    """The findings of all processes; every process calls it at the same steps.

    A single number is exchanged as long as no process has anything new to tell.
    """

    def __init__(self) -> None:
        self._told: set[tuple[str, str, str]] = set()
        self._all: tuple[Finding, ...] = ()

    def __call__(
        self, trainer: pl.Trainer, own: tuple[Finding, ...], last: bool = False
    ) -> tuple[Finding, ...]:
        """What all processes have found, the same on each.

        Args:
            trainer: Says how many processes there are.
            own: What this one has found.
            last: Whether this is the final word, which is exchanged in any case.
        """
        if trainer.world_size == 1:
            return own
        mine = {(one.detector, one.severity, one.where) for one in own}
        news = bool(mine - self._told) or (last and bool(mine or self._all))
        if trainer.strategy.reduce_boolean_decision(news, all=False):
            self._told |= mine
            self._all = merged(_gathered(own, trainer.world_size))
        return self._all


def merged(found: Sequence[Sequence[Finding]]) -> tuple[Finding, ...]:
    """The findings of several processes as one list: per detector the worst, then the first.

    Args:
        found: One list per process, in their order.

    Example:
        >>> quiet, loud = (), (Finding("dead_units", "error", "fc", 2, 1.0, 0.9, "all dead", "", ""),)
        >>> merged([quiet, loud])[0].message
        'all dead (seen by process 1 of 2)'
    """
    best: dict[str, tuple[int, Finding]] = {}
    for process, findings in enumerate(found):
        for one in findings:
            known = best.get(one.detector)
            if known is None or _RANK[one.severity] < _RANK[known[1].severity]:
                best[one.detector] = (process, one)
    several = {name for name in best if sum(_has(name, each) for each in found) > 1}
    said = [
        one
        if name in several
        else replace(one, message=f"{one.message} (seen by process {process} of {len(found)})")
        for name, (process, one) in best.items()
    ]
    return roots(said, {entry.name: (entry.order, entry.explains) for entry in entries()})


def agree_that(trainer: pl.Trainer, holds: bool) -> bool:
    """Whether something holds in every process."""
    if trainer.world_size == 1:
        return holds
    return bool(trainer.strategy.reduce_boolean_decision(holds, all=True))


def _has(name: str, findings: Sequence[Finding]) -> bool:
    return any(one.detector == name for one in findings)


def _gathered(own: tuple[Finding, ...], count: int) -> list[tuple[Finding, ...]]:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [own]
    found: list[tuple[Finding, ...]] = [()] * count
    torch.distributed.all_gather_object(found, own)
    return found
