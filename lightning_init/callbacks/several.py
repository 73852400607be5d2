"""Several InitCallbacks in one Trainer: for each tensor the last one that means it decides."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cache

from lightning_init.strategies.initializers import Overridden, keep
from lightning_init.strategies.plan import Plan
from lightning_init.strategies.planning import Scope, StrategyLike, check_scope, resolve
from lightning_init.strategies.registry import Strategy
from lightning_init.strategies.spec import InitSpec


def left_over(
    strategy: StrategyLike, scope: Scope, name: str, later: Sequence[tuple[str, Scope]]
) -> tuple[StrategyLike | None, list[str]]:
    """What is left to do for one InitCallback.

    Args:
        strategy: Its strategy.
        scope: Its scope.
        name: The strategy's name.
        later: Names and scopes of the callbacks that come later.

    Returns:
        The strategy, which keeps what later ones mean, None if they mean all; and what to say.

    Example:
        >>> left_over("gpt2", "all", "gpt2", [("keep", "all")])[1][0].split(",")[0]
        "InitCallback('gpt2') yields to InitCallback('keep')"
    """
    left: list[str] = []
    said = []
    for other, theirs in later:
        whom = f"InitCallback({other!r}), which comes later in the list of callbacks"
        patterns = shared(scope, theirs)
        if patterns is None:
            return None, [f"InitCallback({name!r}) yields to {whom}"]
        if patterns:
            said.append(f"InitCallback({name!r}) leaves {', '.join(patterns)} to {whom}")
        left += patterns
    return leaving(strategy, left), said


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
