"""Trials in which nothing learns cannot tell inits apart: they are made longer.

After a few trials of any kind that taught nothing, the screening begins anew with trials three times as
long, up to what is allowed. What was tried stays in the storage, as a study named after its steps;
which of these exist says how far an earlier session has come.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import optuna
from optuna.trial import TrialState

from lightning_init.search.budget import Budget

SEARCH = "search"  # the name of the screening
ENOUGH = 8  # finished trials, of which
_CURVES = 3  # at least show their losses
_FACTOR = 3
_LEAST = 0.05  # of the training loss: a fall of less is that of guessing
_SURE = 4.0  # standard errors by which a loss that falls slowly still falls in the end
_POINTS = 12  # losses: a curve of fewer has no end to compare with its start
_WHOLE = "whole"  # the attribute of a copy that is complete


def fall(curve: Sequence[Sequence[float]]) -> float | None:
    """How much of the training loss is gone at the end; what is within the noise of a plateau is 0.

    The first and the last tenth of the losses are compared. A fall of less than 5 % is one of
    guessing, unless the last quarter is still clearly lower than the one in the middle.

    Args:
        curve: (step, loss) pairs in order.

    Returns:
        The share; None if there are fewer than twelve losses, or if the loss starts at 0 or below.

    Example:
        >>> round(fall([(step, 2.0 - 0.05 * step) for step in range(20)]), 3)
        0.456
        >>> fall([(step, 2.3 + 0.01 * (step % 3)) for step in range(30)])
        0.0
    """
    losses = [value for _, value in curve if math.isfinite(value)]
    if len(losses) < _POINTS:
        return None
    tenth, quarter = max(1, len(losses) // 10), len(losses) // 4
    first, last = losses[:tenth], losses[-tenth:]
    start = sum(first) / tenth
    if start <= 0:
        return None
    share = max(0.0, 1 - sum(last) / tenth / start)
    middle, end = losses[-3 * quarter : -2 * quarter], losses[-quarter:]
    return share if share >= _LEAST or _lower(middle, end) else 0.0


def _lower(one: Sequence[float], two: Sequence[float]) -> bool:
    """Whether the second of two equally long samples has a clearly lower mean."""
    count = len(one)
    means = [sum(each) / count for each in (one, two)]
    squares = (
        sum((value - mean) ** 2 for value in each)
        for each, mean in zip((one, two), means, strict=True)
    )
    error = math.sqrt(sum(squares) / (count * (count - 1)))
    return means[0] - means[1] > _SURE * error


def nothing_learned(study: optuna.Study, trials: int) -> bool:
    """Whether enough trials have ended and the training loss of none of them fell.

    Args:
        study: The screening.
        trials: How many there will be in all.
    """
    states = (TrialState.COMPLETE, TrialState.PRUNED)
    done = study.get_trials(deepcopy=False, states=states)
    if len(done) < min(ENOUGH, trials):
        return False
    falls = [fall(trial.user_attrs.get("curve", ())) for trial in done]
    known = [one for one in falls if one is not None]
    return len(known) >= min(_CURVES, trials) and max(known) == 0


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
    confirm = round(budget.horizon / budget.steps * steps)
    return replace(
        budget,
        steps=steps,
        confirm_steps=max(steps, min(confirm, budget.longest_steps)),
        too_short=(*budget.too_short, budget.steps),
    )


def as_far(storage: optuna.storages.BaseStorage, budget: Budget) -> Budget:
    """The budget with trials as long as an earlier session has made them.

    Args:
        storage: Of the search.
        budget: With the steps that the user asked for.
    """
    studies = {one.study_name: one.user_attrs for one in storage.get_all_studies()}
    while _WHOLE in studies.get(_name(budget.steps), {}) and (more := longer(budget)) is not None:
        budget = more
    stored = studies.get(SEARCH, {}).get("budget", {})
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
