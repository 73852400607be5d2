"""Who goes on from the screening: the as-built model, and the best few that differ from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from lightning_init.search.budget import Budget
from lightning_init.search.candidates import Candidate, content
from lightning_init.search.pruner import PRUNED
from lightning_init.search.records import ranked, whole
from lightning_init.search.space import STRATEGY, Space
from lightning_init.strategies.spec import InitSpec


class HopelessError(RuntimeError):
    """There is nothing to compare: every trial crashes."""


@dataclass(frozen=True, slots=True)
class Tried:
    """A finished screening trial: what it tried, and its first goal if it has one."""

    spec: InitSpec
    config: Mapping[str, Any]
    metric: float | None


def tried(study: optuna.Study, space: Space) -> list[Tried]:
    """The screening trials that were run to the end or found unhealthy."""
    found = []
    for trial in study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]):
        reason = trial.user_attrs.get("reason", "")
        if whole(space, trial) and not reason.startswith(PRUNED):
            spec, config = space.spec(trial.params), space.overrides(trial.params)
            found.append(Tried(spec, config, None if reason else trial.values[0]))
    return found


def as_built(study: optuna.Study, space: Space) -> Candidate:
    """The as-built model with the configuration as it is.

    Raises:
        HopelessError: If it has not been tried.
    """
    start = space.overrides(space.recipes()[0])
    for trial in study.get_trials(deepcopy=False):
        if trial.params.get(STRATEGY) == "keep" and whole(space, trial):
            one = _candidate(space, trial)
            if not one.spec.params and one.config == start:
                return Candidate(one.number, one.spec, one.config, kind="keep")
    raise HopelessError("the as-built model has not been tried")


def finalists(study: optuna.Study, budget: Budget, space: Space) -> list[Candidate]:
    """The best few, of one init with one learning rate each; of several goals, the Pareto front.

    Of several that begin with the same weights, only the best is taken; none that begins with the
    as-built model's.
    """
    found: dict[str, Candidate] = {}
    built = as_built(study, space)
    seen = {built.content}
    begun = {_drawn(study.get_trials(deepcopy=False)[built.number], built, budget, space)}
    for trial in _in_order(study, budget):
        one = _candidate(space, trial)
        alike, drawn = without_rate(one, budget, space), _drawn(trial, one, budget, space)
        new = one.content not in seen and alike not in found and drawn not in begun
        if new and not _only_rate(one, budget, space):
            found[alike] = one
            begun.add(drawn)
    return list(found.values())[: budget.top]


def rated(budget: Budget, space: Space) -> bool:
    """Whether the learning rate is searched."""
    return budget.lr_key in space.config


def without_rate(one: Candidate, budget: Budget, space: Space) -> str:
    """The content of a candidate but for a learning rate that is searched."""
    skip = budget.lr_key if rated(budget, space) else None
    return content(one.spec, {k: v for k, v in one.config.items() if k != skip})


def _drawn(trial: FrozenTrial, one: Candidate, budget: Budget, space: Space) -> str:
    """The same text for the same weights before the first step, whatever the scheme is called.

    A calibration that is taken back leaves those of the scheme it began with.
    """
    weights = trial.user_attrs.get("info", {}).get("init_fingerprint") or str(one.spec)
    return without_rate(replace(one, spec=InitSpec("keep")), budget, space) + weights


def _only_rate(one: Candidate, budget: Budget, space: Space) -> bool:
    """Whether it is `keep` at another learning rate, which the sweep looks after."""
    if not rated(budget, space) or one.spec != InitSpec("keep"):
        return False
    start = space.overrides(space.recipes()[0])
    return {**one.config, budget.lr_key: start[budget.lr_key]} == start


def _in_order(study: optuna.Study, budget: Budget) -> Sequence[FrozenTrial]:
    if len(budget.goals) == 1:
        return ranked(study, budget.mode)
    front = [trial for trial in study.best_trials if not trial.user_attrs.get("reason")]
    return _spread(front, [1 if goal.mode == "min" else -1 for goal in budget.goals])


def _spread(front: list[FrozenTrial], signs: Sequence[int]) -> list[FrozenTrial]:
    """The best of each goal first, then whoever is nearest to the best of all goals at once."""
    if not front:
        return []
    goals = range(len(signs))
    low = [min(s * t.values[g] for t in front) for g, s in enumerate(signs)]
    high = [max(s * t.values[g] for t in front) for g, s in enumerate(signs)]

    def far(trial: FrozenTrial) -> float:
        parts = [(signs[g] * trial.values[g] - low[g]) / ((high[g] - low[g]) or 1.0) for g in goals]
        return math.hypot(*parts)

    best = [min(front, key=lambda t, g=g: signs[g] * t.values[g]) for g in goals]  # type: ignore[misc]
    order = [*best, *sorted(front, key=far)]
    return list({trial.number: trial for trial in order}.values())


def _candidate(space: Space, trial: FrozenTrial) -> Candidate:
    return Candidate(trial.number, space.spec(trial.params), space.overrides(trial.params))
