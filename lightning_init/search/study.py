"""Screen wide with one seed, confirm the best few and the baseline on fresh paired seeds.

This process owns the Optuna study and is the only one that writes it; executors are told trials
and answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import optuna

from lightning_init.search.budget import Budget, Goal
from lightning_init.search.confirm import Confirmation
from lightning_init.search.devices import devices
from lightning_init.search.executors import Executor, InProcess
from lightning_init.search.interrupts import Stop
from lightning_init.search.journal import open_storage
from lightning_init.search.loop import Loop, Progress, Seen
from lightning_init.search.pool import Pool
from lightning_init.search.records import open_part, open_study
from lightning_init.search.result import SearchResult
from lightning_init.search.screening import Screening
from lightning_init.search.space import Space
from lightning_init.search.statistics import Mode
from lightning_init.search.trial import Evaluate


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
    workers: int = 0,
    storage: str | Path | None = None,
    identity: str = "",
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
        lr_key: The configuration key that is the learning rate, `""` for none.
        workers: Worker processes; 0 runs trials in this one.
        storage: A journal file or a database's URL; the same call then goes on where it ended.
        identity: What must be the same for a stored study to go on.
        log: A file for what workers print.
        progress: Is told how it goes.
        seen: Is called as `seen(phase, number, trial, outcome)` for every trial that has ended.

    Returns:
        The result; `.suggestion()` is None if nothing beats `keep` by more than the noise.

    Raises:
        ValueError: If an argument is not legal, or the storage holds another study.
        HopelessError: If every trial crashes.
        KeyboardInterrupt: If it is interrupted; what is finished is kept.

    Example:
        >>> from lightning_init import Outcome
        >>> def evaluate(trial, report):
        ...     return Outcome(trial.seed % 7 / 100 + (trial.spec.strategy != "orthogonal"))
        >>> result = search_init(evaluate, Space(("orthogonal", "normal")), trials=6)
        >>> result.suggestion().strategy
        'orthogonal'
    """
    names = [monitor] if isinstance(monitor, str) else list(monitor)
    modes = [mode] * len(names) if isinstance(mode, str) else list(mode)
    if len(modes) != len(names):
        raise ValueError(f"one mode for each of {names} is needed, but got {modes}")
    goals = tuple(Goal(name, way) for name, way in zip(names, modes, strict=True))
    budget = Budget(
        *(trials, steps, seed, confirm_seeds, confirm_steps, top, goals),
        *(sampler, pruning, lr_key, identity),
    )
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    @cache
    def executor() -> Executor:  # a search that is complete starts no process
        return Pool(evaluate, workers, devices(), log) if workers else InProcess(evaluate)

    with open_storage(storage) as opened, Stop(10.0 if workers else None) as stop:
        study = open_study(opened, budget, space)
        loop = Loop(executor, stop, progress or _silent, seen or _silent)
        try:
            loop.run(Screening(study, budget, space))
            confirmation = Confirmation(study, budget, space, open_part(opened, "confirm", budget))
            loop.run(confirmation)
        finally:
            if executor.cache_info().currsize:
                executor().close()
        return confirmation.result()


def _silent(*news: object) -> None:
    del news
