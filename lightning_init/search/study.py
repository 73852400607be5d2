"""Screen wide with one seed, sweep learning rates, confirm the best few on fresh paired seeds.

This process owns the Optuna study and is the only one that writes it; executors are told trials
and answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import optuna

from lightning_init.architecture.arguments import unknown
from lightning_init.search.budget import Budget, Goal
from lightning_init.search.confirm import Confirmation, fresh_seeds
from lightning_init.search.database import hidden
from lightning_init.search.finalists import HopelessError, rated
from lightning_init.search.journal import open_storage
from lightning_init.search.lengthen import SEARCH, as_far, said, set_aside
from lightning_init.search.loop import Loop, Progress, Seen
from lightning_init.search.records import open_part, open_study, row
from lightning_init.search.result import SearchResult
from lightning_init.search.screening import Screening
from lightning_init.search.session import Workers, quiet, session
from lightning_init.search.space import Space
from lightning_init.search.statistics import Mode
from lightning_init.search.sweep import Sweep
from lightning_init.search.trial import Evaluate

JOURNAL = "study.journal"


def search_init(
    evaluate: Evaluate,
    space: Space,
    *,
    trials: int = 40,
    steps: int = 200,
    seed: int = 0,
    confirm_seeds: int = 5,
    confirm_steps: int = 0,
    top: int = 3,
    mode: Mode | Sequence[Mode] = "min",
    monitor: str | Sequence[str] = "metric",
    sampler: Literal["tpe", "gp"] = "tpe",
    pruning: bool = True,
    lr_key: str = "",
    workers: int | Workers = 0,
    storage: str | Path | None = None,
    identity: str = "",
    longest_steps: int = 0,
    log: Path | None = None,
    progress: Progress | None = None,
    seen: Seen | None = None,
) -> SearchResult:
    """Find the best init for a task by short trials, and say honestly whether it is better.

    Args:
        evaluate: Runs one trial.
        space: What to try; the as-built model (`keep`) is always the first trial.
        trials: Trials in the screening; with a storage, the total over all sessions.
        steps: Training steps of each trial.
        seed: Of the sampler and of every screening trial; confirmation uses seed + 1, + 2, ...
        confirm_seeds: Fresh paired seeds for the best few and `keep`, at least 2.
        confirm_steps: Training steps of a confirmation run, at least `steps`; 0 for `steps`.
        top: How many are confirmed.
        mode: Whether a smaller or larger metric is better; one for each where there are several.
        monitor: What the metric is called; several are searched together (Pareto).
        sampler: `tpe`, or `gp` for 50 trials and more.
        pruning: Whether trials that train slower than half of the others are ended early.
        lr_key: The axis of the space that is the learning rate, `""` for none.
        workers: Worker processes, or `Workers(...)`; 0 runs trials in this one.
        storage: A journal file or a database's URL; the same call then goes on where it ended.
        identity: What must be the same for a stored study to go on.
        longest_steps: Where no trial learns anything, the search begins anew with trials three
            times as long, up to this; what was tried is kept. 0 for never.
        log: A file for what workers print.
        progress: Is told how it goes.
        seen: Is called as `seen(phase, number, trial, outcome)` for every trial that has ended.

    Returns:
        The result; `.suggestion()` is None if nothing beats `keep` by more than the noise.

    Raises:
        ValueError: If an argument is not legal, or the storage holds another study.
        HopelessError: If every trial crashes.
        StartError: If no worker process can be started.
        KeyboardInterrupt: If it is interrupted; what is finished is kept.

    Example:
        >>> from lightning_init import Outcome
        >>> def evaluate(trial, report):
        ...     return Outcome(trial.seed % 7 / 100 + (trial.spec.strategy != "orthogonal"))
        >>> result = search_init(evaluate, Space(("orthogonal", "normal")), trials=6)
        >>> result.suggestion().strategy
        'orthogonal'
    """
    budget = Budget(
        *(trials, steps, seed, confirm_seeds, confirm_steps, top, goals_for(monitor, mode)),
        *(sampler, pruning, lr_key, identity, longest_steps),
    )
    if lr_key and lr_key not in space.config:
        raise ValueError(f"lr_key: {unknown('axis of the space', lr_key, space.config)}")
    with session(evaluate, storage, workers, log, progress, seen) as (opened, loop):
        loop.ahead = sampler == "gp"  # it takes longer to ask than many a trial
        study, budget = _screened(opened, loop, budget, space)
        sweep = Sweep(study, budget, space, open_part(opened, "sweep", budget))
        loop.run(sweep)
        confirmation = _confirmation(opened, budget, sweep)
        loop.run(confirmation)
        return _result(study, budget, space, sweep, confirmation)


def read_back(folder: str | Path, storage: str | None = None) -> SearchResult:
    """The result of a search from what its folder holds; runs nothing.

    Args:
        folder: The run's folder.
        storage: The database, where the search was not kept in the folder.

    Raises:
        ValueError: If there is no search, or if it has not ended.
    """
    path = Path(folder) / JOURNAL
    again = "the command that began it goes on with it"
    if storage is None and not path.is_file():
        raise ValueError(f"no search in {folder}: it has no {JOURNAL}; pass a folder of a search")
    quiet()
    with open_storage(storage or path) as opened:
        names = {one.study_name for one in opened.get_all_studies()}
        if SEARCH not in names and any(name.startswith(f"{SEARCH} ") for name in names):
            raise ValueError(f"the search in {folder} begins anew with longer trials: {again}")
        if SEARCH not in names:
            raise ValueError(f"no search in {hidden(storage or path)}, but perhaps a comparison")
        study = optuna.load_study(study_name=SEARCH, storage=opened)
        if not {"budget", "space"} <= study.user_attrs.keys():
            raise ValueError(f"the search in {folder} has not begun: {again}")
        budget = Budget.from_dict(study.user_attrs["budget"])
        space = Space.from_dict(study.user_attrs["space"])
        try:
            sweep = Sweep(study, budget, space, open_part(opened, "sweep", budget))
            confirmation = _confirmation(opened, budget, sweep)
            return _result(study, budget, space, sweep, confirmation)
        except (HopelessError, KeyError):
            raise ValueError(f"the search in {folder} has not ended: {again}") from None


def goals_for(monitor: str | Sequence[str], mode: Mode | Sequence[Mode]) -> tuple[Goal, ...]:
    """Names and directions side by side; one direction may stand for all.

    Raises:
        ValueError: If there are not as many.
    """
    names = [monitor] if isinstance(monitor, str) else list(monitor)
    modes: list[Any] = [mode] * len(names) if isinstance(mode, str) else list(mode)
    if len(modes) != len(names):
        raise ValueError(f"one mode for each of {names} is needed, but got {modes}")
    return tuple(Goal(name, way) for name, way in zip(names, modes, strict=True))


def _screened(
    opened: optuna.storages.BaseStorage, loop: Loop, budget: Budget, space: Space
) -> tuple[optuna.Study, Budget]:
    """The screening with trials that are long enough, as far as they may be."""
    while True:
        budget = as_far(opened, budget)
        screening = Screening(open_study(opened, budget, space), budget, space)
        loop.note = said(budget)
        loop.run(screening)
        if not screening.too_short:
            return screening.study, budget
        set_aside(opened, budget)


def _confirmation(
    opened: optuna.storages.BaseStorage, budget: Budget, sweep: Sweep
) -> Confirmation:
    stored = open_part(opened, "confirm", budget)
    return Confirmation(sweep.candidates(), fresh_seeds(budget), budget, stored)


def _result(
    study: optuna.Study, budget: Budget, space: Space, sweep: Sweep, confirmation: Confirmation
) -> SearchResult:
    baseline, *others = confirmation.candidates()
    return SearchResult.judge(
        baseline,
        others,
        tuple(row(space, trial) for trial in study.get_trials(deepcopy=False)),
        goals=budget.goals,
        steps=budget.horizon,
        study=study,
        screened=budget.steps,
        rates=sweep.rates,
        rate_key=budget.lr_key if rated(budget, space) else "",
        note=said(budget),
        lists=space.lists,
    )
