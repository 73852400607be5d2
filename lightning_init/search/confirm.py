"""The best few and the as-built model again, on fresh paired seeds; then the comparison."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import optuna
from optuna.trial import FrozenTrial, TrialState

from lightning_init.search.evaluate import Outcome, Trial
from lightning_init.search.records import Budget, ranked, remember, row, run_of, whole
from lightning_init.search.result import Candidate, Run, SearchResult
from lightning_init.search.space import STRATEGY, Space
from lightning_init.search.workers import Executor

Progress = Callable[[str, int, int, str], None]


class HopelessError(RuntimeError):
    """There is nothing to compare: every trial crashes."""


@dataclass
class Confirmation:
    """Chooses whom to confirm, runs what is not stored yet, compares.

    Attributes:
        study: The screening.
        budget: How many, on how many seeds.
        space: What was searched.
        executor: Gives the one who runs trials, made on first use.
        progress: Called as `progress(phase, done, total, text)`.
    """

    study: optuna.Study
    budget: Budget
    space: Space
    executor: Callable[[], Executor]
    progress: Progress

    def run(self, stored: optuna.Study) -> dict[tuple[int, int], Run]:
        """Run the best few and the baseline on fresh seeds; what is stored is not run again."""
        done = {
            (t.user_attrs["candidate"], t.user_attrs["seed"]): run_of(t)
            for t in stored.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        }
        todo = [
            (number, seed)
            for seed in self._seeds
            for number in (self._baseline().number, *[t.number for t in self._finalists()])
            if (number, seed) not in done
        ]
        total, waiting = len(todo), list(todo)
        running: dict[int, tuple[int, int]] = {}
        values = {t.number: t.params for t in self.study.get_trials(deepcopy=False)}
        tries: dict[tuple[int, int], int] = {}
        while waiting or running:
            while waiting and self.executor().idle:
                number, seed = waiting.pop(0)
                job = todo.index((number, seed))
                running[job] = (number, seed)
                self.executor().submit(job, self._trial(values[number], seed))
            ran = total - len(waiting) - len(running)
            self.progress("confirming", ran, total, "")
            answer = self.executor().next(_go_on)
            key = running.pop(answer.job)
            if answer.outcome is None and not answer.user_error and not tries.get(key):
                tries[key] = 1
                waiting.append(key)
                continue
            outcome = answer.outcome or Outcome(None, reason=f"crashed: {answer.crash}")
            done[key] = remember(stored, key, outcome)
            self.progress("confirming", total - len(waiting) - len(running), total, "")
        return done

    @property
    def _seeds(self) -> list[int]:
        return [self.budget.seed + 1 + index for index in range(self.budget.confirm_seeds)]

    def _baseline(self) -> FrozenTrial:
        """The as-built model with the configuration as it is."""
        start = self.space.recipes()[0]
        for trial in self.study.get_trials(deepcopy=False):
            same = {k: trial.params.get(k) for k in self.space.config} == self.space.overrides(
                start
            )
            if trial.params.get(STRATEGY) == "keep" and same and whole(self.space, trial):
                return trial
        raise HopelessError("the as-built model has not been tried")

    def _finalists(self) -> list[FrozenTrial]:
        start = self.space.recipes()[0]
        chosen: dict[tuple[str, str], FrozenTrial] = {}
        nothing_new = (repr(self.space.spec(start)), str(self.space.overrides(start)))
        for trial in ranked(self.study, self.budget.mode):
            key = (repr(self.space.spec(trial.params)), str(self.space.overrides(trial.params)))
            if key != nothing_new and key not in chosen:
                chosen[key] = trial
        return list(chosen.values())[: self.budget.top]

    def result(self, confirmed: dict[tuple[int, int], Run]) -> SearchResult:
        """All trials and the confirmed candidates, compared."""

        def candidate(trial: FrozenTrial) -> Candidate:
            return Candidate(
                number=trial.number,
                spec=self.space.spec(trial.params),
                config=self.space.overrides(trial.params),
                runs=tuple(confirmed[trial.number, seed] for seed in self._seeds),
                is_baseline=trial.number == self._baseline().number,
            )

        return SearchResult.judge(
            candidate(self._baseline()),
            tuple(candidate(trial) for trial in self._finalists()),
            tuple(row(self.space, trial) for trial in self.study.get_trials(deepcopy=False)),
            mode=self.budget.mode,
            monitor=self.budget.monitor,
            steps=self.budget.steps,
            study=self.study,
        )

    def _trial(self, values: dict[str, object], seed: int) -> Trial:
        overrides = self.space.overrides(values)
        return Trial(self.space.spec(values), overrides, seed, self.budget.steps, gated=False)


def _go_on(job: int, step: int, value: float) -> bool:
    del job, step, value
    return False
