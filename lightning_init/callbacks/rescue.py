"""Rescue: initialize anew, with one spec of a ladder after the other, until the audit is healthy.

Only what the first initialization drew, or could have drawn, is touched: weights that were loaded,
restored, frozen or made by the model itself stay as they are. Before each attempt every tensor
gets back the values that it was built with, so the last attempt alone decides the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from lightning_init.architecture.names import named_tensors, unwrap
from lightning_init.architecture.params import Architecture
from lightning_init.architecture.provenance import record_of
from lightning_init.architecture.sharded import is_sharded
from lightning_init.callbacks.agree import agree_that
from lightning_init.callbacks.later import refresh_copies
from lightning_init.callbacks.placement import Placement
from lightning_init.health.attempts import Attempt
from lightning_init.health.report import Report
from lightning_init.strategies.auto import recommend
from lightning_init.strategies.needs import holds
from lightning_init.strategies.plan import Forward, Plan
from lightning_init.strategies.registry import get
from lightning_init.strategies.spec import InitSpec

Ladder = list[str | InitSpec]


def check_ladder(ladder: Sequence[str | InitSpec] | None) -> tuple[InitSpec, ...] | None:
    """The rungs as specs, None for the default ladder.

    Raises:
        ValueError: If a rung is neither a strategy's name nor a spec.

    Example:
        >>> [str(spec) for spec in check_ladder(["orthogonal"])]
        ['orthogonal']
    """
    if ladder is None:
        return None
    if isinstance(ladder, (str, InitSpec)) or not isinstance(ladder, (list, tuple)):
        raise ValueError(f"ladder must be a list of strategies or specs, but got {ladder!r}")
    return tuple(_spec(rung) for rung in ladder)


def _spec(rung: object) -> InitSpec:
    if isinstance(rung, InitSpec):
        return rung
    if isinstance(rung, dict):
        return InitSpec.from_dict(rung)
    if isinstance(rung, str):
        return InitSpec(rung)
    raise ValueError(f"a rung of the ladder must be a strategy or a spec, but got {rung!r}")


def default_ladder(plan: Plan) -> tuple[InitSpec, ...]:
    """`recommend`'s choice, Xavier, Kaiming, then scaled residual branches, or orthogonal.

    Args:
        plan: What was applied; it knows how the model uses its tensors.
    """
    seen = _architecture(plan)
    last = "orthogonal"
    if seen.num_branches:
        traits = {trait for info in seen for trait in info.traits}
        last = "gpt2" if "attention" in traits else "zero_gamma" if "norm" in traits else "fixup"
    names = ("xavier_normal", "kaiming_normal", last)
    return (recommend(seen).spec, *map(InitSpec, names))


def rungs(
    ladder: tuple[InitSpec, ...] | None, tried: Sequence[Any], plan: Plan
) -> tuple[InitSpec, ...]:
    """The specs that are still to be tried, in order; those that cannot suit the model are not.

    Args:
        ladder: As given, None for the default.
        tried: What was tried before.
        plan: What was applied; it knows how the model uses its tensors.

    Example:
        >>> from lightning_init import make_plan
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
        >>> plan = make_plan(net, "auto")
        >>> [str(spec) for spec in rungs(None, ["auto"], plan)]
        ['xavier_normal', 'kaiming_normal', 'orthogonal']
    """
    seen = _architecture(plan)
    steps = default_ladder(plan) if ladder is None else ladder
    return tuple(
        rung
        for rung in steps
        if not any(_alike(rung, one) for one in tried)
        and (not seen.traced or holds(get(rung.strategy).needs, seen))
    )


def _architecture(plan: Plan) -> Architecture:
    infos = tuple(entry.info for entry in plan)
    branches = max((info.usage.num_branches for info in infos if info.usage), default=0)
    return Architecture(infos, branches, plan.traced)


def _alike(one: InitSpec, two: Any) -> bool:
    if isinstance(two, str):
        two = InitSpec(two)
    if not isinstance(two, InitSpec):
        return False
    mine, theirs = ((s.strategy, s.params, s.overrides) for s in (one, two))
    return mine == theirs


class Rescue:
    """Tries the rungs of a ladder on the first batch.

    Args:
        placement: What initialized the module.
        audit: Audits the first batch under a plan.
        say: Tells the user.
    """

    def __init__(
        self,
        placement: Placement,
        audit: Callable[[Plan | None], Report],
        say: Callable[[str], None],
    ) -> None:
        self.placement, self.audit, self.say = placement, audit, say

    def __call__(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        forward: Forward,
        first: Report,
        steps: Sequence[InitSpec],
        limit: int,
    ) -> tuple[Attempt, ...]:
        """Try until an audit has no error; the best attempt is what the module is left with.

        Args:
            trainer: Knows the other processes, which do the same.
            module: The module.
            forward: Runs it once.
            first: What the audit said of the first initialization.
            steps: What to try, in order.
            limit: How many of them, at most.

        Returns:
            Every attempt; exactly one of them is kept.
        """
        placed = self.placement
        attempts = [_attempt(placed.strategy, first)]
        best = _Kept(0, placed.strategy, placed.plan, _values(module), _written(module))
        fewest = attempts[0].errors
        for rung in steps:
            if not limit:
                break
            why = ""
            try:
                placed.again(module, rung, forward)
            except Exception as error:  # the scheme does not suit the model, or needs what it lacks
                why = f"does not apply ({error})"
            if not agree_that(trainer, not why):
                attempts.append(Attempt(str(rung), why or "does not apply", spec=rung.to_dict()))
                best.put_back(module, placed)
                continue
            limit -= 1
            _broadcast(module)
            placed.agree(trainer)
            report = self.audit(placed.plan)
            attempts.append(_attempt(rung, report))
            self.say(f"rescue: {attempts[-1]}")
            if attempts[-1].errors < fewest:
                fewest = attempts[-1].errors
                index = len(attempts) - 1
                best = _Kept(index, rung, placed.plan, _values(module), _written(module))
            if not fewest:
                break
        if best.index != len(attempts) - 1:
            best.put_back(module, placed)
            self.audit(placed.plan)
        refresh_copies(trainer, module)
        kept = [
            Attempt(one.name, one.verdict, one.findings, one.spec, kept=index == best.index)
            for index, one in enumerate(attempts)
        ]
        return tuple(kept)


class _Kept:
    """The weights of one attempt, and what is known of them."""

    def __init__(
        self, index: int, strategy: Any, plan: Plan | None, values: list[Tensor], written: Any
    ) -> None:
        self.index, self.strategy, self.plan = index, strategy, plan
        self.values, self.written = values, written

    def put_back(self, module: nn.Module, placed: Placement) -> None:
        with torch.no_grad():
            for (_, tensor), value in zip(named_tensors(module), self.values, strict=True):
                tensor.copy_(value)
        record_of(unwrap(module)).written = dict(self.written)
        placed.strategy, placed.plan = self.strategy, self.plan


def _values(module: nn.Module) -> list[Tensor]:
    return [tensor.detach().clone() for _, tensor in named_tensors(module)]


def _written(module: nn.Module) -> dict[str, frozenset[str]]:
    return dict(record_of(unwrap(module)).written)


def _attempt(strategy: Any, report: Report) -> Attempt:
    spec = strategy if isinstance(strategy, InitSpec) else None
    name = str(spec or (strategy if isinstance(strategy, str) else "a function"))
    worst = next(iter(report.errors), None)
    more = f" and {len(report.errors) - 1} more" if len(report.errors) > 1 else ""
    verdict = f"{worst.detector} at {worst.where}{more}" if worst else "healthy"
    return Attempt(name, verdict, report.findings, spec.to_dict() if spec else {})


def _broadcast(module: nn.Module) -> None:
    """Each process saw another batch: what was scaled on it must still be the same."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        with torch.no_grad():
            for _, tensor in named_tensors(module):
                if not is_sharded(tensor):  # whose draws all processes know
                    torch.distributed.broadcast(tensor, 0)
