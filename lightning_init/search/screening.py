"""The wide part: one seed for all, told to Optuna so that its sampler learns.

An unhealthy trial is told as a finite, capped penalty with a constraint, so that the sampler
avoids it; a crashed one fails and is tried once more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.trial import TrialState

from lightning_init.search.budget import Budget
from lightning_init.search.confirm import HopelessError
from lightning_init.search.executors import Answer
from lightning_init.search.job import ConfigError
from lightning_init.search.records import attributes, healthy, ranked, requeue, requeue_running
from lightning_init.search.space import STRATEGY, Space
from lightning_init.search.trial import Trial

_HOPELESS = 3  # crashes in a row, without any success before, end the search


@dataclass
class Screening:
    """Asks the study for trials and tells it what came of them.

    Attributes:
        study: The study, owned by this process.
        budget: How many, how long.
        space: What is searched.
    """

    study: optuna.Study
    budget: Budget
    space: Space
    phase: str = "screening"
    running: dict[int, optuna.Trial] = field(default_factory=dict)
    crashes: int = 0

    @property
    def done(self) -> int:
        """Finished trials, all sessions together."""
        states = (TrialState.COMPLETE, TrialState.PRUNED)
        return len(self.study.get_trials(deepcopy=False, states=states))

    @property
    def total(self) -> int:
        """Trials wanted."""
        return self.budget.trials

    @property
    def best(self) -> str:
        """The best so far."""
        found = ranked(self.study, self.budget.mode)
        if not found:
            return ""
        return f"best {self.budget.monitor} {found[0].values[0]:.4g} ({found[0].params[STRATEGY]})"

    def next(self) -> tuple[int, Trial] | None:
        """Ask for the next trial."""
        if self.total - self.done - len(self.running) <= 0:
            return None
        trial = self.study.ask(self._distributions)
        self.running[trial.number] = trial
        return trial.number, self._trial(trial.params)

    def report(self, job: int, step: int, value: float) -> bool:
        """Keep a training loss."""
        trial = self.running.get(job)
        if trial is not None and len(self.budget.goals) == 1:
            trial.report(value, step)
        return False

    def finish(self, job: int, answer: Answer) -> None:
        """Tell the study what came of a trial."""
        trial = self.running.pop(job)
        if answer.outcome is None:
            self._crashed(trial, answer)
            return
        self.crashes = -1
        outcome = answer.outcome
        for key, value in attributes(outcome).items():
            trial.set_user_attr(key, value)
        values = list(outcome.values)
        if not values or outcome.reason:
            trial.set_constraint("health", 1.0)
            values = self._penalty()
        self.study.tell(trial, values)

    def give_up(self) -> None:
        """Queue what runs again."""
        requeue_running(self.study)

    @property
    def _distributions(self) -> dict[str, optuna.distributions.BaseDistribution]:
        return {name: axis.distribution for name, axis in self.space.axes.items()}

    def _trial(self, values: Mapping[str, Any]) -> Trial:
        spec, overrides = self.space.spec(values), self.space.overrides(values)
        gated = self.space.gated(values)
        return Trial(spec, overrides, self.budget.seed, self.budget.steps, gated)

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

    def _penalty(self) -> list[float]:
        """Worse than the worst healthy value so far by a tenth of the spread: finite, capped."""
        found = []
        for index, goal in enumerate(self.budget.goals):
            values = [t.values[index] for t in healthy(self.study) if t.values]
            if not values:
                found.append(10.0 if goal.mode == "min" else 0.0)
                continue
            low, high = min(values), max(values)
            margin = max(0.1 * (high - low), 0.01 * max(abs(low), abs(high)))
            found.append(high + margin if goal.mode == "min" else low - margin)
        return found
