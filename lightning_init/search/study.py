"""Screen wide with one seed, confirm the best few and the baseline on fresh paired seeds.

This process owns the Optuna study and is the only one that writes it; executors are told trials
and answer. An unhealthy trial is told as a finite, capped penalty with a constraint, so that the
sampler learns to avoid it; a crashed one fails and is tried once more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.trial import TrialState

from lightning_init.search.confirm import Confirmation, HopelessError, Progress
from lightning_init.search.evaluate import Evaluate, Trial
from lightning_init.search.job import ConfigError
from lightning_init.search.journal import open_storage
from lightning_init.search.records import (
    Budget,
    attributes,
    healthy,
    open_part,
    open_study,
    ranked,
    requeue,
    requeue_running,
)
from lightning_init.search.result import SearchResult
from lightning_init.search.space import STRATEGY, Space
from lightning_init.search.statistics import Mode
from lightning_init.search.workers import Answer, Executor, InProcess, Pool, devices

_HOPELESS = 3  # crashes in a row, without any success before, end the search


def search_init(
    evaluate: Evaluate,
    space: Space,
    *,
    trials: int = 40,
    steps: int = 200,
    seed: int = 0,
    confirm_seeds: int = 5,
    top: int = 3,
    mode: Mode = "min",
    monitor: str = "metric",
    sampler: Literal["tpe", "gp"] = "tpe",
    workers: int = 0,
    storage: str | Path | None = None,
    identity: str = "",
    log: Path | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Find the best init for a task by short trials, and say honestly whether it is better.

    Args:
        evaluate: Runs one trial.
        space: What to try; the as-built model (`keep`) is always the first trial.
        trials: Trials in the screening; with a storage, the total over all sessions.
        steps: Training steps of each trial.
        seed: Of the sampler and of every screening trial; confirmation uses seed + 1, + 2, ...
        confirm_seeds: Fresh paired seeds for the best few and `keep`, at least 2.
        top: How many are confirmed.
        mode: Whether a smaller or larger metric is better.
        monitor: What the metric is called.
        sampler: `tpe`, or `gp` for 50 trials and more.
        workers: Worker processes; 0 runs trials in this one.
        storage: A journal file or a database's URL; the same call then goes on where it ended.
        identity: What must be the same for a stored study to go on.
        log: A file for what workers print.
        progress: Called as `progress(phase, done, total, text)`.

    Returns:
        The result; `.suggestion()` is None if nothing beats `keep` by more than the noise.

    Raises:
        ValueError: If an argument is not legal, or the storage holds another study.
        HopelessError: If every trial crashes.

    Example:
        >>> from lightning_init.search.evaluate import Outcome
        >>> def evaluate(trial, report):
        ...     return Outcome(trial.seed % 7 / 100 + (trial.spec.strategy != "orthogonal"))
        >>> result = search_init(evaluate, Space(("orthogonal", "normal")), trials=6)
        >>> result.suggestion().strategy
        'orthogonal'
    """
    budget = Budget(trials, steps, seed, confirm_seeds, top, mode, monitor, sampler, identity)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    say = progress or _silent

    @cache
    def executor() -> Executor:  # a search that is complete starts no process
        return Pool(evaluate, workers, devices(), log) if workers else InProcess(evaluate)

    with open_storage(storage) as opened:
        study = open_study(opened, budget, space)
        confirmation = Confirmation(study, budget, space, executor, say)
        try:
            _Screening(study, budget, space, executor, say).run()
            runs = confirmation.run(open_part(opened, "confirm", budget))
        finally:
            if executor.cache_info().currsize:
                executor().close()
        return confirmation.result(runs)


@dataclass
class _Screening:
    study: optuna.Study
    budget: Budget
    space: Space
    executor: Callable[[], Executor]
    progress: Progress
    running: dict[int, optuna.Trial] = field(default_factory=dict)
    crashes: int = 0

    def run(self) -> None:
        """Ask, run and tell until enough trials are complete."""
        try:
            while True:
                while self._missing > 0 and self.executor().idle:
                    self._start()
                if not self.running:
                    return
                self.progress("screening", self._done, self.budget.trials, self._best_text())
                answer = self.executor().next(self._report)
                self._finish(self.running.pop(answer.job), answer)
                self.progress("screening", self._done, self.budget.trials, self._best_text())
        except BaseException:
            requeue_running(self.study)
            raise

    @property
    def _missing(self) -> int:
        return self.budget.trials - self._done - len(self.running)

    @property
    def _done(self) -> int:
        states = (TrialState.COMPLETE, TrialState.PRUNED)
        return len(self.study.get_trials(deepcopy=False, states=states))

    def _start(self) -> None:
        trial = self.study.ask(self._distributions)
        self.running[trial.number] = trial
        self.executor().submit(trial.number, self._trial(trial.params))

    @property
    def _distributions(self) -> dict[str, optuna.distributions.BaseDistribution]:
        return {name: axis.distribution for name, axis in self.space.axes.items()}

    def _trial(self, values: Mapping[str, Any]) -> Trial:
        spec, overrides = self.space.spec(values), self.space.overrides(values)
        # The as-built model is never stopped: everything is measured against it.
        gated = values[STRATEGY] != "keep"
        return Trial(spec, overrides, self.budget.seed, self.budget.steps, gated)

    def _report(self, job: int, step: int, value: float) -> bool:
        trial = self.running.get(job)
        if trial is not None:
            trial.report(value, step)
        return False

    def _finish(self, trial: optuna.Trial, answer: Answer) -> None:
        if answer.outcome is None:
            self._crashed(trial, answer)
            return
        self.crashes = -1
        outcome = answer.outcome
        for key, value in attributes(outcome).items():
            trial.set_user_attr(key, value)
        value = outcome.metric
        if value is None or outcome.reason:
            trial.set_constraint("health", 1.0)
            value = self._penalty()
        self.study.tell(trial, value)

    def _crashed(self, trial: optuna.Trial, answer: Answer) -> None:
        trial.set_user_attr("reason", f"crashed: {answer.crash}")
        if answer.user_error:
            self.study.tell(trial, state=TrialState.FAIL)
            raise ConfigError(answer.crash.partition(": ")[2])
        if self.crashes >= 0:
            self.crashes += 1
        if "retry_of" in trial.user_attrs:
            trial.set_constraint("health", 1.0)
            self.study.tell(trial, self._penalty())
        else:
            requeue(self.study, trial.number, crashed=True)
        if self.crashes >= _HOPELESS:
            raise HopelessError(f"every trial crashes: {answer.crash}")

    def _penalty(self) -> float:
        """Worse than the worst healthy value so far by a tenth of the spread: finite, capped."""
        values = [t.value for t in healthy(self.study) if t.value is not None]
        if not values:
            return 10.0 if self.budget.mode == "min" else 0.0
        low, high = min(values), max(values)
        margin = max(0.1 * (high - low), 0.01 * max(abs(low), abs(high)))
        return high + margin if self.budget.mode == "min" else low - margin

    def _best_text(self) -> str:
        found = ranked(self.study, self.budget.mode)
        if not found:
            return ""
        return f"best {self.budget.monitor} {found[0].value:.4g} ({found[0].params[STRATEGY]})"


def _silent(phase: str, done: int, total: int, text: str) -> None:
    del phase, done, total, text
