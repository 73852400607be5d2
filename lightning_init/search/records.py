"""What a search keeps in its studies, and how it is read back.

`search` holds the screening as Optuna made it; `sweep`, `confirm` and `compare` hold one finished
trial for each run. Budget and space are attributes of the screening, so that a folder alone is
enough to read a result back.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from lightning_init.search.budget import Budget
from lightning_init.search.candidates import Run
from lightning_init.search.mistakes import ConfigError
from lightning_init.search.space import Space
from lightning_init.search.statistics import Mode
from lightning_init.search.trial import Outcome
from lightning_init.search.versions import versions

_POINTS = 60  # of a loss curve are kept in the study


class OtherStudyError(ValueError):
    """The storage holds the study of something else."""


def open_study(storage: optuna.storages.BaseStorage, budget: Budget, space: Space) -> optuna.Study:
    """The screening: what was lost is queued again; `keep` and `auto` come first."""
    study = open_part(storage, "search", budget)
    kept = {"budget": budget.to_dict(), "space": space.to_dict(), "versions": versions()}
    if study.get_trials(deepcopy=False):
        _check_same(study, budget, space)
    for name, data in kept.items():
        if study.user_attrs.get(name) != json.loads(json.dumps(data)):
            study.set_user_attr(name, data)
    requeue_running(study)  # their process is gone: this one owns the study now
    for point in space.recipes()[: min(2, budget.trials)]:
        study.enqueue_trial(point, skip_if_exists=True)
    return study


def open_part(storage: optuna.storages.BaseStorage, name: str, budget: Budget) -> optuna.Study:
    """One of the studies of a search, made or gone on with.

    Raises:
        OtherStudyError: If the storage holds the study of something else.
    """
    study = optuna.create_study(
        study_name=name,
        storage=storage,
        pruner=optuna.pruners.NopPruner(),
        directions=["minimize" if goal.mode == "min" else "maximize" for goal in budget.goals],
        load_if_exists=True,
    )
    # A search that goes on must not propose the same random points again.
    seed = (budget.seed + 7919 * len(study.get_trials(deepcopy=False))) % 2**32
    gp = budget.sampler == "gp"
    study.sampler = (optuna.samplers.GPSampler if gp else optuna.samplers.TPESampler)(seed=seed)
    known = study.user_attrs.get("identity")
    if known is None:
        study.set_user_attr("identity", budget.identity)
    elif known != budget.identity:
        raise OtherStudyError("this storage holds the study of another configuration")
    return study


def _check_same(study: optuna.Study, budget: Budget, space: Space) -> None:
    """Refuse to mix trials that cannot be compared; more of them, or judged otherwise, can."""
    now = json.loads(json.dumps({**budget.to_dict(), "space": space.to_dict()}))
    before = {**study.user_attrs.get("budget", {}), "space": study.user_attrs.get("space")}
    for name in ("goals", "steps", "seed", "space"):
        if before.get(name, now[name]) != now[name]:
            said = "" if name == "space" else f" ({before[name]}, but got {now[name]})"
            raise OtherStudyError(
                f"this storage holds a search with other {name}{said}: pass another storage, or "
                "what it began with"
            )


def requeue_running(study: optuna.Study) -> None:
    """Queue every trial again that no process runs any more."""
    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        requeue(study, trial.number, crashed=False)


def requeue(study: optuna.Study, number: int, *, crashed: bool) -> None:
    """Queue a lost trial's parameters once more and mark it as failed, safe to be cut off between.

    Args:
        study: The screening.
        number: The trial.
        crashed: Whether the trial itself failed: it is tried once more only. A trial that was
            interrupted has had no try yet.
    """
    trial = study.get_trials(deepcopy=False)[number]
    # A recipe may have been lost before it was told its own parameters.
    if params := {**trial.system_attrs.get("fixed_params", {}), **trial.params}:
        attrs = {"retry_of": number} if crashed else dict(trial.user_attrs)
        study.enqueue_trial(params, user_attrs=attrs)
    study.tell(number, state=TrialState.FAIL)


def healthy(study: optuna.Study) -> list[FrozenTrial]:
    """The finished trials that were not stopped."""
    done = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    return [trial for trial in done if not trial.user_attrs.get("reason")]


def ranked(study: optuna.Study, mode: Mode) -> list[FrozenTrial]:
    """The healthy trials, best first."""
    sign = 1 if mode == "min" else -1
    return sorted(healthy(study), key=lambda trial: sign * trial.values[0])


def attributes(outcome: Outcome) -> dict[str, Any]:
    """What the study keeps of an outcome."""
    every = max(1, math.ceil(len(outcome.curve) / _POINTS))
    thin = [list(point) for point in outcome.curve[::every]]
    return {
        "reason": outcome.reason,
        "metric": outcome.metric,
        "others": list(outcome.others),
        "readings": [[step, value] for step, value in outcome.readings if math.isfinite(value)],
        "curve": [[step, value] for step, value in thin if math.isfinite(value)],
        "seconds": outcome.seconds,
        "info": _plain(outcome.info),
    }


def check_values(study: optuna.Study, outcome: Outcome) -> None:
    """Refuse an outcome that has not a value for each goal.

    Raises:
        ConfigError: If it has more or fewer.
    """
    wanted, got = len(study.directions), len(outcome.values)
    if got not in (0, wanted):
        raise ConfigError(
            f"an Outcome needs {wanted} value{'s' if wanted > 1 else ''}, one for each monitor, "
            f"but got {got}: metric is the first, others=(...) are the further ones"
        )


def _plain(value: Any) -> Any:
    """Facts as JSON has them: of what it has not, the text; of what is not finite, None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        return str(value)
    return number if math.isfinite(number) else None


RunKey = tuple[str, int, int]  # content of the candidate, seed, steps


def remember(study: optuna.Study, key: RunKey, outcome: Outcome) -> Run:
    """Store a run; one without a metric as failed, so that no tool takes it for a good one."""
    what, seed, steps = key
    failed = outcome.metric is None
    trial = optuna.create_trial(
        state=TrialState.FAIL if failed else TrialState.COMPLETE,
        values=None if failed else list(outcome.values),
        user_attrs={**attributes(outcome), "candidate": what, "seed": seed, "steps": steps},
    )
    study.add_trial(trial)
    return _run_of(trial)


def known_runs(study: optuna.Study) -> dict[RunKey, Run]:
    """Every stored run."""
    states = (TrialState.COMPLETE, TrialState.FAIL)
    runs = study.get_trials(deepcopy=False, states=states)
    return {(*(t.user_attrs[k] for k in ("candidate", "seed", "steps")),): _run_of(t) for t in runs}


def _run_of(trial: FrozenTrial) -> Run:
    attrs = trial.user_attrs
    return Run(
        seed=attrs["seed"],
        metric=attrs["metric"],
        reason=attrs["reason"],
        curve=_points(attrs["curve"]),
        info=attrs["info"],
        others=tuple(attrs["others"]),
        readings=_points(attrs["readings"]),
        steps=attrs["steps"],
    )


def _points(stored: Iterable[Sequence[float]]) -> tuple[tuple[int, float], ...]:
    return tuple((int(step), float(value)) for step, value in stored)


def whole(space: Space, trial: FrozenTrial) -> bool:
    """Whether a trial has all its parameters; one that was cut off while starting has not."""
    return space.axes.keys() <= trial.params.keys()


def row(space: Space, trial: FrozenTrial) -> dict[str, Any]:
    """A screening trial as plain data."""
    known = whole(space, trial)
    return {
        "number": trial.number,
        "state": trial.state.name,
        "spec": space.spec(trial.params).to_dict() if known else None,
        "config": space.overrides(trial.params) if known else {},
        "value": trial.values[0] if trial.state is TrialState.COMPLETE else None,
        "metric": trial.user_attrs.get("metric"),
        "reason": trial.user_attrs.get("reason", ""),
        "seconds": trial.user_attrs.get("seconds"),
        "curve": trial.user_attrs.get("curve", []),
    }
