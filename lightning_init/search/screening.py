"""The wide part: one seed for all, told to Optuna so that its sampler learns.

An unhealthy trial is told as a finite, capped penalty with a constraint, so that the sampler
avoids it; one that trains too slowly ends early; a crashed one fails and is tried once more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.trial import TrialState

from lightning_init.search.budget import Budget
from lightning_init.search.executors import Answer
from lightning_init.search.finalists import HopelessError
from lightning_init.search.job import ConfigError
from lightning_init.search.lengthen import longer, nothing_learned
from lightning_init.search.opening import queue_opening
from lightning_init.search.pruner import PRUNED, SlowPruner
from lightning_init.search.records import (
    attributes,
    check_values,
    healthy,
    ranked,
    requeue,
    requeue_running,
)
from lightning_init.search.space import STRATEGY, Space
from lightning_init.search.trial import Outcome, Trial

_HOPELESS = 3  # crashes in a row, without any success before, end the search


class Screening:
    """Asks the study for trials and tells it what came of them.

    Args:
        study: The study, owned by this process.
        budget: How many, how long.
        space: What is searched.

    Attributes:
        too_short: Whether nothing learns and trials may be longer: it then ends by itself.
    """

    def __init__(self, study: optuna.Study, budget: Budget, space: Space) -> None:
        self.phase = "screening"
        self.study, self.budget, self.space = study, budget, space
        self.running: dict[int, optuna.Trial] = {}
        self._losses: dict[int, dict[int, float]] = {}
        self._slow: dict[int, int] = {}  # trial -> the step at which it was told to stop
        done = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE, TrialState.PRUNED])
        ran = any(not t.user_attrs.get("reason", "").startswith("crashed") for t in done)
        self._crashes = -1 if ran else 0  # what has run in an earlier session counts, too
        self._pruner: SlowPruner | None = None
        if budget.pruning and len(budget.goals) == 1:
            states = (TrialState.COMPLETE, TrialState.PRUNED)
            self._pruner = SlowPruner(budget.steps, study.get_trials(deepcopy=False, states=states))
        self._may_be_longer = longer(budget) is not None
        self.too_short = self._may_be_longer and nothing_learned(study, budget.trials)

    @property
    def done(self) -> int:
        """Finished trials, all sessions together."""
        states = (TrialState.COMPLETE, TrialState.PRUNED)
        return len(self.study.get_trials(deepcopy=False, states=states))

    @property
    def total(self) -> int:
        """Trials wanted."""
        return self.done + len(self.running) if self.too_short else self.budget.trials

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
        queue_opening(self.study, self.budget, self.space)
        trial = self.study.ask(self._distributions)
        self.running[trial.number] = trial
        return trial.number, self._trial(trial.params)

    def report(self, job: int, step: int, value: float) -> bool:
        """Keep a training loss; True if the trial is too slow to go on."""
        trial = self.running.get(job)
        if trial is None or len(self.budget.goals) > 1:
            return False
        losses = self._losses.setdefault(job, {})
        if step not in losses and math.isfinite(value):
            losses[step] = value
            trial.report(value, step)
        if self._pruner is None or not self.space.gated(trial.params):
            return False  # what everything is measured against is never ended early
        if job not in self._slow and step < self.budget.steps and self._pruner.slow(losses):
            self._slow[job] = step
        return job in self._slow

    def finish(self, job: int, answer: Answer) -> None:
        """Tell the study what came of a trial.

        Raises:
            ConfigError: If the configuration is wrong: the others would end the same. The trial
                itself is left to `give_up`, for a search that goes on once that is put right.
        """
        if answer.user_error:
            raise ConfigError(answer.crash.partition(": ")[2])
        if answer.outcome is not None:
            check_values(self.study, answer.outcome)
        trial = self.running.pop(job)
        self._losses.pop(job, None)
        slow = self._slow.pop(job, None)
        if answer.outcome is None:
            self._crashed(trial, answer)
            return
        self._crashes = -1
        outcome = answer.outcome
        if slow is not None and _ended_early(outcome, self.budget.steps):
            self._tell_slow(trial, outcome, slow)
        else:
            self._tell(trial, outcome)
        if self._pruner is not None:
            self._pruner.learn(self.study.get_trials(deepcopy=False)[job])
        self.too_short = self._may_be_longer and nothing_learned(self.study, self.budget.trials)

    def give_up(self) -> None:
        """Queue what runs again."""
        requeue_running(self.study)

    def _tell(self, trial: optuna.Trial, outcome: Outcome) -> None:
        for key, value in attributes(outcome).items():
            trial.set_user_attr(key, value)
        values = list(outcome.values)
        if not values or outcome.reason:
            trial.set_constraint("health", 1.0)
            values = self._penalty()
        else:
            self._feasible(trial)
        self.study.tell(trial, values)

    def _feasible(self, trial: optuna.Trial) -> None:
        """A GP wants the constraint of every trial; elsewhere one without it is feasible."""
        if self.budget.sampler == "gp":
            trial.set_constraint("health", -1.0)

    def _tell_slow(self, trial: optuna.Trial, outcome: Outcome, step: int) -> None:
        """TPE ranks what is PRUNED below what is not; a GP would not see it at all."""
        for key, value in attributes(outcome).items():
            trial.set_user_attr(key, value)
        trial.set_user_attr("metric", None)
        trial.set_user_attr("reason", f"{PRUNED}: slower than half of the others at step {step}")
        known = sorted(t.values[0] for t in healthy(self.study))
        if self.budget.sampler == "tpe" or not known:
            self.study.tell(trial, state=TrialState.PRUNED)
            return
        self._feasible(trial)
        # The middle of the worse half is what a trial of the slower half can be expected to reach.
        share = 0.75 if self.budget.mode == "min" else 0.25
        self.study.tell(trial, known[round(share * (len(known) - 1))])

    @property
    def _distributions(self) -> dict[str, optuna.distributions.BaseDistribution]:
        return {name: axis.distribution for name, axis in self.space.axes.items()}

    def _trial(self, values: Mapping[str, Any]) -> Trial:
        spec, overrides = self.space.spec(values), self.space.overrides(values)
        gated = self.space.gated(values)
        return Trial(spec, overrides, self.budget.seed, self.budget.steps, gated)

    def _crashed(self, trial: optuna.Trial, answer: Answer) -> None:
        trial.set_user_attr("reason", f"crashed: {answer.crash}")
        if self._crashes >= 0:
            self._crashes += 1
        if "retry_of" in trial.user_attrs:
            trial.set_constraint("health", 1.0)
            self.study.tell(trial, self._penalty())
        else:
            requeue(self.study, trial.number, crashed=True)
        if self._crashes >= _HOPELESS:
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


def _ended_early(outcome: Outcome, steps: int) -> bool:
    """Whether a trial that was told to stop did; one with another reason is not just slow."""
    if outcome.reason and not outcome.reason.startswith(PRUNED):
        return False
    last = outcome.info.get("steps", outcome.curve[-1][0] if outcome.curve else 0)
    return outcome.metric is None or bool(last < steps)
