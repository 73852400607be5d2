"""Several InitCallbacks in one Trainer: for each tensor the last one that means it decides."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, Protocol

import lightning.pytorch as pl

from lightning_init.callbacks.arguments import callbacks_of
from lightning_init.strategies.initializers import Overridden, keep
from lightning_init.strategies.plan import Plan
from lightning_init.strategies.planning import Scope, StrategyLike, check_scope, resolve
from lightning_init.strategies.registry import Strategy
from lightning_init.strategies.spec import InitSpec


class Init(Protocol):
    """What is asked of an InitCallback here."""

    strategy: StrategyLike
    told_by: str

    @property
    def name(self) -> str:
        """The strategy's name."""

    @property
    def scope(self) -> Scope:
        """What it may write."""


def inits_of(trainer: pl.Trainer) -> list[Any]:
    """The InitCallbacks of a Trainer: those of the environment first, then in their order."""
    found = [each for each in callbacks_of(trainer) if hasattr(each, "told_by")]
    return sorted(found, key=lambda each: not each.told_by)


def left_over(init: Init, later: Sequence[Init]) -> tuple[StrategyLike | None, list[str]]:
    """What is left to do for one InitCallback.

    Args:
        init: The callback.
        later: Those that decide before it.

    Returns:
        The strategy, which keeps what they mean, None if they mean all; and what to say.

    Example:
        >>> from lightning_init import InitCallback
        >>> left_over(InitCallback("gpt2"), [InitCallback("keep")])[1][0].split(",")[0]
        "InitCallback('gpt2') yields to InitCallback('keep')"
    """
    left: list[str] = []
    said = []
    who = f"{init.told_by}={init.name}" if init.told_by else f"InitCallback({init.name!r})"
    for other in later:
        why = "which is listed" if init.told_by else "which comes later in the list of callbacks"
        patterns = shared(init.scope, other.scope)
        if patterns is None:
            return None, [f"{who} yields to InitCallback({other.name!r}), {why}"]
        if patterns:
            said.append(
                f"{who} leaves {', '.join(patterns)} to InitCallback({other.name!r}), {why}"
            )
        left += patterns
    return leaving(init.strategy, left), said


def shared(one: Scope, two: Scope) -> list[str] | None:
    """What two scopes both mean.

    Args:
        one: The scope of the callback that comes first.
        two: The scope of a later one.

    Returns:
        Patterns of `two` that can mean tensors of `one`; None if `two` means all that `one` does.

    Example:
        >>> shared("untrained", ["head.*"]), shared(["head.weight"], ["head.*"])
        (['head.*'], None)
        >>> shared(["*.bias"], ["*.weight"])
        []
    """
    mine, theirs = check_scope(one), check_scope(two)
    if theirs is None or (mine and all(_within(pattern, theirs) for pattern in mine)):
        return None
    if mine is None:
        return theirs
    return [their for their in theirs if any(_meet(_plain(their), _plain(own)) for own in mine)]


def leaving(strategy: StrategyLike, patterns: Sequence[str]) -> StrategyLike:
    """The same strategy, which keeps what the patterns mean.

    Example:
        >>> print(leaving("gpt2", ["head.*"]))
        gpt2(head.*: keep)
    """
    if not patterns:
        return strategy
    if isinstance(strategy, str):
        strategy = InitSpec(strategy)
    if isinstance(strategy, InitSpec):
        kept = dict.fromkeys(patterns, InitSpec("keep"))
        return replace(strategy, overrides={**strategy.overrides, **kept})
    return _leaving(resolve(strategy), patterns)


def _leaving(base: Strategy, patterns: Sequence[str]) -> Strategy:
    kept = base._replace(initializer=Overridden(base.initializer, dict.fromkeys(patterns, keep)))
    if base.prepare is None:
        return kept
    return kept._replace(
        prepare=lambda model, found: _leaving(base.prepared(model, found), patterns)
    )


def together(plans: Sequence[Plan]) -> Plan:
    """The plans of one model as one: for each tensor the last that writes it, else the last.

    Args:
        plans: At least one, in the order in which they are carried out.
    """
    written = {entry.info.names: entry for plan in plans for entry in plan if entry.written}
    return replace(
        plans[-1], entries=tuple(written.get(entry.info.names, entry) for entry in plans[-1])
    )


def _within(pattern: str, others: Sequence[str]) -> bool:
    # A star stands for any text, so a text that no pattern spells out stands for a star.
    text = _plain(pattern).replace("*", "\0\0")
    return pattern in others or any(fnmatchcase(text, other) for other in others)


def _plain(pattern: str) -> str:
    """A set of characters as any character: patterns may then only seem to mean the same."""
    return re.sub(r"\[[^]]*\]", "?", pattern)


@cache
def _meet(one: str, two: str) -> bool:
    """Whether a name can match both patterns; a role may mean any."""
    if one.startswith("role:") or two.startswith("role:"):
        return True
    if not one or not two:
        return not (one + two).strip("*")
    if one[0] == "*":
        return _meet(one[1:], two) or _meet(one, two[1:])
    if two[0] == "*":
        return _meet(two, one)
    return (one[0] == two[0] or "?" in (one[0], two[0])) and _meet(one[1:], two[1:])
