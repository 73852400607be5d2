"""The first trials: each strategy as it comes, at a learning rate that is looked for meanwhile.

At a wrong learning rate the ranking of inits misleads, and nobody knows whether the user's is
right. So the as-built model and `auto` come first, at the user's own; then strategies and learning
rates take turns: the next strategy at the best rate so far, the best trial so far at the next
untried rate beside its own. When all strategies are tried and the best has both neighbours, the
sampler goes on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from lightning_init.search.budget import Budget
from lightning_init.search.records import ranked
from lightning_init.search.space import STRATEGY, Space

OPENING = "opening"  # the attribute of a trial that is part of it: `recipe` or `probe`
_STRIDE = math.sqrt(10.0)  # between two learning rates that are tried
_SAME = 0.01  # of a learning rate: nobody tells these apart
_PROBES = 8  # at most


def queue_opening(study: optuna.Study, budget: Budget, space: Space) -> None:
    """Queue the next trial of the opening, where there is one and nothing waits.

    Args:
        study: The screening.
        budget: How many trials; which configuration key is the learning rate.
        space: What is searched.
    """
    trials = study.get_trials(deepcopy=False)
    if any(trial.state is TrialState.WAITING for trial in trials):
        return
    asked = [_asked(trial) for trial in trials]
    recipes = space.recipes()[2:]  # the first two are queued when the study is made
    names = {point[STRATEGY] for point, kind in asked if kind == "recipe"}
    left = [point for point in recipes if point[STRATEGY] not in names]
    probe = None
    if sum(kind == "probe" for _, kind in asked) < _PROBES:
        probe = _probe(study, budget, space, [point for point, _ in asked])
    tried = sum(kind == "recipe" for _, kind in asked)
    probed = sum(kind == "probe" for _, kind in asked)
    # Where there are few trials, every strategy is tried first.
    turn = probed < tried and budget.trials >= 2 * len(space.names)
    if probe is not None and (turn or not left):
        study.enqueue_trial(probe, user_attrs={OPENING: "probe"})
    elif left:
        point = {**left[0], **_best_rate(study, budget, space)}
        study.enqueue_trial(point, user_attrs={OPENING: "recipe"})


def _asked(trial: FrozenTrial) -> tuple[Mapping[str, Any], str]:
    params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
    return params, trial.user_attrs.get(OPENING, "")


def _best_rate(study: optuna.Study, budget: Budget, space: Space) -> dict[str, Any]:
    """The learning rate of the best trial so far; the user's own if there is none."""
    found = ranked(study, budget.mode)
    if not found or budget.lr_key not in space.config:
        return {}
    return {budget.lr_key: found[0].params[budget.lr_key]}


def _probe(
    study: optuna.Study, budget: Budget, space: Space, asked: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """The best trial so far at the first untried learning rate beside its own."""
    axis, found = space.config.get(budget.lr_key), ranked(study, budget.mode)
    if axis is None or axis.choices or axis.low <= 0 or not found:
        return None
    best = found[0].params
    used = space.used(best)
    for factor in (_STRIDE, 1 / _STRIDE):
        rate = min(max(best[budget.lr_key] * factor, axis.low), axis.high)
        point = {**best, budget.lr_key: rate}
        known = (
            _alike(point, other, used - {budget.lr_key}) and _close(rate, other.get(budget.lr_key))
            for other in (best, *asked)
        )
        if not any(known):
            return point
    return None


def _alike(one: Mapping[str, Any], other: Mapping[str, Any], keys: frozenset[str]) -> bool:
    return all(one.get(key) == other.get(key) for key in keys)


def _close(rate: float, other: float | None) -> bool:
    return other is not None and abs(rate / other - 1) < _SAME
