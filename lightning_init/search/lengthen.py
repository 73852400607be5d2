"""Trials in which nothing learns cannot tell inits apart: they are made longer.

After a few trials of any kind that taught nothing, the screening begins anew with trials three times as
long, up to what is allowed. What was tried stays in the storage, as a study named after its steps;
which of these exist says how far an earlier session has come.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import mean, variance

import optuna
from optuna.trial import TrialState

from lightning_init.search.budget import Budget

SEARCH = "search"  # the name of the screening
ENOUGH = 8  # finished trials, of which
_CURVES = 3  # at least show their losses
_FACTOR = 3
_LEAST = 0.05  # of the loss of guessing: an end that is lower by less is guessing, too
_SURE = 4.0  # standard errors by which a loss that falls slowly still falls in the end
_POINTS = 12  # losses: a curve of fewer has no end to compare with its start
Curve = Sequence[Sequence[float]]
_WHOLE = "whole"  # the attribute of a copy that is complete


def learned(curves: Iterable[Curve]) -> bool | None:
    """Whether the training loss of any trial went below that of guessing.

    Guessing is the lowest loss with which a trial begins: some begin far above, and come down to it
    without having learned anything. The means of the first and the last tenth of the losses are
    compared. A trial has learned if it ends 5 % below, or if its last quarter is clearly below, and
    clearly below the quarter before.

    Args:
        curves: (step, loss) pairs in order, one curve for each trial of the same job.

    Returns:
        None if fewer than three curves have twelve losses, or if losses start at 0 or below.

    Example:
        >>> flat, falls, comes_down = (
        ...     [(n, 2.3) for n in range(20)],
        ...     [(n, 2.3 - 0.05 * n) for n in range(20)],
        ...     [(n, 2.3 + 8 / (1 + n * n)) for n in range(20)],
        ... )
        >>> learned([flat, falls, comes_down]), learned([flat, flat, comes_down]), learned([flat])
        (True, False, None)
    """
    known = []
    for curve in curves:
        losses = [value for _, value in curve if math.isfinite(value)]
        if len(losses) >= _POINTS:
            tenth = len(losses) // 10
            known.append((mean(losses[:tenth]), mean(losses[-tenth:]), losses))
    guessing = min((start for start, _, _ in known), default=0.0)
    if len(known) < _CURVES or guessing <= 0:
        return None
    return any(
        end < (1 - _LEAST) * guessing or _still_falls(losses, guessing) for _, end, losses in known
    )


def _still_falls(losses: Sequence[float], below: float) -> bool:
    quarter = len(losses) // 4
    before, last = losses[-2 * quarter : -quarter], losses[-quarter:]
    errors = [math.sqrt(variance(each) / quarter) for each in (before, last)]
    falls = mean(before) - mean(last) > _SURE * math.hypot(*errors)
    return falls and mean(last) < below - _SURE * errors[1]


def nothing_learned(study: optuna.Study, trials: int) -> bool:
    """Whether enough trials have ended, and none has learned anything.

    Args:
        study: The screening.
        trials: How many there will be in all.
    """
    states = (TrialState.COMPLETE, TrialState.PRUNED)
    done = study.get_trials(deepcopy=False, states=states)
    if len(done) < min(ENOUGH, trials):
        return False
    return learned(trial.user_attrs.get("curve", ()) for trial in done) is False


def longer(budget: Budget) -> Budget | None:
    """The budget with longer trials, None if they are as long as they may be.

    Example:
        >>> longer(Budget(steps=80, confirm_steps=240, longest_steps=250)).steps
        250
    """
    steps = min(_FACTOR * budget.steps, budget.longest_steps)
    if steps <= budget.steps:
        return None
    # A little more is better than another start.
    steps = budget.longest_steps if 1.2 * steps > budget.longest_steps else steps
    more = _with_steps(budget, steps, budget.longest_steps)
    return replace(more, too_short=(*budget.too_short, budget.steps))


def _with_steps(budget: Budget, steps: int, longest: int) -> Budget:
    """Longer trials, and runs of the confirmation that are longer by as much if they may be."""
    confirm = min(round(budget.horizon / budget.steps * steps), longest)
    return replace(budget, steps=steps, confirm_steps=max(steps, confirm))


def as_far(storage: optuna.storages.BaseStorage, budget: Budget) -> Budget:
    """The budget with trials as long as an earlier session has made them, whatever is allowed now.

    Args:
        storage: Of the search.
        budget: With the steps that the user asked for.
    """
    studies = {one.study_name: one.user_attrs for one in storage.get_all_studies()}
    stored = studies.get(SEARCH, {}).get("budget", {})
    before = tuple(stored.get("too_short", ()))
    if budget.steps in before and all(_WHOLE in studies.get(_name(n), {}) for n in before):
        short = before[before.index(budget.steps) :]
        far = max(budget.longest_steps, stored["longest_steps"])
        budget = replace(_with_steps(budget, stored["steps"], far), too_short=short)
    while _WHOLE in studies.get(_name(budget.steps), {}) and (more := longer(budget)) is not None:
        budget = more
    if stored.get("steps") in budget.too_short:  # it was cut off between the copy and this
        optuna.delete_study(study_name=SEARCH, storage=storage)
    return budget


def set_aside(storage: optuna.storages.BaseStorage, budget: Budget) -> None:
    """Keep the screening under a name of its own, so that another can begin; safe to be cut off.

    Args:
        storage: Of the search.
        budget: Of the screening.
    """
    name = _name(budget.steps)
    if name in {one.study_name for one in storage.get_all_studies()}:  # half a copy
        optuna.delete_study(study_name=name, storage=storage)
    optuna.copy_study(
        from_study_name=SEARCH, from_storage=storage, to_storage=storage, to_study_name=name
    )
    optuna.load_study(study_name=name, storage=storage).set_user_attr(_WHOLE, True)
    optuna.delete_study(study_name=SEARCH, storage=storage)


def said(budget: Budget) -> str:
    """Why trials are longer than was asked for, `""` if they are not.

    Example:
        >>> said(Budget(steps=240, too_short=(80,)))
        'nothing learned anything in trials of 80 steps: they have 240 now'
    """
    if not budget.too_short:
        return ""
    short = " and ".join(str(steps) for steps in budget.too_short)
    return f"nothing learned anything in trials of {short} steps: they have {budget.steps} now"


def _name(steps: int) -> str:
    return f"{SEARCH} of {steps} steps"
